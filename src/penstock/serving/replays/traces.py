"""Request traces: when each request came, and of how many tokens it was.

Three forms, told by their content: Azure's LLM traces (``TIMESTAMP,ContextTokens,GeneratedTokens``), Mooncake's (a JSON
object a line: ``timestamp`` in ms, ``input_length``, ``output_length``) and any CSV with a column ``at`` (seconds, or RFC
3339) and, where it matters, ``prompt`` and ``output`` (tokens) or ``work`` (in requests of the curve; default 1).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, TextIO

from penstock.base.errors import InvalidInput, Problem
from penstock.base.text import one_line

SHOWN = 10  # bad lines that are told with their numbers; the others are counted
MOST = 5_000_000  # requests in one replay
MOST_TOKENS = 100_000_000
LONGEST_S = 31 * 86400.0
_LINE = 1 << 20  # characters


class Request(NamedTuple):
    """``at`` in seconds since the first one."""

    at: float
    prompt: float
    output: float
    work: float


@dataclass(frozen=True, slots=True)
class Trace:
    requests: tuple[Request, ...]
    tokens: bool  # whether the requests have tokens: a language model's
    lines: int
    bad: int
    problems: tuple[Problem, ...]

    @property
    def seconds(self) -> float:
        return self.requests[-1].at


class _Bad(ValueError):
    """Of one line; the words for people."""


def read(path: str, first: int | None = None) -> Trace:
    """Sorted by time. Bad lines are left out and told; a file without a good line is InvalidInput."""
    with _opened(path) as text:
        return parse(text, path, first)


def _opened(path: str) -> TextIO:
    if path == "-":
        return sys.stdin
    opener: Any = lzma.open if path.endswith(".xz") else gzip.open if path.endswith(".gz") else open
    try:
        return io.TextIOWrapper(opener(path, "rb"), "utf-8", errors="replace", newline="")
    except OSError as exc:
        raise InvalidInput(f"the trace cannot be read: {exc}") from exc


def parse(text: TextIO, name: str = "trace", first: int | None = None) -> Trace:
    rows: list[tuple[float, float, float, float]] = []
    problems: list[Problem] = []
    count, bad = 0, 0
    try:
        tokens, lines = _form(text)
        for number, make in lines:
            count += 1
            try:
                rows.append(make())
            except ValueError as exc:
                bad += 1
                if len(problems) < SHOWN:
                    problems.append(Problem("line", str(exc), number))
            if len(rows) > MOST:
                raise InvalidInput(f"{name} has more than {MOST:,} requests; --first N takes the first N")
    except (OSError, EOFError, lzma.LZMAError, csv.Error) as exc:
        raise InvalidInput(f"{name} cannot be read: {exc}") from exc
    if not rows:
        raise InvalidInput(f"{name} has no line that is a request", details=problems)
    rows.sort()
    start = rows[0][0]
    requests = tuple(Request(at - start, *rest) for at, *rest in rows[:first])
    if requests[-1].at > LONGEST_S:
        raise InvalidInput(f"{name} goes over {requests[-1].at / 86400:.0f} days; a replay takes 31 at most")
    return Trace(requests, tokens, count, bad, tuple(problems))


_Line = tuple[int, Callable[[], tuple[float, float, float, float]]]


def _form(text: TextIO) -> tuple[bool, Iterator[_Line]]:
    head = text.readline(_LINE).lstrip("\ufeff")
    if head.lstrip().startswith("{"):
        return True, _json_lines(head, text)
    names = [name.strip() for name in next(csv.reader([head]), [])]
    if {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(names):
        return True, _csv_lines(
            names, text, {"at": "TIMESTAMP", "prompt": "ContextTokens", "output": "GeneratedTokens"}
        )
    if "at" in names:
        known = {name: name for name in names if name in {"at", "prompt", "output", "work"}}
        return "prompt" in names, _csv_lines(names, text, known)
    raise InvalidInput(
        "the trace is of no form that is known",
        details=[Problem("line", f"the header is {one_line(head, 100)!r}", 1)],
        hint="JSON lines with timestamp, input_length, output_length; a CSV with TIMESTAMP, ContextTokens, "
        "GeneratedTokens; or a CSV with a column `at`.",
    )


def _json_lines(head: str, text: TextIO) -> Iterator[_Line]:
    line, number = head, 1
    while line:
        if line.strip():
            yield number, partial(_mooncake, line)
        line, number = text.readline(_LINE), number + 1


def _mooncake(line: str) -> tuple[float, float, float, float]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise _Bad(f"is no JSON: {one_line(line, 60)!r}") from exc
    if not isinstance(row, dict):
        raise _Bad("is no JSON object")
    at = _number(row.get("timestamp"), "timestamp", math.inf) / 1000
    return at, _number(row.get("input_length"), "input_length"), _number(row.get("output_length"), "output_length"), 1.0


def _csv_lines(names: list[str], text: TextIO, columns: dict[str, str]) -> Iterator[_Line]:
    places = {what: names.index(name) for what, name in columns.items()}
    rows = csv.reader(text)
    for row in rows:
        if row:
            yield rows.line_num + 1, partial(_row, row, len(names), places, columns)


def _row(
    row: list[str], width: int, places: dict[str, int], columns: dict[str, str]
) -> tuple[float, float, float, float]:
    if len(row) != width:
        raise _Bad(f"has {len(row)} fields instead of {width}")
    found = {what: row[place] for what, place in places.items()}
    prompt = _number(found.get("prompt", "0"), columns.get("prompt", "prompt"))
    output = _number(found.get("output", "0"), columns.get("output", "output"))
    return _time(found["at"], columns["at"]), prompt, output, _number(found.get("work", "1"), "work")


def _time(text: str, name: str) -> float:
    try:
        return _number(text, name, math.inf)
    except _Bad:
        pass
    try:
        # Azure writes seven decimals, and no zone: UTC
        at = datetime.fromisoformat(text[:26].rstrip("Z") if len(text) > 26 and text[19:20] == "." else text)
    except ValueError as exc:
        raise _Bad(f"{name} {one_line(text, 40)!r} is no time") from exc
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _number(value: Any, name: str, most: float = MOST_TOKENS) -> float:
    if isinstance(value, bool) or value is None:
        raise _Bad(f"{name} is missing")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise _Bad(f"{name} {one_line(str(value), 40)!r} is no number") from exc
    if not math.isfinite(number) or number < 0:
        raise _Bad(f"{name} {one_line(str(value), 40)!r} must be finite and not below zero")
    if number > most:
        raise _Bad(f"{name} {one_line(str(value), 40)!r} is more than {most:g}")
    return number
