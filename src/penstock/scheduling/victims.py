"""Who may be evicted, the first to go first: idle, borrowed, the lowest priority, the latest start.

Many a head asks in one cycle, and a full fleet holds thousands. So each queue's holders are put in order once in a cycle,
and a search takes from the front of those whom its rules let it take.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from penstock.base.reasons import Reason

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler
    from penstock.scheduling.holding import Holding
    from penstock.scheduling.lines import Entry

MOST_TRIED = 2000  # candidates looked at in one search
Rule = tuple[Reason, float]  # by which a queue's holders may go, and the priority below which they must be


@dataclass(slots=True)
class Victims:
    """The holders of one cycle, by queue. Those that it admitted are no victims yet."""

    now: float = -math.inf
    just: list[Holding] = field(default_factory=list)
    _by_queue: dict[str, list[Holding]] = field(default_factory=dict)
    _ordered: dict[tuple[str, str], list[Holding]] = field(default_factory=dict)

    def anew(self, now: float) -> None:
        """Another cycle begins."""
        self.now = now
        self.just.clear()
        if self._by_queue or self._ordered:
            self._by_queue.clear()
            self._ordered.clear()

    def queues(self, view: Scheduler, now: float) -> Mapping[str, list[Holding]]:
        if now != self.now:
            self.anew(now)
        if not self._by_queue:
            admitted = set(map(id, self.just))
            for holding in view.held.values():
                w = holding.held.workload
                if not w.preemptible or w.evictions >= view.policy.max_evictions or id(holding) in admitted:
                    continue
                if holding.held.since >= now:
                    self.just.append(holding)
                else:
                    self._by_queue.setdefault(w.queue, []).append(holding)
        return self._by_queue

    def ordered(self, queue: str, flavor: str) -> list[Holding]:
        """Of one flavor (any, if it has no name): the lowest priority first, then the latest start."""
        found = self._ordered.get((queue, flavor))
        if found is None:
            some = self._by_queue.get(queue, [])
            found = [holding for holding in some if not flavor or holding.flavor == flavor]
            found.sort(key=_order)
            self._ordered[queue, flavor] = found
        return found

    def at_most(self, view: Scheduler, queue: str, flavor: str, asked: Mapping[str, float]) -> list[Holding]:
        """Those of a queue who can go before it is within its nominal quota, in their order; of a queue that is not held
        to GPUs alone, all.
        """
        found = [one for one in self.ordered(queue, flavor) if not one.held.leaving]
        borrowed = view.quotas.borrowed_gpus(queue, flavor, asked)
        for at, holding in enumerate(found):
            if borrowed <= 0.0:
                return found[:at]
            if holding.counted:
                borrowed -= holding.asked.get("gpus", 0.0)
        return found


def _order(holding: Holding) -> tuple[float, ...]:
    w = holding.held.workload
    return w.priority, -holding.held.since, -w.seq


def candidates(view: Scheduler, entry: Entry, flavor: str, now: float) -> Iterator[tuple[Holding, Reason]]:
    """Possible victims of a workload. Notes in ``view.soon`` that there would be more, had they not just been admitted."""
    reclaims = _may_reclaim(view, entry, flavor)
    patient = all(queue.reclaim_after_s is None for queue in view.setup.queues.values())
    if patient and not (view.policy.preemption or any(reclaims.values()) or _within_own(view, entry)):
        return iter(())
    holders = view.victims.queues(view, now)
    rules = {name: rule for name in holders if (rule := _rule(view, entry, name, reclaims)) is not None}
    if any(_would_go(view, entry, one, flavor, reclaims, now) for one in view.victims.just):
        view.soon = True
    if patient and not _enough(view, entry, flavor, rules):
        return iter(())
    found: list[Iterator[tuple[Holding, Reason]]] = []
    if not patient:
        idle = [one for name in holders for one in view.victims.ordered(name, flavor) if _is_idle(view, one, now)]
        found.append((one, Reason.IdleReclaimed) for one in sorted(idle, key=_order))
    for reason in (Reason.Reclaimed, Reason.Preempted):
        rows = [_below(view, name, flavor, most) for name, (by, most) in rules.items() if by is reason]
        found.append(_by(reason, merge(*rows, key=_order), view, now))
    every = (pair for row in found for pair in row if not pair[0].held.leaving)
    return islice(every, MOST_TRIED)


def _enough(view: Scheduler, entry: Entry, flavor: str, rules: Mapping[str, Rule]) -> bool:
    """Whether so many GPUs could become free, on each of as many nodes as it needs, if all went who may: counted, since
    most searches end in vain, and to evict one after the other on trial costs much more.
    """
    w, pool = entry.w, view.pool
    parts = [part for part in w.parts if part.ask.gpus and not part.ask.mig]
    if not parts or not view.quotas.limited(w.queue) or not view.quotas.within_nominal(w.queue, flavor, entry.asked):
        return True
    freed: dict[int, int] = {}
    for name, (_, most) in rules.items():
        for holding in view.victims.at_most(view, name, flavor, entry.asked):
            if holding.held.workload.priority < most:
                for placed in pool.held[holding.held.workload.id]:
                    freed[placed.index] = freed.get(placed.index, 0) + placed.bits.bit_count() + (placed.shared >= 0)
    within = pool.open & pool.flavor_mask(flavor)
    for part in parts:
        there = pool.with_free(part.ask.gpus, within)
        more = [
            i
            for i, gpus in freed.items()
            if not there >> i & 1 and within >> i & 1 and pool.free_bits[i].bit_count() + gpus >= part.ask.gpus
        ]
        if there.bit_count() + len(more) < part.count:
            return False
    return True


def _below(view: Scheduler, queue: str, flavor: str, most: float) -> Iterator[Holding]:
    return takewhile(lambda one: one.held.workload.priority < most, view.victims.ordered(queue, flavor))


def _by(reason: Reason, rows: Iterator[Holding], view: Scheduler, now: float) -> Iterator[tuple[Holding, Reason]]:
    return ((one, reason) for one in rows if not _is_idle(view, one, now))


def _within_own(view: Scheduler, entry: Entry) -> bool:
    own = view.setup.queues.get(entry.w.queue)
    return own is not None and own.preempt_within_queue != "never"


def _may_reclaim(view: Scheduler, entry: Entry, flavor: str) -> Mapping[str, bool]:
    """By queue: whether what it borrowed may be taken from it for this one."""
    w = entry.w
    own = view.setup.queues.get(w.queue)
    if own is None or not flavor or own.reclaim_within_cohort == "never":
        return {}
    fair = view.policy.preemption and view.policy.order == "fairshare"
    if not (fair or view.quotas.within_nominal(w.queue, flavor, entry.asked)):
        return {}
    return {
        name: view.quotas.reclaimable(name, w.queue, flavor, entry.asked)
        for name in view.setup.queues
        if name != w.queue
    }


def _rule(view: Scheduler, entry: Entry, queue: str, reclaims: Mapping[str, bool]) -> Rule | None:
    """By what rule the queue's holders may go for this workload, idle ones aside."""
    w = entry.w
    if queue == w.queue:
        return (Reason.Preempted, w.priority) if view.policy.preemption or _within_own(view, entry) else None
    if reclaims.get(queue):
        anybody = view.setup.queues[w.queue].reclaim_within_cohort == "any"
        return Reason.Reclaimed, math.inf if anybody else w.priority
    if view.policy.preemption and not view.quotas.limited(queue):
        return Reason.Preempted, w.priority
    return None


def _is_idle(view: Scheduler, holding: Holding, now: float) -> bool:
    """For longer than its queue allows."""
    queue = view.setup.queues.get(holding.held.workload.queue)
    patience, since = queue.reclaim_after_s if queue is not None else None, holding.held.idle_since
    return patience is not None and since is not None and now - since >= patience


def _would_go(
    view: Scheduler, entry: Entry, holding: Holding, flavor: str, reclaims: Mapping[str, bool], now: float
) -> bool:
    w = holding.held.workload
    if not w.preemptible or w.evictions >= view.policy.max_evictions or holding.held.leaving:
        return False
    if flavor and holding.flavor != flavor:
        return False
    rule = _rule(view, entry, w.queue, reclaims)
    return _is_idle(view, holding, now) or (rule is not None and w.priority < rule[1])
