"""Capacity along time: what is free now, plus what ends by its limit, less what is promised.

Per node, what is held only ever ends, so its room grows; promises and reservations alone take from it for a while. So a
node without those is described by one time per request, "has room from then on", kept sorted and corrected only where
something changed; a node with them by its stretches of time with enough room. Of a GPU that is shared only the whole is
counted, free when the last who shares it has ended, and on a node of several models a promise takes all of it: both err
on the side of the promise. Work without a limit is endless.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sortedcontainers import SortedList

from penstock.scheduling.pool import EPSILON, Placed, Pool, bits
from penstock.scheduling.state import Ask, Part, Promise, Share, Workload

OVERRUN_S = 1.0  # what should have ended by now is taken to end within this
ALL = 1 << 50  # more than any node has of anything
MOST_VIEWS = 256  # requests whose times are kept
Step = tuple[float, int, float, int]  # time, change of devices, CPUs, memory
Stretch = tuple[float, float]  # from, until
Closure = tuple[float, float, int]  # from, until, nodes
_NEVER = math.inf
_NOW = -math.inf


@dataclass(slots=True)
class Window:
    """A promise as it is booked, until its limit."""

    promise: Promise
    end: float
    mask: int


@dataclass(slots=True)
class View:
    """One request's times by node, and what of them is out of date."""

    ask: Ask
    since: dict[int, float] = field(default_factory=dict)
    order: SortedList = field(default_factory=SortedList)  # (from when on, node)
    stale: int = 0
    stretches: dict[int, list[Stretch]] = field(default_factory=dict)
    sorted_until: list[float] | None = None
    masks: list[int] = field(default_factory=list)  # nodes with room at least until sorted_until[k]


def need(ask: Ask) -> int:
    """Devices of its class (whole GPUs, or instances of its MIG profile) that one group takes."""
    return max(ask.gpus, 1) if ask.mig else ask.gpus or (1 if ask.gpu_milli else 0)


def end_of(w: Workload, start: float) -> float:
    return _NEVER if w.limit_s is None else start + w.limit_s


