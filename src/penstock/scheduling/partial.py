"""Gangs that take fewer groups than they would have (Kueue: partial admission), and that grow again when there is room.

A workload with a ``least`` waits for all its groups until ``shrink_at``; from then on the head of a line is admitted with as many
as have room now, if nobody can be evicted for all of them. One that holds fewer than its ``most`` is asked to leave, so that it
starts again with more, when three things hold: nobody waits; there has been room for more for its ``grow_after_s``, all of it
while it ran at its present size; and the time that it then saves is more than that again, which pays for the restart. So
each growth is preceded by as long a rest, and nobody flaps. The room is kept for it until it is back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from penstock.base.quantities import format_duration
from penstock.base.reasons import Reason
from penstock.scheduling.lines import Entry
from penstock.scheduling.quota import totals
from penstock.scheduling.state import Admit, Evict, Share, Workload

if TYPE_CHECKING:
    from collections.abc import Collection

    from penstock.scheduling.cycle import Scheduler
    from penstock.scheduling.holding import Holding


@dataclass(slots=True)
class Partial:
    """What a scheduler remembers of them."""

    shrink_at: dict[str, float] = field(default_factory=dict)  # of those in line that still wait for all
    small: set[str] = field(default_factory=set)  # who holds fewer than it would have
    room_since: dict[str, float] = field(default_factory=dict)
    grow_at: dict[str, float] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)  # nodes for those that leave in order to grow
    ends: dict[str, float] = field(default_factory=dict)  # when they expect to be done at their present size, if known

    def wake_at(self) -> float:
        return min((*self.shrink_at.values(), *self.grow_at.values()), default=math.inf)

    def waits(self, w: Workload) -> None:
        if w.least:
            self.shrink_at[w.id] = w.shrink_at

    def holds(self, w: Workload) -> None:
        self.shrink_at.pop(w.id, None)
        self.kept.pop(w.id, None)
        if w.parts[0].count < w.most:
            self.small.add(w.id)

    def gone(self, id_: str) -> None:
        self.small.discard(id_)
        for known in (self.room_since, self.grow_at, self.ends):
            known.pop(id_, None)


def of(w: Workload, count: int) -> Workload:
    """The same with so many groups; it still knows how many it would have."""
    part = w.parts[0]
    return w if part.count == count else replace(w, parts=(replace(part, count=count),))


def smallest(w: Workload) -> Workload:
    return of(w, w.least) if w.least else w


def due(view: Scheduler, now: float) -> bool:
    """Whether somebody need not wait for all its groups any more."""
    over = [id_ for id_, at in view.partial.shrink_at.items() if at <= now]
    for id_ in over:
        del view.partial.shrink_at[id_]
    return bool(over)


def admit(view: Scheduler, entry: Entry, now: float, ignored: Collection[str] | None) -> Admit | None:
    """With the most groups that have room and quota now, fewer than all."""
    w = entry.w
    if not w.least or now < w.shrink_at:
        return None
    low, high, best = w.least, w.parts[0].count - 1, None
    while low <= high:
        middle = (low + high) // 2
        fewer = of(w, middle)
        found = view.room(fewer, totals(fewer.parts), now, ignored)
        if isinstance(found, tuple):
            best, low = (fewer, *found), middle + 1
        else:
            high = middle - 1
    if best is None:
        return None
    fewer, shares, flavor = best
    return view.start(Entry(fewer, (), entry.kind, totals(fewer.parts), entry.line), shares, flavor, now)


def grow(view: Scheduler, now: float) -> tuple[Evict, ...]:
    """Who is to leave in order to come back larger: one at a time, and only while nobody waits."""
    known = view.partial
    known.kept = {id_: mask for id_, mask in known.kept.items() if id_ in view.held or id_ in view.lines.entries}
    if view.lines.entries or view.awaiting or any(view.held[id_].held.leaving for id_ in known.small):
        known.room_since.clear()
        known.grow_at.clear()
        return ()
    for id_ in sorted(known.small, key=lambda id_: view.held[id_].held.workload.seq):
        evict = _grow_one(view, view.held[id_], now)
        if evict is not None:
            return (evict,)
    return ()


def _grow_one(view: Scheduler, holding: Holding, now: float) -> Evict | None:
    known, held = view.partial, holding.held
    w = held.workload
    shares = _larger(view, holding, now)
    known.grow_at.pop(w.id, None)
    if shares is None:
        known.room_since.pop(w.id, None)
        return None
    at = max(known.room_since.setdefault(w.id, now), held.since) + w.grow_after_s
    if now < at:
        known.grow_at[w.id] = at
        return None
    count, larger = w.parts[0].count, len(shares)
    if not pays(count, larger, min(known.ends.get(w.id, math.inf), holding.end) - now, w.grow_after_s):
        return None
    view.leave(holding, now)
    known.kept[w.id] = view.pool.node_mask([share.node for share in shares])
    waited = format_duration(max(round(now - known.room_since[w.id]), 1))
    words = f"it has {count} of {w.most} nodes, and there has been room for {larger} for {waited}"
    return Evict(w.id, Reason.Resizing, words, w.id)


def pays(count: int, larger: int, left_s: float, price_s: float) -> bool:
    """Whether what is left to do is done so much sooner with more groups that a restart is worth it."""
    return left_s * (1 - count / larger) > price_s


def _larger(view: Scheduler, holding: Holding, now: float) -> tuple[Share, ...] | None:
    """Where it would be with as many groups as have room, if it gave back its own places first; None: with no more."""
    w = holding.held.workload
    low, high, best = w.parts[0].count + 1, w.most, None
    if holding.counted:
        view.quotas.give(w.queue, holding.flavor, holding.asked)
    with view.pool.what_if():
        view.pool.give(w.id)
        while low <= high:
            middle = (low + high) // 2
            more = of(replace(w, exclude=w.exclude - w.lost), middle)
            found = view.room(more, totals(more.parts), now, None)
            if isinstance(found, tuple):
                best, low = found[0], middle + 1
            else:
                high = middle - 1
    if holding.counted:
        view.quotas.take(w.queue, holding.flavor, holding.asked)
    return best
