"""Reservations and maintenance windows, as masks: where a workload may not be between two times."""

from __future__ import annotations

import math
from collections.abc import Iterable

from penstock.scheduling.pool import Pool
from penstock.scheduling.state import Reservation, Workload


class Reservations:
    """All of them. No workload overlaps one on its nodes unless it names it; nobody overlaps maintenance."""

    def __init__(self, pool: Pool, given: Iterable[Reservation] = ()) -> None:
        self._pool = pool
        self.known: dict[str, Reservation] = {one.name: one for one in given}

    def blocked(self, w: Workload, start: float) -> int:
        """Nodes on which ``w`` cannot run from ``start`` to its limit."""
        end = math.inf if w.limit_s is None else start + w.limit_s
        mask = 0
        for one in self.known.values():
            if one.start < end and start < one.end and (one.maintenance or one.name not in w.reservations):
                mask |= self._pool.node_mask(one.nodes)
        return mask

    def closures(self, w: Workload, now: float) -> list[tuple[float, float, int]]:
        """(from, until, nodes) of the windows still to come or under way that it may not overlap."""
        return [
            (one.start, one.end, self._pool.node_mask(one.nodes))
            for one in self.known.values()
            if one.end > now and (one.maintenance or one.name not in w.reservations)
        ]

    def next_change(self, now: float) -> float | None:
        """When a window next begins or ends: then there is something to decide, though nothing else happens."""
        return min((t for one in self.known.values() for t in (one.start, one.end) if t > now), default=None)

    def on(self, w: Workload, now: float) -> Reservation | None:
        """The soonest that keeps ``w`` from nodes now, for words."""
        end = math.inf if w.limit_s is None else now + w.limit_s
        against = (
            one
            for one in self.known.values()
            if one.start < end and now < one.end and (one.maintenance or one.name not in w.reservations)
        )
        return min(against, key=lambda one: one.start, default=None)
