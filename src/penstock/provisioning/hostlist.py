"""Slurm's names of many: ``gpu[001-128]`` <-> ``gpu001``, ``gpu002`` ... Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

MOST = 65_536
_PARTS = re.compile(r"([^\[\],]*)(?:\[([^\[\]]*)\])?")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_NUMBERED = re.compile(r"(.*?)(\d{1,9})")


def expand(text: str) -> tuple[str, ...]:
    """Every name, in the order written. Raises ValueError, in words for whoever wrote it."""
    found: list[str] = []
    for item in _items(text):
        choices = [[prefix] if ids is None else [prefix + one for one in _ids(ids)] for prefix, ids in _parts(item)]
        count = 1
        for each in choices:
            count *= len(each)
        if count + len(found) > MOST:
            raise ValueError(f"{text[:60]!r} names more than {MOST:,}")
        found += ["".join(parts) for parts in itertools.product(*choices)]
    return tuple(found)


def _items(text: str) -> Iterator[str]:
    """Split at the commas that stand in no bracket."""
    depth, item = 0, ""
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if depth not in (0, 1):
            raise ValueError(f"the brackets of {text[:60]!r} do not match")
        if letter == "," and depth == 0:
            yield item
            item = ""
        else:
            item += letter
    if depth:
        raise ValueError(f"the brackets of {text[:60]!r} do not match")
    yield item


def _parts(item: str) -> Iterator[tuple[str, str | None]]:
    if not item or item != item.strip():
        raise ValueError("a name is empty, or has blanks around it")
    for match in _PARTS.finditer(item):
        if match[0]:
            yield match[1], match[2]


def _ids(text: str) -> Iterator[str]:
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"{part[:40]!r} is no range: write numbers, such as [001-128] or [1,3,5-8]")
        first, last = match[1], match[2] or match[1]
        if int(last) < int(first):
            raise ValueError(f"the range {part!r} ends before it begins")
        if int(last) - int(first) >= MOST:
            raise ValueError(f"the range {part!r} has more than {MOST:,} names")
        width = len(first) if first.startswith("0") else 0
        yield from (str(number).zfill(width) for number in range(int(first), int(last) + 1))


def fold(names: Iterable[str]) -> str:
    """The shortest text that ``expand`` makes the same names of, in the same order."""
    pieces: list[str] = []
    prefix, runs = "", list[list[str]]()

    def close() -> None:
        texts = [run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
        if runs:
            alone = len(texts) == 1 and len(runs[0]) == 1
            pieces.append(prefix + (texts[0] if alone else f"[{','.join(texts)}]"))
        runs.clear()

    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is None:
            close()
            pieces.append(name)
            continue
        if match[1] != prefix:
            close()
            prefix = match[1]
        if runs and _next(runs[-1]) == match[2]:
            runs[-1].append(match[2])
        else:
            runs.append([match[2]])
    close()
    return ",".join(pieces)


def _next(run: list[str]) -> str:
    width = len(run[0]) if run[0].startswith("0") else 0
    return str(int(run[-1]) + 1).zfill(width)
