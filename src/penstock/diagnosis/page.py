"""View model of a job's diagnosis. Pure functions from the API's JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from penstock.jobs.page import Badge, spark
from penstock.training.page import Slice, slices

WIDTH, HEIGHT = 600.0, 90.0  # of the picture of step times
RANKS: Final = 16
# Of a rank's step, what it was spent on: the phase, its word, and whose colour of the goodput's parts it has.
PHASES: Final = (
    ("data", "waiting for data", "startup"),
    ("compute", "forward and backward", "steps"),
    ("optimizer", "optimizer", "checkpoint"),
    ("transfer", "communication", "restart"),
    ("wait", "waiting for other ranks", "waiting"),
    ("checkpoint", "saving", "lost"),
    ("gc", "garbage collection", "hang"),
)
_TONES: Final = {"healthy": ("ok", "check"), "unknown": ("note", "dot")}


@dataclass(frozen=True, slots=True)
class Cause:
    id: str
    name: str
    score: str
    who: str
    evidence: tuple[str, ...]
    against: tuple[str, ...]
    what_it_is: str
    do: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RankRow:
    rank: int
    node: str
    step: str
    bar: tuple[Slice, ...]
    no_core: str


@dataclass(frozen=True, slots=True)
class Event:
    at: str | None
    what: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    project: str
    job: str
    href: str
    badge: Badge
    sure: str
    culprits: str
    slowdown: str
    sentences: tuple[str, ...]
    line: str  # points of a polyline
    mark: float | None  # where it became slower, of WIDTH
    low: str
    high: str
    causes: tuple[Cause, ...]
    ranks: tuple[RankRow, ...]
    more_ranks: int
    timeline: tuple[Event, ...]
    missing: tuple[str, ...]


def report(answer: Mapping[str, Any]) -> Report:
    verdict, lengths = str(answer["verdict"]), [float(length) for _, length in answer["steps"]]
    tone, icon = _TONES.get(verdict, ("bad", "cross"))
    return Report(
        str(answer["project"]),
        str(answer["job"]),
        f"/jobs/{quote(str(answer['project']), safe='')}/{quote(str(answer['job']), safe='')}",
        Badge(verdict, tone, icon),
        f"{float(answer['confidence']):.0%}",
        who(answer["culprits"]),
        "" if answer["slowdown"] is None else f"{float(answer['slowdown']):.1f} times as long",
        tuple(answer["summary"]),
        spark([[0, 0, length] for length in lengths], WIDTH, HEIGHT, len(lengths)),
        _mark(answer),
        f"{min(lengths):.0f} ms" if lengths else "",
        f"{max(lengths):.0f} ms" if lengths else "",
        tuple(map(_cause, answer["causes"])),
        tuple(_rank(row, answer["ranks"]) for row in answer["ranks"][:RANKS] if row["total"]),
        max(0, len(answer["ranks"]) - RANKS),
        tuple(Event(one["at"], str(one["what"]), str(one["message"])) for one in answer["timeline"]),
        tuple(answer["missing"]),
    )


def who(culprits: Sequence[Mapping[str, Any]]) -> str:
    """``rank 1 on node-3, link a->b``; "" is the job as a whole."""
    names = (
        f"{one['kind']} {one['name']}" + (f" on {one['node']}" if one.get("node") else "")
        for one in culprits
        if one["kind"] != "job"
    )
    return ", ".join(names)


def _mark(answer: Mapping[str, Any]) -> float | None:
    change, steps = answer["change"], answer["steps"]
    if change is None or len(steps) < 2:
        return None
    return round(WIDTH * sum(float(number) < float(change["step"]) for number, _ in steps) / (len(steps) - 1), 1)


def _cause(one: Mapping[str, Any]) -> Cause:
    return Cause(
        str(one["cause"]),
        str(one["name"]),
        f"{float(one['score']):.2f}",
        who(one["culprits"]),
        tuple(one["for"]),
        tuple(one["against"]),
        str(one["what_it_is"]),
        tuple(one["do"]),
    )


def _rank(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> RankRow:
    """Its step as a bar; bars of all ranks are of one scale."""
    longest = max(float(each["total"] or 0.0) for each in rows) or 1.0
    spent = {**row, "transfer": None if row["comm"] is None else max(0.0, row["comm"] - (row["wait"] or 0.0))}
    shares = [
        (part, float(spent[phase] or 0.0) / longest, f"{words}: {float(spent[phase] or 0.0):.1f} ms")
        for phase, words, part in PHASES
    ]
    no_core = "" if row["run_delay"] is None else f"{float(row['run_delay']):.0%}"
    return RankRow(int(row["rank"]), str(row["node"]), f"{float(row['total']):.1f} ms", slices(shares), no_core)
