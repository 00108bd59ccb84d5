"""Whose fault failures are: the script's, where they come at one step again and again; a node's, where they follow it.
Pure decisions over what is known of a job's failures.

*No progress past a failure* means: the next one came at its step or before it. A start that reported no step at all
counts as failing before the first one if it was short; of a long one nothing is known, so it ends the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from penstock.engines.spec import Failure

KEPT = 32  # failures that a job's row remembers
SILENT_S = 600.0  # a start without a report that lasted longer may have come far
BUS_ERROR = 7
_TOLD_S = 15.0  # from the word that a rank hangs to its end
SENT = frozenset({9, 15})  # signals that somebody sends: a person, or who found that a rank hung; no node does
_HARDWARE = re.compile(r"\bXid\b|uncorrectable (ECC|NVLink)|hardware error|Bus error", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Crash:
    """A failure of one of a job's attempts."""

    attempt: int
    restart: int
    rank: int | None
    node: str
    exit_code: int | None
    signal: int | None
    step: int | None
    at: float
    ran_s: float
    lines: tuple[str, ...] = ()
    hung: str = ""  # what was said of the hang for which it was ended

    @property
    def reached(self) -> int:
        return -1 if self.step is None else self.step

    @property
    def unknown(self) -> bool:
        """How far it came."""
        return self.step is None and self.ran_s > SILENT_S

    @property
    def who(self) -> str:
        return "the command" if self.rank is None else f"rank {self.rank}"

    @property
    def end(self) -> str:
        return (
            f"was killed by signal {self.signal}" if self.signal is not None else f"exited with code {self.exit_code}"
        )

    @property
    def place(self) -> str:
        return "before the first step" if self.step is None else f"at step {self.step}"


@dataclass(frozen=True, slots=True)
class Loop:
    """The script's fault: trying again mends nothing."""

    message: str


@dataclass(frozen=True, slots=True)
class BadNode:
    """A node's fault: elsewhere it may go well."""

    node: str
    why: str


def taken_in(
    known: Sequence[Crash], attempt: int, failures: Iterable[Failure], hangs: Mapping[float, str] = MappingProxyType({})
) -> tuple[Crash, ...]:
    """With those of an attempt that were not known yet, in the order of time, the newest ``KEPT``. ``hangs``: when its ranks
    were ended because they hung, and what was said.
    """
    there = {(crash.attempt, crash.restart) for crash in known}
    new = [
        Crash(
            attempt,
            one.restart,
            one.rank,
            one.node,
            one.exit_code,
            one.signal,
            one.step,
            one.at,
            one.ran_s,
            one.lines,
            _hang(one, hangs),
        )
        for one in failures
        if (attempt, one.restart) not in there
    ]
    return tuple([*known, *sorted(new, key=lambda crash: crash.restart)][-KEPT:])


def _hang(one: Failure, hangs: Mapping[float, str]) -> str:
    """Of a rank that was killed just then."""
    if one.signal not in SENT:
        return ""
    return next((words for at, words in hangs.items() if 0 <= one.at - at + _TOLD_S <= 2 * _TOLD_S), "")


def row_of(crashes: Sequence[Crash]) -> Sequence[Crash]:
    """The newest failures of which each brought no progress past the one before."""
    first = len(crashes) - 1
    while first > 0:
        before, after = crashes[first - 1], crashes[first]
        if after.unknown or before.unknown or after.reached > before.reached:
            break
        first -= 1
    return crashes[max(first, 0) :]


def verdict(crashes: Sequence[Crash], most: int) -> Loop | BadNode | None:
    """Of the newest failure, with those before it. ``most``: so many in a row are the script's fault; 0: never."""
    if not crashes:
        return None
    last = crashes[-1]
    if _hardware(last):
        return BadNode(last.node, f"{last.who} {last.end} there, as bad hardware makes it")
    row = row_of(crashes)
    if 0 < most <= len(row) and not _follows_node(row):
        return Loop(_loop_message(row))
    sent = any(crash.signal in SENT for crash in crashes[-2:])
    if len(crashes) > 1 and not sent and _follows_node(crashes[-2:]):
        steps = " and ".join(crash.place for crash in crashes[-2:])
        return BadNode(last.node, f"the job failed there twice in a row, {steps}")
    return None


def _hardware(crash: Crash) -> bool:
    return bool(crash.node) and (crash.signal == BUS_ERROR or any(_HARDWARE.search(line) for line in crash.lines))


def _follows_node(crashes: Sequence[Crash]) -> bool:
    """On one and the same node, and not at one step."""
    nodes = {crash.node for crash in crashes}
    return len(nodes) == 1 and "" not in nodes and len({crash.step for crash in crashes}) > 1


def _loop_message(row: Sequence[Crash]) -> str:
    last = row[-1]
    where = f" on {last.node}" if last.node else ""
    steps = sorted({crash.reached for crash in row})
    place = last.place if len(steps) == 1 else f"{last.place}, never past {row[0].place.removeprefix('at ')}"
    if hangs := sum(bool(crash.hung) for crash in row):
        what = f"hung {len(row)} times" if hangs == len(row) else f"failed {len(row)} times ({hangs} of them hangs)"
        return f"it {what} in a row {place}: {next(crash.hung for crash in reversed(row) if crash.hung)}"
    words = f"it failed {len(row)} times in a row {place}: {last.who}{where} {last.end}"
    return "\n".join([words + (":" if last.lines else ""), *(f"  {line}" for line in last.lines)])


def load(stored: Sequence[Mapping[str, Any]]) -> tuple[Crash, ...]:
    return tuple(Crash(**{**one, "lines": tuple(one["lines"])}) for one in stored)


def dump(crashes: Iterable[Crash]) -> list[dict[str, Any]]:
    return [asdict(crash) for crash in crashes]
