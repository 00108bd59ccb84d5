"""What a rollout's planner remembers from look to look, as plain JSON in its row: whoever takes over goes on from there. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from penstock.serving.analysis import NO_BET, Bet, Memory
from penstock.serving.state import Agreement, Counts, Histogram

FORMAT = 1
POINTS = 60  # of the history that is drawn; a longer rollout keeps every second one, and so on


@dataclass(frozen=True, slots=True)
class Point:
    """What both versions did between two looks; None: nothing was asked of it. ``errors``: the share that
    failed or was refused. Latencies are P95 in seconds.
    """

    at: float
    weight: int
    requests: float
    errors: float | None = None
    stable_errors: float | None = None
    p95: float | None = None
    stable_p95: float | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """``weight``, ``mirror``: as they were told last. ``applied``: the step's replicas are ready and it counts. ``ready_at``: since
    when all of a blue-green switch's are. ``every``: looks that one point stands for.
    """

    analysis: Memory
    applied: bool = False
    weight: int = 0
    mirror: int = 0
    ready_at: float | None = None
    looks: int = 0
    every: int = 1
    points: tuple[Point, ...] = field(default=())

    def drawn(self, point: Point) -> Kept:
        """With one look more, in which something was asked or a second went by."""
        asked = point.requests or point.stable_errors is not None
        if self.points and not asked and point.at < self.points[-1].at + 1.0:
            return self
        looks = self.looks + 1
        if looks % self.every:
            return replace(self, looks=looks)
        points = (*self.points, point)
        if len(points) <= POINTS:
            return replace(self, looks=looks, points=points)
        return replace(self, looks=looks, every=self.every * 2, points=points[1::2])


def to_json(kept: Kept) -> dict[str, object]:
    body = asdict(kept)
    body["points"] = [[getattr(point, name) for name in Point.__slots__] for point in kept.points]
    return {"format": FORMAT, **body}


def from_json(body: Mapping[str, Any]) -> Kept:
    """Raises ValueError for what it did not write."""
    if body.get("format") != FORMAT:
        raise ValueError(f"a rollout's memory of format {body.get('format')!r} is not known")
    rest = {name: value for name, value in body.items() if name not in ("format", "analysis", "points")}
    return Kept(_analysis(body["analysis"]), **rest, points=tuple(Point(*point) for point in body["points"]))


def points(body: Mapping[str, Any]) -> list[dict[str, object]]:
    """What is drawn of a memory, with names; nothing of one that is empty."""
    return [dict(zip(Point.__slots__, point, strict=True)) for point in body.get("points", ())]


def _analysis(body: Mapping[str, Any]) -> Memory:
    return Memory(
        at=body["at"],
        candidate=_counts(body["candidate"]),
        stable=_counts(body["stable"]),
        agreement=Agreement(**{**body["agreement"], "examples": ()}),
        typical=_counts(body["typical"]),
        step=(_counts(body["step"][0]), _counts(body["step"][1])),
        open=(_counts(body["open"][0]), _counts(body["open"][1])),
        compared=(body["compared"][0], body["compared"][1]),
        readings=(body["readings"][0], body["readings"][1]),
        metric=body["metric"],
        errors=_bet(body["errors"]),
        latency=_bet(body["latency"]),
        median=_bet(body.get("median") or asdict(NO_BET)),  # a rollout that an older Penstock began has none
        answers=_bet(body["answers"]),
        outside=_bet(body["outside"]),
    )


def _bet(body: Mapping[str, Any]) -> Bet:
    return Bet(tuple(body["capital"]), body["blocks"])


def _counts(body: Mapping[str, Any]) -> Counts:
    latency = body["latency"]
    return Counts(**{**body, "latency": Histogram(tuple(latency["bounds"]), tuple(latency["counts"]))})
