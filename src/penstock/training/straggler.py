"""A rank that is slower than its peers, step after step. Pure.

Ranks that wait for one another finish their steps together, so the length of a step tells nothing of who is slow. What does is the
time that each rank spends on its own work, which the script reports as ``busy_s``. A rank is called a straggler when that was
more than ``SLOWER`` times its peers' median in nearly all of the last steps, and no longer one when that is so in fewer than half.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

METRIC = "busy_s"
STEPS = 30  # that must be known of every rank; the newest that are looked at
SLOWER = 1.2
SURE = 0.9  # part of the steps
OVER = 0.5


@dataclass(frozen=True, slots=True)
class Straggler:
    """``slower``: the median, over the steps, of its time to its peers'."""

    rank: int
    slower: float
    steps: int

    def words(self, node: str) -> str:
        times = f"{self.slower:.2f} times as long as its peers"
        return f"rank {self.rank} on {node} has worked {times} on each of its last steps ({self.steps} were looked at)"

    def data(self) -> dict[str, float | int | str]:
        return {"rank": self.rank, "slower": round(self.slower, 3), "steps": self.steps, "by": METRIC}


def times(points: Iterable[Mapping[str, Any]], born: float) -> dict[int, dict[int, float]]:
    """``busy_s`` by step and rank, of reports since ``born``."""
    found: dict[int, dict[int, float]] = {}
    for point in points:
        value = (point.get("metrics") or {}).get(METRIC)
        if value is not None and value >= 0 and point["step"] is not None and point["at"] >= born:
            found.setdefault(point["step"], {})[point["rank"]] = float(value)
    return found


def find(busy: Mapping[int, Mapping[int, float]], world: int, known: Collection[int] = ()) -> tuple[Straggler, ...]:
    """Who straggles now; ``known``: who did, and does until it is clearly over."""
    whole = [busy[step] for step in sorted(busy) if len(busy[step]) == world][-STEPS:]
    if world < 2 or len(whole) < STEPS:
        return ()
    found = []
    for rank in range(world):
        ratios = _ratios(whole, rank)
        part = sum(ratio >= SLOWER for ratio in ratios) / len(whole)
        if part >= (OVER if rank in known else SURE):
            found.append(Straggler(rank, statistics.median(ratios), len(whole)))
    return tuple(found) if len(found) * 2 <= world else ()  # half of the ranks are no exception


def _ratios(whole: Sequence[Mapping[int, float]], rank: int) -> list[float]:
    """Of each step: this rank's time to the median of the others'."""
    ratios = []
    for step in whole:
        others = statistics.median(value for other, value in step.items() if other != rank)
        ratios.append(step[rank] / others if others > 0 else 1.0 if step[rank] == 0 else float("inf"))
    return ratios
