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
        self._masks: dict[frozenset[str], tuple[int, int]] = {}  # a node keeps its place in the pool for good

    def mask(self, one: Reservation) -> int:
        """Its nodes."""
        size = len(self._pool.nodes)
        found = self._masks.get(one.nodes)
        if found is None or found[0] != size:
            found = self._masks[one.nodes] = size, self._pool.node_mask(one.nodes)
        return found[1]

    def blocked(self, w: Workload, start: float) -> int:
        """Nodes on which ``w`` cannot run from ``start`` to its limit."""
        end = math.inf if w.limit_s is None else start + w.limit_s
        mask = 0
        for one in self.known.values():
            if one.start < end and start < one.end and one.keeps_out(w):
                mask |= self.mask(one)
        return mask

    def closures(self, w: Workload, now: float) -> list[tuple[float, float, int]]:
        """(from, until, nodes) of the windows still to come or under way that it may not overlap."""
        return [
            (one.start, one.end, self.mask(one)) for one in self.known.values() if one.end > now and one.keeps_out(w)
        ]

    def next_change(self, now: float) -> float | None:
        """When a window next begins or ends: then there is something to decide, though nothing else happens. What is
        over is forgotten.
        """
        for name in [name for name, one in self.known.items() if one.end <= now]:
            self._masks.pop(self.known.pop(name).nodes, None)
        return min((t for one in self.known.values() for t in (one.start, one.end) if t > now), default=None)

    def on(self, w: Workload, now: float, among: int = -1) -> list[Reservation]:
        """Those that keep ``w`` from nodes of ``among`` now, the soonest first, for words."""
        end = math.inf if w.limit_s is None else now + w.limit_s
        found = [
            one
            for one in self.known.values()
            if one.start < end and now < one.end and one.keeps_out(w) and self.mask(one) & among
        ]
        return sorted(found, key=lambda one: (one.start, one.name))
