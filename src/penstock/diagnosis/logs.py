"""The first failure among all ranks' logs and the nodes' kernels: what began it, and what only saw it. Pure.

When one rank fails, all others complain, and mostly louder. Each line that tells of a failure has a role by its pattern
(``knowledge/log_patterns.yaml``): a *root* began something, a *cascade* sees another's failure, a *teardown* is the end of the
rest. The first root by time is it; a cascade only where no line is a root. Clocks differ and lines come in batches, so a root
that comes a little after the first cascade still counts.

Whatever the lines hold: they are cut, their number is bounded, and each is looked at by fixed text and expressions without
nested repetition.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from typing import Any, Final

from penstock.base.text import one_line
from penstock.diagnosis.knowledge.catalogue import read_data
from penstock.diagnosis.state import Evidence, LogLine

LONGEST: Final = 2000  # characters of a line that are looked at
MOST_LINES: Final = 1000  # of one rank or node: the first ones
MOST_IN_ALL: Final = 20_000  # shared out evenly; each costs some 80 us
FEWEST_LINES: Final = 20  # of one, however many there are
MOST_FAILURES: Final = 500  # that are kept in all
LATE_S: Final = 60.0  # a root may come so long after the first cascade
_PREFIX: Final = re.compile(
    r"(?:\[(?:default|rank)?[0-9]{1,6}\]:?[ ]{0,4}|[0-9]{1,6}: |[EWIF][0-9]{4} [0-9:.]{8,20} {1,3}[0-9]{1,9} |"
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.,]{8,20}Z? {0,2}){0,4}",
    re.ASCII,
)
_EXCEPTION: Final = re.compile(
    r"(?:[A-Za-z_][A-Za-z0-9_]{0,60}\.){0,8}([A-Z][A-Za-z0-9_]{0,60}(?:Error|Exception|Exit|Interrupt))(?::|$)",
    re.ASCII,
)


class Role(StrEnum):
    ROOT = "root"
    CASCADE = "cascade"
    TEARDOWN = "teardown"


@dataclass(frozen=True, slots=True)
class Pattern:
    any: tuple[str, ...]  # in small letters, as the next two
    also: tuple[str, ...]
    but: tuple[str, ...]
    cause: str
    role: Role
    kernel: bool
    source: str

    def fits(self, small: str) -> bool:
        return (
            any(text in small for text in self.any)
            and all(text in small for text in self.also)
            and not any(text in small for text in self.but)
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """A line that tells of a failure. ``cause``: of the catalogue; "" is an error of the program itself."""

    at: float
    text: str
    cause: str
    role: Role
    node: str
    rank: int | None  # None: the node's kernel


@dataclass(frozen=True, slots=True)
class Account:
    """``first``: what began it; None where no line tells of a failure. ``silent``: ranks that say nothing while others complain."""

    first: Failure | None = None
    failures: tuple[Failure, ...] = ()  # by time
    silent: tuple[int, ...] = ()

    @property
    def roots(self) -> tuple[Failure, ...]:
        return tuple(failure for failure in self.failures if failure.role is Role.ROOT)

    @property
    def cascades(self) -> tuple[Failure, ...]:
        return tuple(failure for failure in self.failures if failure.role is Role.CASCADE)


@cache
def patterns() -> tuple[Pattern, ...]:
    return tuple(_pattern(entry) for entry in read_data("log_patterns.yaml"))


def _pattern(entry: Mapping[str, Any]) -> Pattern:
    texts = {key: tuple(text.lower() for text in entry.get(key, ())) for key in ("any", "also", "but")}
    kernel = entry.get("in", "log") == "kernel"
    return Pattern(**texts, cause=entry["cause"], role=Role(entry["role"]), kernel=kernel, source=entry["source"])


def account(evidence: Evidence) -> Account:
    """What the logs of all ranks and the kernels of their nodes tell, taken together."""
    found: list[Failure] = []
    most = max(FEWEST_LINES, min(MOST_LINES, MOST_IN_ALL // max(1, len(evidence.ranks) + len(evidence.nodes))))
    for node in evidence.nodes:
        found += of_lines(node.kernel[:most], node=node.name, rank=None)
    for rank in evidence.ranks:
        found += of_lines(rank.lines[:most], node=rank.node, rank=rank.rank)
    found.sort(key=lambda failure: failure.at)
    complaining = {failure.rank for failure in found if failure.role is not Role.TEARDOWN}
    told = any(rank is not None for rank in complaining)
    silent = tuple(rank.rank for rank in evidence.ranks if told and rank.rank not in complaining)
    return Account(first(found), tuple(found[:MOST_FAILURES]), silent)


def first(failures: Sequence[Failure]) -> Failure | None:
    """What began it, among failures by time."""
    roots = [failure for failure in failures if failure.role is Role.ROOT]
    cascades = [failure for failure in failures if failure.role is Role.CASCADE]
    if roots and (not cascades or roots[0].at <= cascades[0].at + LATE_S):
        return _named(roots)
    return cascades[0] if cascades else roots[0] if roots else None


def _named(roots: Sequence[Failure]) -> Failure:
    """The first; of those of the same moment and place one with a name: a kernel's line before the exception that it led to."""
    near = [root for root in roots if root.at <= roots[0].at + 1.0 and root.node == roots[0].node]
    return next((root for root in near if root.cause and root.rank is None), None) or next(
        (root for root in near if root.cause), roots[0]
    )


# -- lines ---------------------------------------------------------------------------------------------------------------


def of_lines(lines: Iterable[LogLine], *, node: str, rank: int | None) -> Iterator[Failure]:
    """The failures among one rank's, or one kernel's, lines, in their order."""
    seen_cascade = False
    for line in lines:
        failure = of_line(line, node=node, rank=rank)
        if failure is None:
            continue
        if failure.role is Role.ROOT and not failure.cause and seen_cascade:
            failure = replace(failure, role=Role.CASCADE)  # an exception that a lost peer led to
        seen_cascade = seen_cascade or failure.role is Role.CASCADE
        yield failure


def of_line(line: LogLine, *, node: str = "", rank: int | None = None) -> Failure | None:
    text = line.text[:LONGEST]
    small = text.lower()
    kernel = rank is None
    pattern = next((each for each in patterns() if each.kernel == kernel and each.fits(small)), None)
    if pattern is None and (kernel or not exception(text)):
        return None
    cause, role = (pattern.cause, pattern.role) if pattern is not None else ("", Role.ROOT)
    return Failure(line.at, one_line(text, 300), cause, role, node, rank)


def exception(text: str) -> str:
    """The name of the exception that a line of a traceback ends with; "" where it is no such line."""
    found = _EXCEPTION.match(_bare(text))
    return found[1] if found else ""


def _bare(text: str) -> str:
    """Without who wrote it when. The pattern fits at the beginning, if only the empty text, and there alone it is taken out."""
    return _PREFIX.sub("", text, count=1)
