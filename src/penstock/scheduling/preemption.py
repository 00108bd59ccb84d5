"""Whom to evict so that a workload can start: as few as do, and only if it then really starts.

Who may be a victim of whom (Kueue's rules): idle holders past their queue's patience; in the own queue those of lower
priority, where the queue says so; in the cohort those of queues that borrow, for a queue that stays within its nominal
quota. Without quotas, ``Policy.preemption`` lets a higher priority evict a lower one anywhere.

Why it ends. Along priorities evictions only go downward. A reclaim serves a queue within its nominal quota and strikes
one above its own, so what was admitted within quota is never struck by it, and the struck cannot strike back: to be
admitted again within quota it needs no reclaim of what is in quota. And whoever was evicted ``max_evictions`` times is
no victim any more, so all evictions together are bounded by that times the workloads, whatever the tree's shape
(Kueue leaves its proof open for hierarchical cohorts).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.base.reasons import Reason
from penstock.scheduling.state import Evict, Share

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Holding, Scheduler
    from penstock.scheduling.lines import Entry

MOST_TRIED = 2000  # candidates looked at in one search


@dataclass(frozen=True, slots=True)
class Found:
    evict: tuple[Evict, ...]
    flavor: str
    nodes: tuple[str, ...]


def search(view: Scheduler, entry: Entry, now: float) -> Found | None:
    """The victims, or None when no eviction helps. Changes nothing."""
    w = entry.w
    queue = view.setup.queues.get(w.queue)
    flavors = view.flavors_for(queue, w) if queue is not None and queue.limited else ("",)
    for flavor in flavors:
        found = _in_flavor(view, entry, flavor, now)
        if found is not None:
            return found
    return None


def _in_flavor(view: Scheduler, entry: Entry, flavor: str, now: float) -> Found | None:
    candidates = _candidates(view, entry, flavor, now)
    if not candidates:
        return None
    trial = _Trial(view, entry, flavor, now)
    with view.pool.what_if():
        try:
            chosen: list[tuple[Holding, Reason]] = []
            shares = None
            for holding, reason in candidates:
                if reason is Reason.Reclaimed and not trial.still_borrows(holding):
                    continue
                trial.evict(holding)
                chosen.append((holding, reason))
                shares = trial.place()
                if shares is not None:
                    break
            if shares is None:
                return None
            chosen, shares = _fewest(trial, chosen, shares)
        finally:
            trial.undo()
    evict = tuple(Evict(h.held.workload.id, reason, _words(entry, h, reason), entry.w.id) for h, reason in chosen)
    return Found(evict, flavor or "default", tuple(share.node for share in shares))


def _fewest(
    trial: _Trial, chosen: list[tuple[Holding, Reason]], shares: tuple[Share, ...]
) -> tuple[list[tuple[Holding, Reason]], tuple[Share, ...]]:
    """Let back whoever is not needed, the first chosen (the worst off) last."""
    kept = list(chosen)
    for one in reversed(chosen[:-1]):
        trial.restore(one[0])
        again = trial.place()
        if again is None:
            trial.evict(one[0])
        else:
            kept.remove(one)
            shares = again
    return kept, shares


class _Trial:
    """What would be if some were evicted: the pool by its own what-if, quotas by booking back and forth."""

    def __init__(self, view: Scheduler, entry: Entry, flavor: str, now: float) -> None:
        self.view, self.entry, self.flavor, self.now = view, entry, flavor, now
        self.out: dict[str, Holding] = {}

    def evict(self, holding: Holding) -> None:
        w = holding.held.workload
        self.view.pool.give(w.id)
        if holding.counted:
            self.view.quotas.give(w.queue, holding.flavor, holding.asked)
        self.out[w.id] = holding

    def restore(self, holding: Holding) -> None:
        w = holding.held.workload
        self.view.pool.take(w.id, holding.held.shares)
        if holding.counted:
            self.view.quotas.take(w.queue, holding.flavor, holding.asked)
        del self.out[w.id]

    def undo(self) -> None:
        """The quotas; the pool undoes itself."""
        for holding in self.out.values():
            if holding.counted:
                self.view.quotas.take(holding.held.workload.queue, holding.flavor, holding.asked)
        self.out.clear()

    def place(self) -> tuple[Share, ...] | None:
        """Where it would start now, if quota and nodes let it."""
        view, w = self.view, self.entry.w
        if self.flavor and view.quotas.check(w.queue, self.flavor, self.entry.asked) is not None:
            return None
        within = view.open_to(w, self.now, ())
        if self.flavor:
            mask = view.pool.flavor_mask(self.flavor)
            within = mask if within is None else within & mask
        return view.pool.find(w, within=within)

    def still_borrows(self, holding: Holding) -> bool:
        return self.view.quotas.borrows(holding.held.workload.queue, holding.flavor)


def _candidates(view: Scheduler, entry: Entry, flavor: str, now: float) -> list[tuple[Holding, Reason]]:
    """Possible victims, the first to go first: idle, borrowed, the lowest priority, the latest start."""
    found: list[tuple[tuple[float, ...], Holding, Reason]] = []
    reclaims = _may_reclaim(view, entry, flavor)
    for holding in view.held.values():
        w = holding.held.workload
        if holding.held.leaving or not w.preemptible or w.evictions >= view.policy.max_evictions:
            continue
        if flavor and holding.flavor != flavor:
            continue
        reason = _why(view, entry, holding, reclaims, now)
        if reason is not None:
            rank = {Reason.IdleReclaimed: 0.0, Reason.Reclaimed: 1.0}.get(reason, 2.0)
            found.append(((rank, w.priority, -holding.held.since, -w.seq), holding, reason))
    found.sort(key=lambda one: one[0])
    return [(holding, reason) for _, holding, reason in found[:MOST_TRIED]]


def _may_reclaim(view: Scheduler, entry: Entry, flavor: str) -> Mapping[str, bool]:
    """By queue: whether what it borrowed may be taken back for this one."""
    own = view.setup.queues.get(entry.w.queue)
    if own is None or not flavor or own.reclaim_within_cohort == "never":
        return {}
    if not view.quotas.within_nominal(entry.w.queue, flavor, entry.asked):
        return {}
    root = view.quotas.root(entry.w.queue)
    return {
        name: view.quotas.borrows(name, flavor)
        for name in view.setup.queues
        if name != entry.w.queue and view.quotas.root(name) == root
    }


def _why(view: Scheduler, entry: Entry, holding: Holding, reclaims: Mapping[str, bool], now: float) -> Reason | None:
    held, w = holding.held, entry.w
    victim = held.workload
    queue = view.setup.queues.get(victim.queue)
    patience = queue.reclaim_after_s if queue is not None else None
    if patience is not None and held.idle_since is not None and now - held.idle_since >= patience:
        return Reason.IdleReclaimed
    if victim.queue == w.queue:
        within = queue is not None and queue.preempt_within_queue == "lower_priority"
        return Reason.Preempted if victim.priority < w.priority and (within or view.policy.preemption) else None
    if reclaims.get(victim.queue):
        own = view.setup.queues[w.queue]
        if own.reclaim_within_cohort == "any" or victim.priority < w.priority:
            return Reason.Reclaimed
    limited = queue is not None and queue.limited
    if view.policy.preemption and not limited and victim.priority < w.priority:
        return Reason.Preempted
    return None


def _words(entry: Entry, holding: Holding, reason: Reason) -> str:
    w, victim = entry.w, holding.held.workload
    if reason is Reason.Reclaimed:
        return f"queue {victim.queue} had borrowed it; {w.name} of queue {w.queue} takes back its own quota"
    if reason is Reason.IdleReclaimed:
        return f"its GPUs were idle for longer than queue {victim.queue} allows; {w.name} needs them"
    return f"{w.name} has priority {w.priority}, above its {victim.priority}"
