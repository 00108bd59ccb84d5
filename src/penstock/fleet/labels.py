"""Labels of nodes: what the engine knows of one, and over that what people say; where it stands follows from two of them. Pure.

Keys and values are Kubernetes': ``topology/rack=r7``. People's word on a key counts, whatever the engine says, until they take
the label away; what an engine offers is taken away for good by that, not until the next start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from penstock.base.errors import Problem

LEVELS = ("block", "rack")  # the domains above a host, widest first
PREFIX = "topology/"  # of labels that say what a node shares with others: a rack, a switch, a power unit
BLOCK, RACK = f"{PREFIX}block", f"{PREFIX}rack"
MOST = 64  # labels of one node
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")


def effective(offered: Mapping[str, str], said: Mapping[str, str | None]) -> dict[str, str]:
    """Both together, by key; ``said`` None: taken away."""
    return {key: value for key, value in sorted({**offered, **said}.items()) if value is not None}


def topology(labels: Mapping[str, str]) -> tuple[str, ...]:
    """Block and rack, "" for one that is not known; nothing where neither is."""
    path = labels.get(BLOCK, ""), labels.get(RACK, "")
    return path if any(path) else ()


def domains(labels: Mapping[str, str]) -> tuple[str, ...]:
    """All that it is in, in words: ``rack b1/r7``, ``block b1``, ``pdu p3``. Racks of two blocks are two though their labels are one."""
    block = labels.get(BLOCK, "")
    return tuple(
        f"{key.removeprefix(PREFIX)} {f'{block}/' if key == RACK and block else ''}{value}"
        for key, value in sorted(labels.items())
        if key.startswith(PREFIX) and value
    )


def problems(labels: Mapping[str, str | None]) -> list[Problem]:
    """Everything wrong with keys and values."""
    found = [
        Problem(f"labels.{key[:80]}", "is no key: write NAME or PREFIX/NAME") for key in labels if not _is_key(key)
    ]
    for key, value in labels.items():
        if value and not _NAME.fullmatch(value):
            words = "is no value: at most 63 letters, digits, '-', '_' and '.', a letter or digit first and last"
            found.append(Problem(f"labels.{key[:80]}", f"{value[:80]!r} {words}"))
    return found


def _is_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    return bool(_NAME.fullmatch(name)) and (not slash or bool(_PREFIX.fullmatch(prefix)))


def words(changes: Mapping[str, str | None]) -> str:
    """``topology/rack=r7, old-`` as it was written."""
    return ", ".join(f"{key}-" if value is None else f"{key}={value}" for key, value in sorted(changes.items()))


def written(texts: Iterable[str]) -> tuple[dict[str, str | None], list[str]]:
    """``key=value`` and ``key-`` as changes, and what is neither (names of nodes)."""
    changes: dict[str, str | None] = {}
    others: list[str] = []
    for text in texts:
        key, equals, value = text.partition("=")
        if equals:
            changes[key] = value
        elif text.endswith("-"):
            changes[text[:-1]] = None
        else:
            others.append(text)
    return changes, others
