"""The last half hour of each version's traffic, as it is drawn: a point every five seconds, in memory, and never more than that.

The rows know nothing of it. A server that starts anew begins with an empty one.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isnan, nan

from penstock.serving.state import Counts

Key = tuple[str, str, int]  # project, service, version
EVERY_S = 5.0
POINTS = 360  # of one version
VERSIONS = 500  # in all; one more and the one that was silent for longest is forgotten
FIELDS = ("at", "seconds", "requests", "errors", "p50", "p95", "p99", "active", "ready")
NOTHING = Counts()


@dataclass(slots=True)
class Line:
    """Of one version: a column for each of ``FIELDS``, latencies in seconds, NaN where nothing was asked."""

    columns: tuple[array[float], ...] = field(default_factory=lambda: tuple(array("d") for _ in FIELDS))

    def add(self, point: Iterable[float]) -> None:
        for column, value in zip(self.columns, point, strict=True):
            column.append(value)
            if len(column) > POINTS:
                del column[0]

    def since(self, moment: float) -> dict[str, list[float | None]]:
        first = next((n for n, at in enumerate(self.columns[0]) if at >= moment), len(self.columns[0]))
        return {
            name: [None if isnan(value) else value for value in column[first:]]
            for name, column in zip(FIELDS, self.columns, strict=True)
        }

    @property
    def newest(self) -> float:
        return self.columns[0][-1] if self.columns[0] else 0.0


@dataclass(frozen=True, slots=True)
class Recent:
    """What a service was asked in ``seconds``; latencies are the newest point's."""

    seconds: float = 0.0
    requests: float = 0.0
    errors: float = 0.0
    p95: float | None = None
    active: float = 0.0


@dataclass(slots=True)
class Past:
    """``take`` is called as often as the gateway is asked; a point is made when it is time for one."""

    _lines: dict[Key, Line] = field(default_factory=dict)
    _ready: dict[Key, int] = field(default_factory=dict)
    _last: tuple[float, Mapping[Key, Counts]] | None = None

    def replicas(self, project: str, name: str, ready: Mapping[int, int]) -> None:
        """Of a service, by version, as its last look saw them."""
        for key in [key for key in self._ready if key[:2] == (project, name)]:
            del self._ready[key]
        self._ready |= {(project, name, version): count for version, count in ready.items()}

    def take(self, now: float, counts: Mapping[Key, Counts]) -> None:
        if self._last is None or now < self._last[0]:
            self._last = (now, counts)
            return
        at, before = self._last
        if now - at < EVERY_S * 0.9:
            return
        self._last = (now, counts)
        for key in counts.keys() | self._ready.keys():
            found = counts.get(key, NOTHING)
            new = found.since(before.get(key, NOTHING))
            quantiles = (new.latency.quantile(q) for q in (0.5, 0.95, 0.99))
            told = (nan if value is None else value for value in quantiles)
            point = (now, now - at, new.requests, new.errors, *told, found.active, float(self._ready.get(key, 0)))
            self._lines.setdefault(key, Line()).add(point)
        self._forget(now)

    def _forget(self, now: float) -> None:
        for key in [key for key, line in self._lines.items() if line.newest < now - POINTS * EVERY_S]:
            del self._lines[key]
        while len(self._lines) > VERSIONS:
            del self._lines[min(self._lines, key=lambda key: self._lines[key].newest)]

    def drop(self, project: str, name: str) -> None:
        """The service is gone; one of its name begins anew."""
        for kept in (self._lines, self._ready):
            for key in [key for key in kept if key[:2] == (project, name)]:
                del kept[key]

    def of(self, project: str, name: str, since: float = 0.0) -> dict[int, dict[str, list[float | None]]]:
        """By version, those that have a point since then."""
        mine = {key[2]: line.since(since) for key, line in self._lines.items() if key[:2] == (project, name)}
        return {version: mine[version] for version in sorted(mine) if mine[version]["at"]}

    def recent(self, project: str, name: str, since: float) -> Recent | None:
        """None where nothing was counted since then."""
        lines = list(self.of(project, name, since).values())
        if not lines:
            return None
        newest = max(value for line in lines for value in line["at"] if value is not None)
        seconds = max(sum(filter(None, line["seconds"])) for line in lines)
        asked = [line for line in lines if line["at"][-1] == newest]
        slow = [value for line in asked if (value := line["p95"][-1]) is not None]
        return Recent(
            seconds,
            sum(sum(filter(None, line["requests"])) for line in lines),
            sum(sum(filter(None, line["errors"])) for line in lines),
            max(slow) if slow else None,
            sum(line["active"][-1] or 0.0 for line in asked),
        )

    def extent(self, project: str, name: str) -> tuple[float, float, float] | None:
        """From when to when it was counted, and how many requests; None: not yet."""
        lines = list(self.of(project, name).values())
        if not lines:
            return None
        begun = min((line["at"][0] or 0.0) - (line["seconds"][0] or 0.0) for line in lines)
        ended = max(line["at"][-1] or 0.0 for line in lines)
        return begun, ended, sum(sum(filter(None, line["requests"])) for line in lines)
