"""The service curve: what one replica does at each concurrency, and so how much of it an objective allows.

It comes from measured batches (``fit``), from points measured at fixed concurrencies, or, when nobody measured anything,
from the gateway's counters while the service works (``learned``). Beyond what was measured nothing is promised: no more
throughput, and times that grow with the concurrency.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from penstock.serving.spec import Objective

UNKNOWN = 2.0  # requests at once in one replica, as long as nothing at all is known of it
SLOWER = 3.0  # without an objective an answer may take so many times what it takes a replica that is alone with it
MOST_POINTS = 64
_SHARE = 0.1  # of a new look, in what was learned before
_BUSY = 0.5  # below so many requests in a replica its throughput says nothing about it


@dataclass(frozen=True, slots=True)
class Point:
    """At ``concurrency`` requests in a replica: answers a second, and seconds that 95 of 100 requests stay below."""

    concurrency: float
    throughput: float
    p95: float | None = None
    ttft: float | None = None
    tpot: float | None = None

    def holds(self, objective: Objective) -> bool:
        wanted = ((self.p95, objective.p95), (self.ttft, objective.ttft), (self.tpot, objective.tpot))
        return all(limit is None or took is None or took <= limit for took, limit in wanted)

    def times(self, factor: float) -> Point:
        """The same throughput at ``factor`` times the concurrency: all wait longer."""
        slower = (None if one is None else one * factor for one in (self.p95, self.ttft, self.tpot))
        return Point(self.concurrency * factor, self.throughput, *slower)


@dataclass(frozen=True, slots=True)
class Curve:
    """Points by concurrency, ascending; ``cold_start``: seconds from asking for a replica to its first answer."""

    points: tuple[Point, ...] = ()
    cold_start: float = 30.0
    source: Literal["measured", "learned", "assumed"] = "assumed"

    def at(self, concurrency: float) -> Point:
        """Linear between two points. Below the first: a replica with less to do does proportionally less."""
        if not self.points:
            return Point(concurrency, concurrency)
        first, last = self.points[0], self.points[-1]
        if concurrency <= first.concurrency:
            return replace(
                first, concurrency=concurrency, throughput=first.throughput * concurrency / first.concurrency
            )
        if concurrency >= last.concurrency:
            return last.times(concurrency / last.concurrency)
        high = next(i for i, point in enumerate(self.points) if point.concurrency >= concurrency)
        return _between(self.points[high - 1], self.points[high], concurrency)

    def allows(self, objective: Objective) -> Point | None:
        """The point of the highest concurrency at which the objective holds; None where it holds at none that was measured.

        Without an objective: at which answers take at most ``SLOWER`` times what the first point's take.
        """
        if not self.points:
            return None
        if objective.p95 is None and objective.ttft is None and objective.tpot is None:
            if (alone := self.points[0].p95) is None:
                return max(self.points, key=lambda point: (point.throughput, -point.concurrency))
            objective = Objective(p95=alone * SLOWER)
        good = 0
        while good < len(self.points) and self.points[good].holds(objective):
            good += 1
        if good == 0:
            return None
        low = self.points[good - 1]
        high = self.points[good] if good < len(self.points) else low.times(4.0)
        return _last_that_holds(low, high, objective)

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "cold_start": self.cold_start,
            "points": [
                {name: value for name in Point.__slots__ if (value := getattr(point, name)) is not None}
                for point in self.points
            ],
        }


def _between(low: Point, high: Point, concurrency: float) -> Point:
    part = (concurrency - low.concurrency) / (high.concurrency - low.concurrency)

    def mix(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a + (b - a) * part

    rate = low.throughput + (high.throughput - low.throughput) * part
    return Point(concurrency, rate, mix(low.p95, high.p95), mix(low.ttft, high.ttft), mix(low.tpot, high.tpot))


def _last_that_holds(low: Point, high: Point, objective: Objective) -> Point:
    """Between one that holds and one that may not, by halving."""
    if high.holds(objective):
        return high
    good, bad = low.concurrency, high.concurrency
    for _ in range(30):
        middle = (good + bad) / 2
        if _between(low, high, middle).holds(objective):
            good = middle
        else:
            bad = middle
    return low if good == low.concurrency else _between(low, high, good)


def curve_of(body: Mapping[str, Any]) -> Curve:
    """What ``Curve.to_dict`` wrote, or a person. Every fault is a ValueError that says where it is."""
    points = []
    rows = body.get("points")
    if not isinstance(rows, list) or not rows or len(rows) > MOST_POINTS:
        raise ValueError(f"points: must be a list of 1 to {MOST_POINTS} points")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping) or not set(row) <= set(Point.__slots__):
            raise ValueError(f"points.{number}: holds {', '.join(Point.__slots__)} and nothing else")
        values = {name: _positive(value, f"points.{number}.{name}") for name, value in row.items()}
        if missing := {"concurrency", "throughput"} - set(values):
            raise ValueError(f"points.{number}: has no {' and no '.join(sorted(missing))}")
        points.append(Point(**values))
    if any(a.concurrency >= b.concurrency for a, b in pairwise(points)):
        raise ValueError("points: concurrency must rise from each to the next")
    source = body.get("source", "measured")
    if source not in ("measured", "learned", "assumed"):
        raise ValueError("source: is measured, learned or assumed")
    return Curve(tuple(points), _positive(body.get("cold_start", 30.0), "cold_start"), source)


def _positive(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{where}: must be a number above zero")
    return float(value)


def fit(batches: Mapping[int, Sequence[float]], cold_start: float = 30.0) -> Curve:
    """From seconds that batches of each size took. Larger batches take no less (neighbours that say so are averaged).

    A request that finds a batch being computed waits for it, on the mean half of it, then is computed itself: 95 of 100
    stay below 1.95 batches. One that is alone waits for nobody.
    """
    sizes = sorted(size for size, took in batches.items() if size > 0 and took)
    seconds = _rising([sorted(batches[size])[len(batches[size]) // 2] for size in sizes])
    points = tuple(
        Point(float(size), size / took, took if size == 1 else 1.95 * took)
        for size, took in zip(sizes, seconds, strict=True)
        if took > 0
    )
    return Curve(points, cold_start, "measured")


def learned(curve: Curve, looks: Iterable[Point]) -> Curve:
    """``curve`` after what was seen of replicas at work: requests at once, answers a second, and the P95 of late.

    What somebody measured stays as it is. A P95 is of the last minute, in which the load may have been another: one that does
    not go with the look's own numbers (a request among ``c`` others takes about ``c`` by the throughput) is replaced by twice
    that. Neither throughput nor times may fall as concurrency rises; where they do, neighbours are averaged.
    """
    if curve.source == "measured":
        return curve
    points = {_step(point.concurrency): point for point in curve.points}
    for look in looks:
        if look.concurrency < _BUSY or look.throughput <= 0:
            continue
        mean = look.concurrency / look.throughput
        fits = look.p95 is not None and 0.8 * mean <= look.p95 <= 4 * mean
        good = look if fits else replace(look, p95=2 * mean)
        step = _step(good.concurrency)
        known = points.get(step)
        points[step] = good if known is None else _blended(known, good)
    ordered = [points[step] for step in sorted(points)]
    columns = zip(
        _rising([point.throughput for point in ordered]),
        *(_rising([value or 0.0 for value in times]) for times in zip(*map(_times, ordered), strict=True)),
        strict=True,
    )
    told = (
        Point(point.concurrency, rate, *(took or None for took in times))
        for point, (rate, *times) in zip(ordered, columns, strict=True)
    )
    return Curve(tuple(told), curve.cold_start, "learned" if points else "assumed")


def _times(point: Point) -> tuple[float | None, float | None, float | None]:
    return point.p95, point.ttft, point.tpot


def _rising(values: Sequence[float]) -> list[float]:
    """The nearest that never falls: neighbours that do are averaged."""
    groups: list[tuple[float, int]] = []  # mean, how many
    for value in values:
        mean, count = value, 1
        while groups and groups[-1][0] > mean:
            before, many = groups.pop()
            mean, count = (before * many + mean * count) / (many + count), many + count
        groups.append((mean, count))
    return [mean for mean, count in groups for _ in range(count)]


def _step(concurrency: float) -> int:
    """Two points for each doubling."""
    return max(-2, min(MOST_POINTS - 3, round(2 * math.log2(max(concurrency, 1e-9)))))


def _blended(known: Point, look: Point) -> Point:
    def mix(a: float | None, b: float | None) -> float | None:
        return b if a is None else a if b is None else a + (b - a) * _SHARE

    return Point(
        known.concurrency + (look.concurrency - known.concurrency) * _SHARE,
        known.throughput + (look.throughput - known.throughput) * _SHARE,
        mix(known.p95, look.p95),
        mix(known.ttft, look.ttft),
        mix(known.tpot, look.tpot),
    )
