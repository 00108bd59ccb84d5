"""What each rank's steps were spent on, as few numbers as a chart needs. Pure: from the evidence's ranks to JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.diagnosis.state import Rank, Step

PHASES = ("data", "compute", "comm", "optimizer", "checkpoint", "gc", "other")  # from the bottom of the chart
RANKS = 64  # with figures of their own
CHARTS = 8  # ranks with a chart
POINTS = 120  # of each
NEWEST = 30  # steps that the figures are of


def picture(ranks: Mapping[int, Rank], nodes: Sequence[str], procs: int) -> dict[str, Any]:
    """``ranks``: figures of the newest steps, seconds. ``charts``: means of neighbouring steps over all that is kept."""
    told = [rank for _, rank in sorted(ranks.items()) if rank.steps]
    shown = sorted(sorted(told, key=_own, reverse=True)[:CHARTS], key=lambda rank: rank.rank)
    return {
        "watched": bool(told),
        "phases": list(PHASES),
        "ranks": [_figures(rank, _node(rank.rank, nodes, procs)) for rank in told[:RANKS]],
        "more": max(len(told) - RANKS, 0),
        "charts": [{"rank": rank.rank, **_chart(rank.steps)} for rank in shown],
    }


def other(step: Step) -> float:
    """The script's own code between the phases."""
    return max(step.total - sum(getattr(step, name) or 0.0 for name in PHASES[:-1]), 0.0)


def _own(rank: Rank) -> float:
    """Who takes longest without waiting for others is shown first where not all can be."""
    newest = rank.steps[-NEWEST:]
    return statistics.fmean(step.total - (step.comm or 0.0) for step in newest)


def _node(rank: int, nodes: Sequence[str], procs: int) -> str:
    return nodes[rank // procs] if rank // procs < len(nodes) else ""


def _figures(rank: Rank, node: str) -> dict[str, Any]:
    newest = rank.steps[-NEWEST:]
    means = {name: statistics.fmean(_phase(step, name) for step in newest) for name in PHASES}
    return {
        "rank": rank.rank,
        "node": node,
        "step": newest[-1].step,
        "steps": len(newest),
        "total_s": round(statistics.fmean(step.total for step in newest), 6),
        "seconds": {name: round(value, 6) for name, value in means.items()},
    }


def _phase(step: Step, name: str) -> float:
    return other(step) if name == "other" else getattr(step, name) or 0.0


def _chart(steps: Sequence[Step]) -> dict[str, Any]:
    count = min(len(steps), POINTS)
    pieces = [steps[n * len(steps) // count : (n + 1) * len(steps) // count] for n in range(count)]
    return {
        "step": [piece[-1].step for piece in pieces],
        "total_s": [round(statistics.fmean(step.total for step in piece), 6) for piece in pieces],
        "seconds": {
            name: [round(statistics.fmean(_phase(step, name) for step in piece), 6) for piece in pieces]
            for name in PHASES
        },
    }
