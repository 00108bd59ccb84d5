"""Bars: what is measured, against what limit, and how it is told.

A benchmark module offers ``measure() -> list[Bar]`` and can be run alone (``python -m benchmarks.startup``): it then
prints its own bars. ``python -m benchmarks.bars --part A`` runs all of a part's.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Bar:
    """One measured number. ``direction`` says on which side of ``limit`` (inclusive) it must lie.

    ``value`` None means that it could not be measured, which falls short; ``note`` says why, or gives the peer's
    figure and the conditions.
    """

    name: str
    value: float | None
    limit: float
    unit: str
    direction: Literal["at most", "at least"] = "at most"
    note: str = ""

    @property
    def ok(self) -> bool:
        if self.value is None or not math.isfinite(self.value):
            return False
        return self.value <= self.limit if self.direction == "at most" else self.value >= self.limit

    def line(self) -> str:
        """`name  value  limit  ok|falls short`, columns aligned."""
        sign = "<=" if self.direction == "at most" else ">="
        value = "not measured" if self.value is None else f"{self.value:.3g} {self.unit}"
        verdict = "ok" if self.ok else "falls short"
        return f"{self.name:<46} {value:>14}  {sign} {self.limit:g} {self.unit:<7} {verdict}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "limit": self.limit,
            "unit": self.unit,
            "direction": self.direction,
            "ok": self.ok,
            "note": self.note,
        }


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that ``share`` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float], unit: str = "") -> str:
    """`median (least - most, n)`, for notes."""
    return f"median {statistics.median(values):.3g}{unit} ({min(values):.3g}-{max(values):.3g}, n={len(values)})"


def say(text: str) -> None:
    """Progress for people, apart from the result on standard output."""
    print(text, file=sys.stderr, flush=True)


def show(bars: Iterable[Bar], *, as_json: bool = False) -> int:
    """Print the bars; 0 when all hold, else 1."""
    bars = list(bars)
    if as_json:
        print(json.dumps([bar.to_dict() for bar in bars], indent=2))
    else:
        for bar in bars:
            print(bar.line() + (f"   {bar.note}" if bar.note else ""))
    return 0 if all(bar.ok for bar in bars) else 1


def alone(measure: Callable[[], list[Bar]], description: str | None) -> int:
    """The command line of a benchmark that is run by itself."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="for machines")
    arguments = parser.parse_args()
    return show(measure(), as_json=arguments.json)
