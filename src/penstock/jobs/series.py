"""Reports of ranks as charts need them: a bounded number of points for each metric. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from penstock.base.quantities import format_time

MAX_POINTS = 500
_WINDOW = 20  # reports over which the rate is measured


def summarize(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``points``: {"at" (epoch s), "rank", "step", "total_steps", "metrics"} in order of time.

    Series are rank 0's (or the lowest rank that reports), each point [step, epoch s, value]; after a restart the steps
    done twice appear once, as the newer attempt made them. Events ("event" in them) are no reports of progress.
    """
    points = [point for point in points if "event" not in point]
    ranks: dict[str, dict[str, Any]] = {}
    for point in points:
        ranks[str(point.get("rank", 0))] = latest(point)
    if not points:
        return {"series": {}, "latest": None, "ranks": {}}
    first = min(ranks, key=lambda r: (not r.isdigit(), int(r) if r.isdigit() else 0))
    mine = [p for p in points if str(p.get("rank", 0)) == first]
    series: dict[str, list[list[float]]] = {}
    for point in mine:
        for name, value in (point.get("metrics") or {}).items():
            if isinstance(value, int | float):
                series.setdefault(str(name), []).append([point.get("step") or 0, point["at"], value])
    newest = dict(latest(mine[-1]))
    newest |= pace(mine)
    return {"series": {n: decimate(rewind(s)) for n, s in series.items()}, "latest": newest, "ranks": ranks}


def latest(point: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "step": point.get("step"),
        "total_steps": point.get("total_steps"),
        "metrics": point.get("metrics") or {},
        "at": format_time(point["at"]),
    }


def pace(points: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Steps a second over the last reports, and the seconds left if the total is known."""
    recent = [p for p in list(points)[-_WINDOW:] if p.get("step") is not None]
    if len(recent) < 2:
        return {"rate": None, "eta_s": None}
    steps, span = recent[-1]["step"] - recent[0]["step"], recent[-1]["at"] - recent[0]["at"]
    if steps <= 0 or span <= 0:
        return {"rate": None, "eta_s": None}
    rate = steps / span
    total = recent[-1].get("total_steps")
    return {"rate": rate, "eta_s": max(total - recent[-1]["step"], 0) / rate if total else None}


def rewind(points: list[list[float]]) -> list[list[float]]:
    """Drop what was done again: points whose step a later point goes back to or before."""
    kept: list[list[float]] = []
    for point in points:
        while kept and kept[-1][0] >= point[0]:
            kept.pop()
        kept.append(point)
    return kept


def decimate(points: list[list[float]], limit: int = MAX_POINTS) -> list[list[float]]:
    """At the most ``limit`` points, the first and the last among them."""
    if len(points) <= limit:
        return points
    stride = (len(points) - 1) / (limit - 1)
    return [points[round(i * stride)] for i in range(limit)]
