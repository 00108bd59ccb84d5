"""Which GPU a name means: all its words are words of the model's name, in either case.

``H100`` is thus an "NVIDIA H100 80GB HBM3", and ``A100 80GB`` an "NVIDIA A100-SXM4-80GB". Jobs, flavors of a queue file
and prices name models so.
"""

from __future__ import annotations

import re
from functools import lru_cache


@lru_cache(maxsize=1 << 12)
def words(name: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", name.lower()))


def means(name: str, model: str) -> bool:
    """Whether the name is one of the model's."""
    return name == model or (bool(words(name)) and words(name) <= words(model))


@lru_cache(maxsize=1 << 12)
def any_means(names: tuple[str, ...], model: str) -> bool:
    """Whether one of the names is; asked for every GPU in a search, and so found out once."""
    return any(means(name, model) for name in names)
