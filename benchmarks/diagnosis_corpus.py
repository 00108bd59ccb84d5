"""The corpus: one line of JSON for each trial, with what was injected, all of the evidence, and what was made of it.

Steps are kept as columns of microseconds, as ``penstock.watch`` tells them. A trial can be diagnosed again from its line.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from penstock.diagnosis.state import Counters, Evidence, Happened, LogLine, NodeEvidence, Rank, Series, Step
from penstock.telemetry.spec import Finding

_MICRO = frozenset({"total", "data", "compute", "comm", "optimizer", "checkpoint", "gc"})


@dataclass(frozen=True, slots=True)
class Truth:
    """``causes``: what was injected, in the order of its beginning; none: a healthy run. ``culprits``: the ranks of each
    ("" where it is of the whole job).
    """

    causes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()
    culprits: tuple[tuple[int, ...], ...] = ()
    at_step: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    number: int
    seed: int
    world: int
    truth: Truth
    evidence: Evidence
    outside: float  # of the processors' time, what others than the ranks and the injector took meanwhile
    facts: dict[str, Any] = field(default_factory=dict)


def dump(record: Record) -> str:
    found = asdict(record)
    for rank in found["evidence"]["ranks"]:
        rank["steps"] = _columns(rank["steps"])
    return json.dumps(found, separators=(",", ":"))


def _columns(steps: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {f.name: [_packed(f.name, step[f.name]) for step in steps] for f in fields(Step)}


def _packed(name: str, value: Any) -> Any:
    if value is None:
        return None
    return round(value * 1e6) if name in _MICRO else round(value, 3) if name == "at" else value


def load(line: str) -> Record:
    found = json.loads(line)
    told = found["evidence"]
    told["ranks"] = tuple(_rank(each) for each in told["ranks"])
    told["nodes"] = tuple(_node(each) for each in told["nodes"])
    told["happened"] = tuple(Happened(**each) for each in told["happened"])
    told["missing"] = tuple(told["missing"])
    truth = found["truth"]
    culprits = tuple(tuple(ranks) for ranks in truth["culprits"])
    injected = {name: tuple(truth[name]) for name in ("causes", "faults", "strengths")}
    was = Truth(**injected, culprits=culprits, at_step=truth["at_step"])
    return Record(**{**found, "evidence": Evidence(**told), "truth": was})


def _rank(told: dict[str, Any]) -> Rank:
    told["steps"] = tuple(_steps(told["steps"]))
    told["counters"] = tuple(Counters(each["at"], each["values"]) for each in told["counters"])
    told["lines"] = tuple(LogLine(**each) for each in told["lines"])
    told["stack"] = tuple(told["stack"])
    return Rank(**told)


def _steps(columns: dict[str, list[Any]]) -> Iterator[Step]:
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(columns, values, strict=True))
        yield Step(**{n: v / 1e6 if n in _MICRO and v is not None else v for n, v in row.items()})


def _node(told: dict[str, Any]) -> NodeEvidence:
    told["series"] = tuple(
        Series(each["name"], each["device"], tuple(map(tuple, each["samples"]))) for each in told["series"]
    )
    told["findings"] = tuple(Finding(**each) for each in told["findings"])
    told["kernel"] = tuple(LogLine(**each) for each in told["kernel"])
    return NodeEvidence(**told)


def append(path: Path, record: Record) -> None:
    """A member of its own in the same file: what was written before stays whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "at", encoding="utf-8") as file:
        file.write(dump(record) + "\n")


def read(path: Path) -> Iterator[Record]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(load, file)