class Timeline:
    """Follows a pool: ``hold`` after each take, ``free`` after each give, ``touch`` for a node put or dropped."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.windows: dict[str, Window] = {}
        self.mask = 0  # nodes that are promised to somebody
        self.ends: dict[str, float] = {}
        self.notes: dict[str, str] = {}  # why a promise was taken back or made anew, by whose
        self._on: dict[int, dict[str, list[Placed]]] = {}
        self._where: dict[str, list[int]] = {}
        self._booked: dict[int, dict[str, tuple[float, float, Ask]]] = {}
        self._steps: dict[int, list[Step]] = {}
        self._views: dict[Ask, View] = {}
        self._pending = 0
        self.changes = 0
        self._mixed: dict[int, bool] = {}

    # -- what changes

    def hold(self, id_: str, end: float) -> None:
        self.free(id_)
        self.ends[id_] = end
        where = self._where[id_] = []
        for placed in self.pool.held.get(id_, ()):
            self._on.setdefault(placed.index, {}).setdefault(id_, []).append(placed)
            where.append(placed.index)
            self.touch(placed.index)

    def free(self, id_: str) -> None:
        if self.ends.pop(id_, None) is None:
            return
        for i in self._where.pop(id_):
            self._on[i].pop(id_, None)
            self.touch(i)

    def touch(self, i: int) -> None:
        self.changes += 1
        self._steps.pop(i, None)
        self._pending |= 1 << i

    def changed(self, i: int) -> None:
        """The node itself is another than before."""
        self._mixed.pop(i, None)
        self.touch(i)

    def book(self, window: Window) -> None:
        """A promise takes its room."""
        id_ = window.promise.id
        note = self.notes.get(id_)
        self.cancel(id_)
        if note is not None:
            self.notes[id_] = note
        self.windows[id_] = window
        for share in window.promise.shares:
            i = self.pool.index(share.node)
            self._booked.setdefault(i, {})[id_] = (window.promise.start, window.end, share.ask)
            self.touch(i)
        self.mask |= window.mask

    def cancel(self, id_: str, why: str = "") -> Window | None:
        """It is promised nothing any more. ``why`` is kept for those who are still waiting."""
        if why:
            self.notes[id_] = why
        else:
            self.notes.pop(id_, None)
        window = self.windows.pop(id_, None)
        if window is None:
            return None
        for i in bits(window.mask):
            booked = self._booked[i]
            del booked[id_]
            if not booked:
                self.mask &= ~(1 << i)
            self.touch(i)
        return window

    # -- one node along time

    def _is_mixed(self, i: int) -> bool:
        found = self._mixed.get(i)
        if found is None:
            node = self.pool.nodes[i]
            found = self._mixed[i] = node is not None and len({gpu.model for gpu in node.gpus}) > 1
        return found

    def _room(self, ask: Ask, i: int) -> tuple[int, float, int]:
        pool = self.pool
        if ask.mig or (ask.gpu_models and self._is_mixed(i)):
            devices = pool.devices(ask, i)
        else:
            devices = pool.free_bits[i].bit_count()
        return devices, pool.free_cpus[i], pool.free_memory[i]

    def steps(self, ask: Ask, i: int) -> list[Step]:
        """What is freed on the node, in order of time."""
        if ask.mig or (ask.gpu_models and self._is_mixed(i)):
            return self._work_out(ask, i)
        found = self._steps.get(i)
        if found is None:
            found = self._steps[i] = self._work_out(Ask(), i)
        return found

    def _work_out(self, ask: Ask, i: int) -> list[Step]:
        rows: list[Step] = []
        shared: dict[int, float] = {}
        counts = _counted(self.pool, ask, i)
        for id_, places in self._on.get(i, {}).items():
            end = self.ends[id_]
            for placed in places:
                if placed.shared >= 0:
                    shared[placed.shared] = max(end, shared.get(placed.shared, _NOW))
                if end != _NEVER:
                    rows.append((end, counts(placed), placed.share.ask.cpus, placed.share.ask.memory))
        if not ask.mig:
            allowed = self.pool.model_bits(ask, i)
            rows += [(end, 1, 0.0, 0) for at, end in shared.items() if end != _NEVER and allowed >> at & 1]
        rows.sort()
        return rows

    def since(self, ask: Ask, i: int) -> float:
        """From when on the node has room for one group, promises aside: -inf now, inf never."""
        pool = self.pool
        if pool.nodes[i] is None:
            return _NEVER
        if pool.fits(ask, i):
            return _NOW
        devices, cpus, memory = self._room(ask, i)
        want, want_cpus, want_memory = need(ask), ask.cpus - EPSILON, ask.memory
        for at, more, more_cpus, more_memory in self.steps(ask, i):
            devices, cpus, memory = devices + more, cpus + more_cpus, memory + more_memory
            if devices >= want and cpus >= want_cpus and memory >= want_memory:
                return at
        return _NEVER

    def stretches(
        self, ask: Ask, i: int, now: float, ignored: Collection[str] = (), closed: Sequence[Closure] = ()
    ) -> list[Stretch]:
        """When, from now on, the node has room for one group beside what is promised there."""
        node = self.pool.nodes[i]
        if node is None or not self.pool.fits_empty(ask, node):
            return []
        room = self._room(ask, i)
        events = [(at if at > now else now + OVERRUN_S, *rest) for at, *rest in self.steps(ask, i)]
        for id_, (start, end, other) in self._booked.get(i, {}).items():
            if id_ not in ignored and end > now:
                taken = self._taken(other, ask, i)
                events += [(max(start, now), -taken[0], -taken[1], -taken[2]), (end, *taken)]
        for start, end, mask in closed:
            if mask >> i & 1 and end > now:
                events += [(max(start, now), -ALL, -float(ALL), -ALL), (end, ALL, float(ALL), ALL)]
        events.sort(key=lambda event: event[0])
        return _with_room(room, events, ask, now)  # type: ignore[arg-type]  # rows of a Step

    def _taken(self, other: Ask, ask: Ask, i: int) -> tuple[int, float, int]:
        """What a promise of ``other`` takes of the class of devices that ``ask`` is about."""
        if self._is_mixed(i):
            return ALL, other.cpus, other.memory
        return need(other) if other.mig == ask.mig else 0, other.cpus, other.memory

    # -- many nodes

    def _view(self, ask: Ask) -> View:
        """The request's view, its out-of-date nodes marked."""
        if self._pending:
            for view in self._views.values():
                view.stale |= self._pending
                view.sorted_until = None
                for i in bits(self._pending):
                    view.stretches.pop(i, None)
            self._pending = 0
        found = self._views.get(ask)
        if found is None:
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            found = self._views[ask] = View(ask, stale=(1 << len(self.pool.nodes)) - 1)
        return found

    def _ordered(self, ask: Ask) -> View:
        """The view with its times by node in order."""
        view = self._view(ask)
        if view.stale:
            for i in bits(view.stale):
                before, at = view.since.get(i), self.since(ask, i)
                if at != before:
                    if before is not None and before != _NEVER:
                        view.order.remove((before, i))
                    if at != _NEVER:
                        view.order.add((at, i))
                    view.since[i] = at
            view.stale = 0
        return view

    def _stretches(self, view: View, i: int, now: float) -> list[Stretch]:
        found = view.stretches.get(i)
        if found is None:
            found = view.stretches[i] = self.stretches(view.ask, i, now)
        return found

    def allowed(self, w: Workload, now: float, mask: int, ignored: Collection[str] = ()) -> int:
        """Of ``mask``, the nodes on which ``w`` could run from now to its limit without touching others' promises."""
        touched = self.mask & mask
        if not touched:
            return mask
        end = end_of(w, now)
        kept = touched
        for part in w.parts:
            kept &= self._lasting(part.ask, now, end)
        own = [*ignored, w.id] if w.id in self.windows else ignored
        for i in bits(self._mask_of(own) & touched):
            if all(_covers(self.stretches(part.ask, i, now, own), now, end) for part in w.parts):
                kept |= 1 << i
        return mask & ~touched | kept

    def _mask_of(self, ids: Iterable[str]) -> int:
        mask = 0
        for id_ in ids:
            if id_ in self.windows:
                mask |= self.windows[id_].mask
        return mask

    def _lasting(self, ask: Ask, now: float, end: float) -> int:
        """Promised nodes with room for the request from now until ``end``."""
        view = self._view(ask)
        if view.sorted_until is None:
            rows = sorted(
                (until, i)
                for i in bits(self.mask)
                for since, until in self._stretches(view, i, now)[:1]
                if since <= now
            )
            view.sorted_until, view.masks = [until for until, _ in rows], [0] * (len(rows) + 1)
            for k in range(len(rows) - 1, -1, -1):
                view.masks[k] = view.masks[k + 1] | 1 << rows[k][1]
        return view.masks[bisect_left(view.sorted_until, end)]

    def earliest(
        self,
        w: Workload,
        domains: Sequence[int],
        now: float,
        closed: Sequence[Closure] = (),
        ignored: Collection[str] = (),
    ) -> Promise | None:
        """The first time at which all of ``w`` has places in one of the domains until its limit; None: never."""
        best: Promise | None = None
        for domain in domains:
            before = best.start if best is not None else _NEVER
            best = self._earliest(w, domain, now, closed, (*ignored, w.id), before, len(domains) > 1) or best
        return best

    def _earliest(
        self,
        w: Workload,
        mask: int,
        now: float,
        closed: Sequence[Closure],
        ignored: Collection[str],
        before: float,
        narrow: bool,
    ) -> Promise | None:
        parts = sorted(w.parts, key=lambda part: (-need(part.ask), -part.ask.cpus, -part.ask.memory))
        special = self.mask
        for _, _, nodes in closed:
            special |= nodes
        special &= mask
        own = self._mask_of(ignored)
        events: list[tuple[float, int, int, int]] = []
        for n, part in enumerate(parts):
            view = self._ordered(part.ask)
            plain = self.pool.narrow(part.ask, mask & ~special)
            events += self._plain(view, plain, n, sum(p.count for p in parts), now, narrow)
            usable = self.pool.narrow(part.ask, special)
            for i in bits(usable):
                cached = not closed and not own >> i & 1
                found = self._stretches(view, i, now) if cached else self.stretches(part.ask, i, now, ignored, closed)
                events += _starts(found, n, i, w.limit_s, now)
        events.sort()
        return self._sweep(w, parts, events, before)

    @staticmethod
    def _plain(
        view: View, mask: int, n: int, most: int, now: float, narrow: bool
    ) -> Iterator[tuple[float, int, int, int]]:
        """The first nodes to have room, for good: no more of them than could be chosen."""
        since = view.since
        rows = sorted((since[i], i) for i in bits(mask)) if narrow else view.order
        for at, i in rows:
            if at == _NEVER:
                return
            if mask >> i & 1:
                yield (now if at == _NOW else at if at > now else now + OVERRUN_S), 0, n, i
                most -= 1
                if not most:
                    return

    def _sweep(
        self, w: Workload, parts: Sequence[Part], events: Sequence[tuple[float, int, int, int]], before: float
    ) -> Promise | None:
        """Along time: a start is found where every group has a node of its own."""
        fitting = [0] * len(parts)
        at, count = 0, len(events)
        while at < count:
            time = events[at][0]
            if time >= before:
                return None
            while at < count and events[at][0] == time and events[at][1] == 0:
                fitting[events[at][2]] |= 1 << events[at][3]
                at += 1
            chosen = _distinct(parts, fitting)
            if chosen is not None:
                names = self.pool.nodes
                return Promise(w.id, time, tuple(Share(names[i].name, ask) for i, ask in chosen))  # type: ignore[union-attr]  # has room: there
            while at < count and events[at][0] == time:
                fitting[events[at][2]] &= ~(1 << events[at][3])
                at += 1
        return None

    def stands(self, id_: str, now: float) -> bool:
        """Whether a promise still has its room on all its nodes."""
        window = self.windows[id_]
        return all(
            _covers(
                self.stretches(share.ask, self.pool.index(share.node), now, (id_,)), window.promise.start, window.end
            )
            for share in window.promise.shares
        )

    def kept_place(self, id_: str, within: int) -> tuple[Share, ...] | None:
        """The shares on the very nodes that were promised, if each has the room now."""
        found: list[Share] = []
        for share in self.windows[id_].promise.shares:
            i = self.pool.index(share.node)
            if not within >> i & 1 or not self.pool.fits(share.ask, i):
                return None
            found.append(self.pool.share(share.ask, i))
        return tuple(found)


