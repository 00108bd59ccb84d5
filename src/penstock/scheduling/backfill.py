"""What may start though a workload before it cannot, without delaying what was promised.

EASY (Lifka, JSSPP'95): the head alone is promised a start: the earliest time at which, by the limits of what runs, its
places are free. Conservative (Mu'alem and Feitelson, TPDS'01): every blocked workload within the depth is promised one.
Others start only where they leave each promise its room for all the time that they may run. A promise names nodes, is
kept from cycle to cycle (to plan anew from nothing could move it later), and is replaced only by an earlier one, or
when it fell due in vain, its node was lost, or somebody of higher order took its place. It also books its quota, so that
who overtakes does not use that up. A workload that lacks quota is promised nothing and is in nobody's way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from heapq import merge
from typing import TYPE_CHECKING

from penstock.scheduling.quota import Short
from penstock.scheduling.state import Admit, Promise
from penstock.scheduling.timeline import Closure, Window, end_of

OVERDUE = "it fell due, and the room was not there"

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler
    from penstock.scheduling.lines import Entry


def run(view: Scheduler, now: float, fresh: Iterator[Entry] | None, admitted: list[Admit]) -> bool:
    """Behind the blocked head; ``fresh``: nothing has changed but that these arrived. True: the head started after all."""
    head = view.blocked
    assert head is not None
    if view.policy.backfill == "replan":
        if now < view.replan_at:
            view.owed = True
            expire(view, now)
            return False
        view.owed, view.replan_at, fresh = False, now + view.policy.replan_s, None
        for id_ in list(view.windows):
            view.timeline.cancel(id_)
    conservative = view.policy.backfill != "easy"
    for id_ in [] if conservative else [id_ for id_ in view.windows if id_ != head.w.id]:
        view.timeline.cancel(id_)
    step = Step(view, now, admitted)
    try:
        if fresh is None and not step.is_kept(head) and step.promise(head):
            return True
        for entry in _behind(view, head) if fresh is None else _near(view, fresh):
            if entry.w.id in view.awaiting:
                continue  # others leave for it: it starts where they were
            if step.is_kept(entry) or step.fill(entry):
                continue
            if conservative and not step.lacks_quota(entry):
                step.promise(entry)
        if fresh is None:
            step.tidy()
    finally:
        step.unbook()
    return False


class Step:
    """One pass over candidates: who was tried in vain speaks for those like it."""

    def __init__(self, view: Scheduler, now: float, admitted: list[Admit]) -> None:
        self.view, self.now, self.admitted = view, now, admitted
        self._too_long: dict[tuple[int, str], float] = {}  # by kind and queue: the shortest limit that did not fit
        self._lacking: set[tuple[int, str, bool]] = set()  # by kind, queue, and whether promises' quota was booked
        self._booked: dict[str, Entry] = {}
        self._flavors: dict[str, str] = {}
        self._first = math.inf  # when the first promise begins
        for id_ in view.windows:
            entry = view.lines.entries.get(id_)
            if entry is not None:
                self.book(entry)

    def book(self, entry: Entry) -> None:
        """The quota of what was promised to it."""
        w = entry.w
        window = self.view.windows.get(w.id)
        if window is None or w.id in self._booked or not self.view.quotas.limited(w.queue):
            return
        self._first = min(self._first, window.promise.start)
        flavor = self.view.flavor_of(window.promise.shares)
        self.view.quotas.take(w.queue, flavor, entry.asked)
        self._booked[w.id], self._flavors[w.id] = entry, flavor

    def _release(self, id_: str) -> Entry | None:
        entry = self._booked.pop(id_, None)
        if entry is not None:
            self.view.quotas.give(entry.w.queue, self._flavors[id_], entry.asked)
        return entry

    def unbook(self) -> None:
        for id_ in list(self._booked):
            self._release(id_)

    def is_kept(self, entry: Entry) -> bool:
        """What it was promised stands, and nothing ended early that might give it more."""
        window = self.view.windows.get(entry.w.id)
        return window is not None and window.promise.start > self.now and not self.view.freed_early

    def tidy(self) -> None:
        """What fell due for somebody who is now too far back in line to be looked at."""
        for id_ in expire(self.view, self.now):
            self._release(id_)

    def lacks_quota(self, entry: Entry) -> bool:
        """Then it is promised nothing. What it was promised stands until it is due: who overtook may use its quota till then."""
        w = entry.w
        own = self._release(w.id)
        found = self.view.refused(w)
        window = self.view.windows.get(w.id)
        if found is not None and window is not None and window.promise.start <= self.now:
            self.view.timeline.cancel(w.id, "its queue's quota was used up")
        elif own is not None:
            self.book(own)
        return found is not None

    def fill(self, entry: Entry) -> bool:
        """Start it, if no promise minds."""
        w, key = entry.w, (entry.kind, entry.w.queue)
        promised = w.id in self.view.windows
        if w.id not in self.view.lines.entries:
            return False
        limit = math.inf if w.limit_s is None else w.limit_s
        lacking = (*key, end_of(w, self.now) > self._first)
        if not promised and (lacking in self._lacking or limit >= self._too_long.get(key, math.nan)):
            return False
        found = self._admit(entry)
        if isinstance(found, Admit):
            self._started(found, backfilled=True)
            return True
        if found is Short.QUOTA:
            self._lacking.add(lacking)
        elif not promised:
            self._too_long[key] = limit if self._fits_at_all(entry) else -1.0
        return False

    def _started(self, found: Admit, *, backfilled: bool) -> None:
        self.view.lines.remove(found.id)
        self.admitted.append(replace(found, backfilled=backfilled))

    def promise(self, entry: Entry) -> bool:
        """Promise it a start. True: that is now, since the search for a place is not exhaustive and missed it."""
        self._release(entry.w.id)  # what it was promised before is no reason against another promise
        given = promise(self.view, entry, self.now)
        if given is not None and given.start <= self.now:
            found = self.view.admit(entry, self.now, outranked(self.view, entry))
            if isinstance(found, Admit):
                self._started(found, backfilled=False)
                return True
            self.view.timeline.cancel(entry.w.id)
        self.book(entry)
        for id_ in [id_ for id_ in self._booked if id_ not in self.view.windows]:
            self._release(id_)  # somebody of higher order took its place
        first = min((self.view.windows[id_].promise.start for id_ in self._booked), default=math.inf)
        if first != self._first:
            self._first = first
            self._lacking.clear()
        return False

    def _admit(self, entry: Entry) -> Admit | Short | None:
        """What ends before the first promise begins may use the quota that is booked for promises."""
        own = self._release(entry.w.id)
        if end_of(entry.w, self.now) > self._first:
            found = self.view.admit(entry, self.now, ())
            if own is not None and not isinstance(found, Admit):
                self.book(own)
            return found
        booked = list(self._booked.values())
        self.unbook()
        found = self.view.admit(entry, self.now, ())
        for other in booked if own is None or isinstance(found, Admit) else [*booked, own]:
            self.book(other)
        return found

    def _fits_at_all(self, entry: Entry) -> bool:
        """Whether a shorter one of its kind might start: then the kind is not given up."""
        if not (self.view.windows or self.view.reservations.known):
            return False
        return self.view.pool.find(entry.w, within=self.view.room_within(entry.w, self.now, promises=False)) is not None


def expire(view: Scheduler, now: float) -> list[str]:
    """Take back what fell due in vain."""
    due = [id_ for id_, window in view.windows.items() if window.promise.start <= now]
    for id_ in due:
        view.timeline.cancel(id_, OVERDUE)
    return due


def _behind(view: Scheduler, head: Entry) -> Iterator[Entry]:
    """The first in order behind the head, as many as the depth says: a copy, since starting one takes it out."""
    found: list[Entry] = []
    view.frontier = None
    for entry in _in_order(view):
        if len(found) >= view.policy.depth:
            if view.policy.order != "fairshare":
                view.frontier = found[-1].key if found else ()
            break
        if entry is not head:
            found.append(entry)
    return iter(found)


def _in_order(view: Scheduler) -> Iterator[Entry]:
    """Those of lines that do not wait for quota: by key, or under fair share in turn, the least served line first."""
    lines = [line for line in view.lines.lines.values() if line.entries and id(line) not in view.out_of_quota]
    if view.policy.order != "fairshare":
        return iter(lines[0].entries) if len(lines) == 1 else merge(*(line.entries for line in lines), key=_key)
    lines.sort(key=lambda line: (view.fair.rank(line.path, view.now), line.head.key))
    return in_turn([iter(line.entries) for line in lines])


def in_turn(rows: list[Iterator[Entry]]) -> Iterator[Entry]:
    while rows:
        left: list[Iterator[Entry]] = []
        for row in rows:
            entry = next(row, None)
            if entry is not None:
                yield entry
                left.append(row)
        rows = left


def _key(entry: Entry) -> tuple[float, ...]:
    return entry.key


def _near(view: Scheduler, fresh: Iterator[Entry]) -> list[Entry]:
    """Of those that just arrived, the ones that a look at the whole line would reach."""
    return [
        entry
        for entry in fresh
        if entry.w.id in view.lines.entries
        and id(entry.line) not in view.out_of_quota
        and (view.frontier is None or entry.key <= view.frontier)
    ]


def outranked(view: Scheduler, entry: Entry) -> list[str]:
    """Whose promises do not bind it: those of lower order, unless it has one itself, beside which they were made.

    Shares and ages come and go, so where they make the order only a priority ranks.
    """
    if not view.windows or entry.w.id in view.windows:
        return []
    entries, by_key = view.lines.entries, view.policy.order in ("fifo", "sjf")
    found = []
    for id_ in view.windows:
        other = entries.get(id_)
        if other is None or other is entry:
            continue
        if other.key > entry.key if by_key else other.w.priority < entry.w.priority:
            found.append(id_)
    return found


def settle(view: Scheduler, ids: list[str], by: str, now: float) -> None:
    """Take back the promises among ``ids`` whose room somebody of higher order has taken."""
    for id_ in ids:
        if id_ in view.windows and not view.timeline.stands(id_, now):
            view.timeline.cancel(id_, f"{by}, of higher order, took its place")


def promise(view: Scheduler, entry: Entry, now: float) -> Promise | None:
    """Find it a start: the first ever, or one instead of what fell due, or an earlier one than it was promised."""
    w, timeline = entry.w, view.timeline
    kept = view.windows.get(w.id)
    ignored = outranked(view, entry)
    found = timeline.earliest(w, places(view, entry), now, closures(view, entry, now), ignored)
    overdue = kept is not None and kept.promise.start <= now
    if found is None:
        if overdue:
            timeline.cancel(w.id, OVERDUE)
        return None
    if kept is None or overdue or found.start < kept.promise.start:
        if overdue:
            timeline.notes[w.id] = OVERDUE
        timeline.book(Window(found, end_of(w, found.start), view.pool.node_mask(s.node for s in found.shares)))
        settle(view, ignored, w.name, now)
    return view.windows[w.id].promise


def places(view: Scheduler, entry: Entry, *, quota: bool = True) -> list[int]:
    """Sets of nodes of which any one may hold all of it: by flavor that has quota now, and by domain where its topology
    requires one.
    """
    w, pool = entry.w, view.pool
    mask = pool.candidates(w)
    for id_, awaiting in view.awaiting.items():
        if id_ != w.id:
            mask &= ~awaiting.mask
    queue = view.setup.queues.get(w.queue)
    flavors = w.flavors
    if queue is not None and view.quotas.limited(w.queue):
        flavors = view.flavors_for(queue, w)
        if quota:
            flavors = tuple(f for f in flavors if view.quotas.fits(w.queue, f, entry.asked))
    elif not flavors:
        return _domains(view, entry, mask)
    return [domain for flavor in flavors for domain in _domains(view, entry, mask & pool.flavor_mask(flavor))]


def _domains(view: Scheduler, entry: Entry, mask: int) -> list[int]:
    topology = entry.w.topology
    if topology is None or not topology.required:
        return [mask] if mask else []
    return [domain for domain in next(iter(view.pool.domains.climb(topology, mask))) if domain]


def closures(view: Scheduler, entry: Entry, now: float) -> list[Closure]:
    return view.reservations.closures(entry.w, now) if view.reservations.known else []
