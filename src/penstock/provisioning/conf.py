"""The format of Slurm's configuration files: lines of ``Key=value`` pairs. Pure.

Text is made here and nowhere else, of keys and values: what cannot stand as one value of Slurm's parser is refused, never
pasted. There, a blank ends a value that has no quotes, a quote ends one that has, ``#`` begins a comment even between
quotes, and a backslash joins lines or is dropped; so quotes, ``#``, backslashes and control characters are no part of a
value, and a value with blanks is put between quotes. An empty value is refused too: Slurm takes the next word for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

KEY = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[!-~]+(?: +[!-~]+)*")
_PAIR = re.compile(r'\s*([A-Za-z0-9_.]+)\s*([-*+/]?)=\s*(?:"([^"]*)"|(\S+))(?=\s|$)')
_EMPTY = re.compile(r'\s*([A-Za-z0-9_.]+)\s*=(?:\s*""(?=\s|$)|\s*$|\s+(?=[A-Za-z][A-Za-z0-9_]*=))')
HEAD = "# Written by `penstock provision render slurm`: change the fleet file and render again."


@dataclass(frozen=True, slots=True)
class Line:
    """The first pair names it: NodeName=gpu[001-128] CPUs=192 ..."""

    pairs: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, **pairs: object) -> Line:
        """Without those that are None."""
        return cls(tuple((key, str(value)) for key, value in pairs.items() if value is not None))


@dataclass(frozen=True, slots=True)
class ConfFile:
    """``text`` stands for the lines where the format is another (topology.yaml)."""

    name: str
    lines: tuple[Line, ...] = ()
    mode: int = 0o644
    text: str = ""

    def __str__(self) -> str:
        return self.text or "\n".join([HEAD, *(_written(line) for line in self.lines), ""])


def unfit(value: str) -> str | None:
    """Why it cannot be a value of these files; None when it can."""
    if not value.strip():
        return "must not be empty"
    for bad, name in (('"', "a quote"), ("#", "# (it begins a comment)"), ("\\", "a backslash")):
        if bad in value:
            return f"must not have {name} in it: Slurm's files cannot hold one"
    if _PLAIN.fullmatch(value) is None:
        return "must be one line of printable ASCII, without blanks around it"
    return None


def _written(line: Line) -> str:
    words = []
    for key, value in line.pairs:
        problem = f"{key!r} is no key" if KEY.fullmatch(key) is None else unfit(value)
        if problem is not None:
            raise ValueError(f"{key}: {problem}")
        words.append(f'{key}="{value}"' if " " in value else f"{key}={value}")
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class Read:
    """A line of a file that somebody wrote: its pairs (keys as spelt), the keys without a value, and what is no pair."""

    number: int
    pairs: tuple[tuple[str, str], ...]
    empty: tuple[str, ...] = ()
    rest: str = ""

    def get(self, key: str, default: str = "") -> str:
        return next((value for name, value in self.pairs if name.lower() == key.lower()), default)

    @property
    def kind(self) -> str:
        return self.pairs[0][0].lower() if self.pairs else ""


def read(text: str) -> list[Read]:
    """The lines as Slurm reads them: comments dropped, those that end in a backslash joined to the next."""
    return [_read(number, line) for number, line in _lines(text) if line.strip()]


def _lines(text: str) -> Iterator[tuple[int, str]]:
    joined, began = "", 0
    for number, raw in enumerate(text.split("\n"), 1):
        line = _uncommented(raw.rstrip("\r"))
        began = began or number
        if line.endswith("\\"):
            joined += line[:-1]
            continue
        yield began, joined + line
        joined, began = "", 0
    if joined:
        yield began, joined


def _uncommented(line: str) -> str:
    backslashes = 0
    for at, letter in enumerate(line):
        if letter == "#" and backslashes % 2 == 0:
            return line[:at]
        backslashes = backslashes + 1 if letter == "\\" else 0
    return line


def _read(number: int, line: str) -> Read:
    pairs: list[tuple[str, str]] = []
    empty: list[str] = []
    at = 0
    while line[at:].strip():
        if none := _EMPTY.match(line, at):
            empty.append(none[1])
            at = none.end()
        elif pair := _PAIR.match(line, at):
            pairs.append((pair[1], pair[3] if pair[3] is not None else pair[4]))
            at = pair.end()
        else:
            break
    return Read(number, tuple(pairs), tuple(empty), line[at:].strip())