def _counted(pool: Pool, ask: Ask, i: int) -> Callable[[Placed], int]:
    """How many devices of the ask's class something placed on node ``i`` has."""
    node = pool.nodes[i]
    if not ask.mig or node is None:
        allowed = pool.model_bits(ask, i)
        return lambda placed: (placed.bits & allowed).bit_count()
    return lambda placed: sum(node.gpus[at].mig[n] == ask.mig for at, n in placed.instances)


def _with_room(room: tuple[int, float, int], events: Sequence[Step], ask: Ask, now: float) -> list[Stretch]:
    devices, cpus, memory = room
    want, want_cpus, want_memory = need(ask), ask.cpus - EPSILON, ask.memory
    found: list[Stretch] = []
    since: float | None = None
    time = now
    for at, more, more_cpus, more_memory in events:
        if at > time:
            fits = devices >= want and cpus >= want_cpus and memory >= want_memory
            if fits and since is None:
                since = time
            elif not fits and since is not None:
                found.append((since, time))
                since = None
            time = at
        devices, cpus, memory = devices + more, cpus + more_cpus, memory + more_memory
    if time == _NEVER:
        if since is not None:
            found.append((since, _NEVER))
        return found
    if devices >= want and cpus >= want_cpus and memory >= want_memory:
        found.append((time if since is None else since, _NEVER))
    elif since is not None:
        found.append((since, time))
    return found


def _covers(stretches: Sequence[Stretch], start: float, end: float) -> bool:
    return any(since <= start and end <= until for since, until in stretches)


def _starts(
    stretches: Iterable[Stretch], n: int, i: int, limit_s: float | None, now: float
) -> Iterator[tuple[float, int, int, int]]:
    """From when to when a start would end within its stretch: (time, 0 = from here on / 1 = here for the last time)."""
    for first, until in stretches:
        since = max(first, now)
        if until == _NEVER:
            yield since, 0, n, i
        elif limit_s is not None and since + limit_s <= until:
            last = max(until - limit_s, since)
            while last > since and last + limit_s > until:
                last = math.nextafter(last, since)
            yield since, 0, n, i
            yield last, 1, n, i


def _distinct(parts: Sequence[Part], fitting: Sequence[int]) -> list[tuple[int, Ask]] | None:
    taken = 0
    chosen: list[tuple[int, Ask]] = []
    for part, mask in zip(parts, fitting, strict=True):
        left = mask & ~taken
        if left.bit_count() < part.count:
            return None
        for _ in range(part.count):
            low = left & -left
            left ^= low
            taken |= low
            chosen.append((low.bit_length() - 1, part.ask))
    return chosen
