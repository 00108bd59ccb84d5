"""The scheduler: a working view of the snapshot, kept up to date, and one cycle over it.

A cycle: (1) those for whom others were evicted, (2) the next in the order of service, (3) its quota, (4) its place,
(5) whom to evict for it, (6) what may overtake a blocked head. It knows no clock and no store: the server feeds it from
the event log, the simulator from an event heap, and both get the same decisions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from itertools import chain

from penstock.scheduling import backfill, estimates, explain, partial, patience, preemption, reach, restart, scores
from penstock.scheduling.fairshare import FairShare
from penstock.scheduling.fragmentation import Scorer, scorer_for
from penstock.scheduling.holding import Awaiting, Holding
from penstock.scheduling.lines import Entry, Line, Lines, Turn, turns
from penstock.scheduling.pool import Pool
from penstock.scheduling.quota import Quotas, Refusal, Short, totals
from penstock.scheduling.reservations import Reservations
from penstock.scheduling.rights import forbidden
from penstock.scheduling.spec import Queue, Setup
from penstock.scheduling.state import (
    Admit,
    Decision,
    Evict,
    Held,
    NodeState,
    Part,
    Promise,
    Reservation,
    Share,
    Snapshot,
    Wait,
    Workload,
)
from penstock.scheduling.timeline import Timeline, Window
from penstock.scheduling.victims import Victims

MOST_SEEN = 1 << 14  # requests remembered by identity
AGAIN_S = 1.0
_NOTHING = Decision()


class Scheduler:
    """See the module. Not thread-safe; every method is total but for shares that are not free."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.policy = setup.policy
        self._scorer = scorer_for(self.policy.placement)
        self.pool = Pool(first_fit=self.policy.placement == "firstfit", scorer=self._scorer)
        self.quotas = Quotas(setup)
        self.fair = FairShare(self.policy.decay_half_life_s)
        self.lines = Lines(self.policy, lambda w: scores.score(self, w))
        self.reservations = Reservations(self.pool, setup.reservations)
        if setup.reservations:
            self.lines.tell_limits_apart()
        self.held: dict[str, Holding] = {}
        self.leaving: dict[str, Holding] = {}  # of those held, whoever was told to go
        self.timeline = Timeline(self.pool)
        self.windows: dict[str, Window] = self.timeline.windows  # promises, by whose
        self.out_of_quota: set[int] = set()  # lines whose heads wait for their quota
        self.frontier: tuple[float, ...] | None = None  # the key up to which backfill looked, if not at all
        self.aside: dict[str, Entry] = {}  # could not run even if everything were free
        self.awaiting: dict[str, Awaiting] = {}
        self.victims = Victims()
        self.blocked: Entry | None = None
        self.now = 0.0
        self._kinds: dict[object, int] = {}
        self._queue_paths: dict[str, tuple[str, ...]] = {}
        self._asked: dict[tuple[Part, ...], dict[str, float]] = {}
        self._possible: dict[tuple[int, str], bool] = {}  # by kind and queue, for the fleet as it is
        self.partial = partial.Partial()
        self.patience: dict[str, float] = {}  # by idle holder, when its queue has had enough of it
        self._wake = True
        self._recheck = False  # the fleet's shape changed since those aside were last looked at
        self._fresh: list[Entry] = []
        self.freed_early = False
        self._next_at = math.inf
        self.soon = False  # what was admitted in this very cycle is no victim yet: look again
        self._rescore_at = 0.0
        self.replan_at, self.owed = 0.0, False  # backfill that plans anew: not before then, and whether it should have
        self._strict = self.policy.blocking == "strict"
        self.backfills = self.policy.backfill != "none"
        self.by_use = self.policy.order in ("fairshare", "multifactor")  # only these ask what was used
        if self.policy.order == "multifactor":
            self.fair.enroll(setup)
        self._limited = any(map(self.quotas.limited, setup.queues))
        self._estimated: tuple[tuple[float, ...], dict[str, estimates.Estimate]] | None = None
        self._seen: dict[int, tuple[tuple[Part, ...], dict[str, float], int]] = {}  # by identity: hashing parts costs

    # -- the view

    def put_node(self, node: NodeState) -> None:
        """Add or replace a node."""
        before = self.pool.state(node.name)
        self.pool.put(node)
        if before is None or _shape(before) != _shape(node):
            self._reshaped(before, node)
        self._node_changed(node.name)

    def drop_node(self, name: str) -> None:
        """It is gone. What ran there is still held, until it is told to have ended."""
        before = self.pool.state(name)
        if before is None:
            return
        self.pool.drop(name)
        self._reshaped(before, None)
        self._node_changed(name)

    def _reshaped(self, before: NodeState | None, after: NodeState | None) -> None:
        """The fleet can hold something else than before: capacity follows at once, what could run when it is asked for."""
        capacity = dict(self.fair.capacity)
        for node, sign in ((before, -1), (after, 1)):
            if node is not None:
                for name, amount in (
                    ("gpus", float(len(node.gpus))),
                    ("cpus", node.cpus),
                    ("memory", float(node.memory)),
                ):
                    capacity[name] = capacity.get(name, 0.0) + sign * amount
        if capacity != self.fair.capacity:
            self.fair.capacity = capacity
        self._possible.clear()
        self._recheck = True

    def _node_changed(self, name: str) -> None:
        i = self.pool.index(name)
        self.timeline.changed(i)
        if not self.pool.takes(name):
            for id_ in [id_ for id_, window in self.windows.items() if window.mask >> i & 1]:
                self.timeline.cancel(id_, f"{name} is no longer there for it")
        self._wake = self.freed_early = True

    def _sort_out(self) -> None:
        """After the fleet took another shape: who can run on it at all stands in line, and nobody else."""
        self._recheck = False
        hopeless = [
            entry
            for entry in self.lines.entries.values()
            if entry.w.id not in self.awaiting and not self._can_ever(entry.w, entry.kind, entry.asked)
        ]
        hopeful = [entry for entry in self.aside.values() if self._can_ever(entry.w, entry.kind, entry.asked)]
        for entry in hopeless:
            self.withdraw(entry.w.id)
            self.aside[entry.w.id] = entry
        for entry in hopeful:
            del self.aside[entry.w.id]
            self.submit(entry.w)

    def put_reservation(self, reservation: Reservation) -> None:
        """Add or replace a window; promises that it does not allow are taken back."""
        self.reservations.known[reservation.name] = reservation
        self.lines.tell_limits_apart()
        for id_, window in list(self.windows.items()):
            w = self.lines.entries[id_].w
            if self.reservations.blocked(w, window.promise.start) & window.mask:
                self.timeline.cancel(id_, f"{reservation.name} keeps its place")
        self._wake = self.freed_early = True

    def drop_reservation(self, name: str) -> None:
        """Ended early, or called off: its nodes are there for everybody."""
        self.reservations.known.pop(name, None)
        self._wake = self.freed_early = True

    def submit(self, w: Workload) -> None:
        """It waits from now on; one of the same id is replaced."""
        if w.id in self.lines.entries or w.id in self.aside:
            self.withdraw(w.id)
        asked, kind = self._analyse(w)
        if not self._can_ever(w, kind, asked):
            self.aside[w.id] = Entry(w, (), kind, asked, Line(w.queue, self.path_of(w)))
            return
        entry = self.lines.add(w, kind, asked, self.path_of(w))
        self.partial.waits(w)
        if self.blocked is None or self._precedes(entry, self.blocked):
            self._wake = True
        elif self.backfills:
            self._fresh.append(entry)
        elif self._strict:
            return
        elif entry.line.head is entry:
            self._wake = True

    def _precedes(self, entry: Entry, blocked: Entry) -> bool:
        return entry.line.head is entry if self.policy.order == "fairshare" else entry.key < blocked.key

    def _analyse(self, w: Workload) -> tuple[dict[str, float], int]:
        """What it asks for in all, and its kind: those of one kind fit in the same places."""
        plain = not (w.flavors or w.exclude or w.reservations or w.least) and w.topology is None
        seen = self._seen.get(id(w.parts))
        if plain and seen is not None and seen[0] is w.parts:
            return seen[1], seen[2]
        asked = self._asked.get(w.parts)
        if asked is None:
            asked = self._asked[w.parts] = totals(w.parts)
        whose = (w.project, w.user) if w.reservations else ()  # a reservation may be some people's alone
        same = (w.parts, w.flavors, w.topology, w.exclude, w.reservations, whose, w.least)
        kind = self._kinds.setdefault(same, len(self._kinds))
        if plain:
            if len(self._seen) >= MOST_SEEN:
                self._seen.clear()
            self._seen[id(w.parts)] = (w.parts, asked, kind)
        return asked, kind

    def withdraw(self, id: str) -> None:  # noqa: A002 - the word of every other place here
        """It waits no more."""
        self.aside.pop(id, None)
        self.partial.shrink_at.pop(id, None)
        entry = self.lines.remove(id)
        awaiting = self.awaiting.pop(id, None)
        if awaiting is not None:
            self.quotas.give(awaiting.entry.w.queue, awaiting.flavor, awaiting.entry.asked)
        promised = self.timeline.cancel(id)
        if promised is not None:
            self.freed_early = True
        if entry is not None and (entry is self.blocked or awaiting is not None or promised is not None):
            self._wake = True

    def begin(self, held: Held) -> None:
        """It holds its place already."""
        self.lines.remove(held.workload.id)
        asked = totals(held.workload.parts)
        self._hold(held, self.flavor_of(held.shares), asked)

    def end(self, id: str, now: float) -> None:  # noqa: A002 - the word of every other place here
        """Finished, failed, or evicted and gone: its place is free."""
        holding = self.held.pop(id, None)
        self.patience.pop(id, None)
        if holding is None:
            return
        self.leaving.pop(id, None)
        self.partial.gone(id)
        self.pool.give(id)
        if self.backfills:
            self.timeline.free(id)
            if now < holding.end:
                self.freed_early = True
        if holding.counted:
            self.quotas.give(holding.held.workload.queue, holding.flavor, holding.asked)
        if self.by_use:
            self.fair.give(holding.path, holding.asked, now)
        if self.awaiting:
            for awaiting in self.awaiting.values():
                awaiting.victims.discard(id)
        self._wake = True

    def wake(self) -> None:
        """Look at everything anew in the next cycle, as one that was just built does."""
        self._wake = self.freed_early = True
        self.pool.frees += 1

    def snapshot(self) -> Snapshot:
        """The view as one frozen value."""
        return restart.snapshot(self)

    # -- the cycle

    def plan(self, now: float) -> Decision:
        """Decide. What is admitted is held in the view from here on; what is evicted leaves when ``end`` is told."""
        self.now = now
        if (self.patience and patience.lose(self, now)) or (self.partial.shrink_at and partial.due(self, now)):
            self._wake = True
        if (self.partial.small or self.partial.kept) and (grown := partial.grow(self, now)):
            return Decision(evict=grown)
        if self._recheck:
            self._sort_out()
        if now >= self._rescore_at and self.policy.order == "multifactor":
            self.fair.fair_tree((), now, anew=True)
            self.lines.rescore()
            self._rescore_at, self._wake = now + self.policy.rescore_s, True
        if not (self._wake or self._fresh or now >= self._next_at):
            return _NOTHING
        if self._wake and not self.lines.entries and not self.awaiting:
            self._rest()
            self._next_at = self._next_change(now)
            return _NOTHING
        if isinstance(self._scorer, Scorer):
            waiting = (entry.w.parts for entry in self.lines.entries.values())
            self._scorer.weigh(chain(waiting, (holding.held.workload.parts for holding in self.held.values())))
        self.soon = False
        self.victims.anew(now)
        admitted: list[Admit] = []
        evicted: list[Evict] = []
        if self._wake or now >= self._next_at:
            self._fresh.clear()
            if self.awaiting:
                self._serve_awaiting(now, admitted)
            self._serve(now, admitted, evicted)
            candidates: Iterator[Entry] | None = None
        else:
            candidates = iter(self._fresh)
        while self.blocked is not None and self.backfills and backfill.run(self, now, candidates, admitted):
            self._serve(now, admitted, evicted)
            candidates = None
        if self.blocked is None and self.windows:
            backfill.expire(self, now)
        self._rest()
        self._next_at = min(self._next_change(now), now + AGAIN_S if self.soon else math.inf)
        if not admitted and not evicted and not self.windows:
            return Decision(blocked_by=self.blocked.w.id) if self.blocked else _NOTHING
        promises = tuple(window.promise for window in self.windows.values())
        return Decision(tuple(admitted), tuple(evicted), promises, (), self.blocked.w.id if self.blocked else None)

    def _rest(self) -> None:
        if self._fresh:
            self._fresh = []
        if not self.lines.entries:
            self.blocked = None
        self._wake = self.freed_early = False

    def _next_change(self, now: float) -> float:
        owed = self.replan_at if self.owed and self.blocked is not None else math.inf
        if not (self.windows or self.reservations.known):
            return owed
        change = self.reservations.next_change(now) if self.reservations.known else None
        times = [window.promise.start for window in self.windows.values() if window.promise.start > now]
        return min([owed, *times] if change is None else [owed, change, *times])

    def wake_at(self) -> float:
        """When to plan again though nothing happens: a window, a promise or patience falls due. inf: never."""
        if not (self.patience or self.partial.shrink_at or self.partial.grow_at):
            return self._next_at
        return min(self._next_at, self.partial.wake_at(), *self.patience.values())

    def _serve_awaiting(self, now: float, admitted: list[Admit]) -> None:
        """Those for whom others were evicted, as soon as the others are gone."""
        for id_, awaiting in sorted(self.awaiting.items(), key=lambda item: item[1].entry.w.seq):
            if awaiting.victims:
                continue
            entry = awaiting.entry
            del self.awaiting[id_]
            self.quotas.give(entry.w.queue, awaiting.flavor, entry.asked)  # booked when the victims were told
            found = self.admit(entry, now, None)
            if isinstance(found, Admit):
                self.lines.remove(id_)
                admitted.append(found)

    def _serve(self, now: float, admitted: list[Admit], evicted: list[Evict]) -> None:
        """In order, while it fits."""
        self.blocked = None
        self.out_of_quota.clear()
        binding = self.policy.backfill == "conservative"
        shared = self.lines.shared_path() if self.policy.order == "fairshare" else 0
        for line in turns(self.lines.lines.values(), lambda line: self._turn(line, now, shared)):
            entry = line.head
            if entry.w.id in self.awaiting:
                continue
            found = self.admit(entry, now, () if binding else None)
            ignored = backfill.outranked(self, entry) if binding and found is None else []
            if ignored:
                found = self.admit(entry, now, ignored)
            if isinstance(found, Admit):
                self.lines.remove(entry.w.id)
                admitted.append(found)
                if ignored:
                    backfill.settle(self, ignored, entry.w.name, now)
                continue
            promised = entry.w.id in self.windows and self.windows[entry.w.id].promise.start > now
            made = self._make_room(entry, now, evicted)
            fewer = partial.admit(self, entry, now, () if binding else None) if entry.w.least and not made else None
            if fewer is not None:
                self.lines.remove(entry.w.id)
                admitted.append(fewer)
                continue
            if made or (found is Short.QUOTA and not promised):
                self.out_of_quota.add(id(line))  # its own line waits; others are not in its way
                continue
            if self.blocked is None:
                self.blocked = entry
            if self._strict or self.backfills:
                return

    def _turn(self, line: Line, now: float, shared: int) -> Turn:
        """What all have in common decides nothing, but would change with every start: it is left out."""
        return self.fair.rank(line.path, now)[shared:] if self.policy.order == "fairshare" else (), line.head.key

    def admit(self, entry: Entry, now: float, ignored: Collection[str] | None) -> Admit | Short | None:
        """Quota, then place, then hold it. None: there is no place. See ``open_to`` for ``ignored``."""
        found = self.room(entry.w, entry.asked, now, ignored)
        return self.start(entry, *found, now) if isinstance(found, tuple) else found

    def room(
        self, w: Workload, asked: Mapping[str, float], now: float, ignored: Collection[str] | None
    ) -> tuple[tuple[Share, ...], str] | Short | None:
        """Where it could start now, and in which flavor; changes nothing."""
        queue = self.setup.queues.get(w.queue)
        if queue is None or not self.quotas.limited(w.queue):
            shares = self._place(w, self.open_to(w, now, ignored), now)
            return None if shares is None else (shares, "")
        flavors = self.flavors_for(queue, w)
        fitting = [flavor for flavor in flavors if self.quotas.fits(w.queue, flavor, asked)]
        if not fitting:
            return Short.QUOTA if flavors else None
        within = self.open_to(w, now, ignored)
        for flavor in fitting:
            mask = self.pool.flavor_mask(flavor)
            shares = self._place(w, mask if within is None else mask & within, now)
            if shares is not None:
                return shares, flavor
        return None

    def _place(self, w: Workload, within: int | None, now: float) -> tuple[Share, ...] | None:
        """Where the policy would have it; failing that, where it was promised to be by now."""
        shares = self.pool.find(w, within=within)
        if shares is None and w.id in self.windows and self.windows[w.id].promise.start <= now:
            free = self.open_to(w, now)  # of its own promise no other has to be asked
            return self.timeline.kept_place(w.id, self.pool.open if free is None else free)
        return shares

    def flavors_for(self, queue: Queue, w: Workload) -> tuple[str, ...]:
        own = self.quotas.flavors(queue.name)
        return tuple(flavor for flavor in w.flavors if flavor in own) if w.flavors else own

    def open_to(self, w: Workload, now: float, ignored: Collection[str] | None = None) -> int | None:
        """Nodes that others' fences and reservations leave it, and promises but the ``ignored`` (None: all); None: all."""
        promises = ignored is not None and self.windows
        if not (self.awaiting or promises or self.reservations.known or self.partial.kept):
            return None
        mask = self.pool.open
        for id_, kept in self.partial.kept.items():
            if id_ != w.id:
                mask &= ~kept
        for id_, awaiting in self.awaiting.items():
            if id_ != w.id:
                mask &= ~awaiting.mask
        if self.reservations.known:
            mask &= ~self.reservations.blocked(w, now)
        return self.timeline.allowed(w, now, mask, ignored or ()) if promises else mask

    def start(self, entry: Entry, shares: tuple[Share, ...], flavor: str, now: float, *, filled: bool = False) -> Admit:
        w = entry.w
        self.timeline.cancel(w.id)
        held = Held(w, shares, now)
        borrowed = self._hold(held, flavor or self.flavor_of(shares), entry.asked, entry.line.path)
        self.victims.just.append(self.held[w.id])
        return Admit(w.id, shares, flavor or "default", "", filled, borrowed)

    def _hold(self, held: Held, flavor: str, asked: Mapping[str, float], path: tuple[str, ...] | None = None) -> float:
        w = held.workload
        if path is None or self.policy.order == "multifactor":  # there a line is of many users
            path = self.path_of(w)
        self.pool.take(w.id, held.shares)
        counted = self._limited and held.counted and w.queue in self.quotas.queues
        borrowed = self.quotas.take(w.queue, flavor, asked) if counted else 0.0
        if self.by_use:
            self.fair.take(path, asked, max(self.now, held.since))
        end = math.inf if w.limit_s is None else held.since + w.limit_s
        holding = self.held[w.id] = Holding(held, flavor, asked, path, end, counted)
        if held.idle_since is not None:
            patience.mind(self, holding)
        if w.least:
            self.partial.holds(w)
        if held.leaving:
            self.leaving[w.id] = holding
        if self.backfills:
            self.timeline.hold(w.id, end)
        return borrowed

    def flavor_of(self, shares: tuple[Share, ...]) -> str:
        if not shares or not self.setup.flavors:
            return "default"
        node = self.pool.nodes[self.pool.index(shares[0].node)]
        return node.flavor if node is not None else "default"

    # -- evict

    def _make_room(self, entry: Entry, now: float, evicted: list[Evict]) -> bool:
        """Evict for it, if that really lets it start. The quota moves at once; the place when they have left."""
        if entry.tried_at == self.pool.frees or not preemption.may_evict(self, entry):
            return False
        found = preemption.search(self, entry, now)
        if found is None:
            entry.tried_at = -1 if self.soon else self.pool.frees
            return False
        for evict in found.evict:
            holding = self.held[evict.id]
            if holding.counted:
                self.quotas.give(holding.held.workload.queue, holding.flavor, holding.asked)
                holding.counted = False
            holding.held = replace(holding.held, counted=False)
            self.leave(holding, now)
        self.quotas.take(entry.w.queue, found.flavor, entry.asked)
        victims = {evict.id for evict in found.evict}
        self.awaiting[entry.w.id] = Awaiting(entry, found.flavor, self.pool.node_mask(found.nodes), victims)
        evicted.extend(found.evict)
        return True

    def leave(self, holding: Holding, now: float) -> None:
        """It was told to."""
        w = holding.held.workload
        holding.held = replace(holding.held, leaving=True, ready_at=now + w.grace_s)
        self.leaving[w.id] = holding

    def promise(self, id: str) -> Promise | None:  # noqa: A002 - the word of every other place here
        window = self.windows.get(id)
        return window.promise if window is not None else None

    # -- words

    def why(self, id: str, now: float, *, estimate: bool = True) -> Wait:  # noqa: A002 - the word of every other place here
        """Why a queued workload waits, and when it may start if that is asked. KeyError for one that does not."""
        if self._recheck:
            self._sort_out()
        entry = self.aside.get(id) or self.lines.entries[id]
        found = explain.explain(self, entry.w, now)
        if estimate and found.start_estimate is None and id in self.lines.entries:
            told = self.start_estimates(now).get(id)
            return found if told is None else replace(found, start_estimate=told.start)
        return found

    def start_estimates(self, now: float) -> dict[str, estimates.Estimate]:
        """When each in line may start, as far as that can be known."""
        if self._estimated is None or self._estimated[0] != self._state(now):
            found = estimates.estimates(self, now)
            self._estimated = (self._state(now), found)
        return self._estimated[1]

    def _state(self, now: float) -> tuple[float, ...]:
        return now, self.pool.frees, len(self.held), len(self.lines), self.timeline.changes

    def refused(self, w: Workload) -> Refusal | None:
        """By quota in every flavor; then the last refusal that time may lift, else the first."""
        queue = self.setup.queues.get(w.queue)
        if queue is None or not self.quotas.limited(w.queue):
            return None
        asked, _ = self._analyse(w)
        found = [self.quotas.check(w.queue, flavor, asked) for flavor in self.flavors_for(queue, w)]
        refusals = [refusal for refusal in found if refusal is not None]
        if not refusals or len(refusals) < len(found):
            return None
        return next((refusal for refusal in refusals if not refusal.never), refusals[0])

    def room_within(self, w: Workload, now: float, *, promises: bool = True) -> int | None:
        """Nodes that its queue's flavors, and what is kept for others, leave it now; None: all."""
        queue = self.setup.queues.get(w.queue)
        within = self.open_to(w, now, () if promises else None)
        if queue is None or not self.quotas.limited(w.queue):
            return within
        mask = 0
        for flavor in self.flavors_for(queue, w):
            mask |= self.pool.flavor_mask(flavor)
        return mask if within is None else mask & within

    # -- what is worked out once

    def path_of(self, w: Workload) -> tuple[str, ...]:
        """Of its account: cohorts from the root, the queue, and the user under fair share."""
        path = self._queue_paths.get(w.queue)
        if path is None:
            names: list[str] = [w.queue]
            node = self.quotas.queues.get(w.queue)
            while node is not None and node.parent is not None:
                node = node.parent
                names.append(node.name)
            path = self._queue_paths[w.queue] = tuple(reversed(names))
            self._weigh(path, w.queue)
        if self.policy.order not in ("fairshare", "multifactor"):
            return path
        queue = self.setup.queues.get(w.queue)
        full = (*path, w.user)
        self.fair.account(full, queue.user_weights.get(w.user, 1.0) if queue else 1.0)
        return full

    def _weigh(self, path: tuple[str, ...], queue: str) -> None:
        for depth, name in enumerate(path, 1):
            spec = self.setup.queues.get(queue) if depth == len(path) else self.setup.cohorts.get(name)
            self.fair.account(path[:depth], spec.weight if spec is not None else 1.0)

    def asked_of(self, parts: tuple[Part, ...]) -> dict[str, float] | None:
        return self._asked.get(parts)

    def could_ever(self, w: Workload) -> bool:
        """Whether the fleet and its queue could ever let it start."""
        asked, kind = self._analyse(w)
        return self._can_ever(w, kind, asked)

    def _can_ever(self, w: Workload, kind: int, asked: Mapping[str, float]) -> bool:
        if self.beyond(w) is not None or forbidden(self.setup, w.queue, w.project) is not None:
            return False
        possible = self._possible.get((kind, w.queue))
        if possible is None:
            possible = self._possible[kind, w.queue] = reach.could_run(self, w, asked)
        return possible

    def beyond(self, w: Workload) -> float | None:
        """The longest time limit that its queue takes, where its own is longer or not there at all."""
        queue = self.setup.queues.get(w.queue)
        most = queue.max_limit_s if queue is not None else None
        return most if most is not None and (w.limit_s is None or w.limit_s > most) else None


def _shape(node: NodeState) -> tuple[object, ...]:
    """What could ever run on a node follows from this; whether it takes work does not."""
    return node.gpus, node.cpus, node.memory, node.flavor, node.topology
