"""Whom to evict so that a workload can start: as few as do, and only if it then really starts.

Who may be a victim of whom:

- *idle* holders past their queue's patience, of anybody;
- *preempted*: in the own queue those of lower priority, where the queue says so; without quotas,
  ``Policy.preemption`` lets a higher priority evict a lower one anywhere;
- *reclaimed*: what was borrowed of the asked resources, by a workload with which its own queue stays within its nominal
  quota (Kueue's reclaimWithinCohort); never from a queue within its own, nor from inside a cohort within its own;
- *fair share* (order fairshare and ``Policy.preemption``): what was borrowed, by a workload that borrows too, if
  afterwards its queue's borrowed share is no larger than the victim's queue's is then (Kueue's
  LessThanOrEqualToFinalShare). Work within nominal quota is never such a victim.

Why it ends, in a tree of any shape, while nothing ends by itself. Shares are compared between queues, not between
cohorts (weights multiply down the tree), so Kueue's proof for one flat cohort, which it leaves open for hierarchies,
holds: say queue V loses a workload to queue P. V's borrowed share falls, and P's after it is at most V's then. So of
both the larger falls, and the queues' borrowed shares, sorted from the largest, fall in lexicographic order; a reclaim
lowers V's and leaves P's at nothing, so it lowers that list too. Evictions by priority leave a queue's larger
priorities where they were and put a larger for a smaller. What can raise these again is only an admission beside free
capacity, and evictions make no capacity. Independently of all that, whoever was evicted ``max_evictions`` times is no
victim any more: all evictions together are at the most that times the workloads, and an eviction takes no more
victims than its workload needs nodes and quota for. tests/scheduling/test_preemption.py fuzzes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from penstock.base.reasons import Reason
from penstock.scheduling.state import Evict, Share
from penstock.scheduling.victims import candidates

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler
    from penstock.scheduling.holding import Holding
    from penstock.scheduling.lines import Entry

SLACK = 1e-9


@dataclass(frozen=True, slots=True)
class Found:
    evict: tuple[Evict, ...]
    flavor: str
    nodes: tuple[str, ...]


def search(view: Scheduler, entry: Entry, now: float) -> Found | None:
    """The victims, or None when no eviction helps. Changes nothing."""
    w = entry.w
    queue = view.setup.queues.get(w.queue)
    flavors = view.flavors_for(queue, w) if queue is not None and view.quotas.limited(w.queue) else ("",)
    for flavor in flavors:
        found = _in_flavor(view, entry, flavor, now)
        if found is not None:
            return found
    return None


def _in_flavor(view: Scheduler, entry: Entry, flavor: str, now: float) -> Found | None:
    possible = candidates(view, entry, flavor, now)
    first = next(possible, None)
    if first is None:
        return None
    trial = _Trial(view, entry, flavor, now)
    with view.pool.what_if():
        try:
            if trial.fits_by_itself():
                return None
            chosen: list[tuple[Holding, Reason]] = []
            shares = None
            for holding, reason in chain((first,), possible):
                if reason is Reason.Reclaimed and not trial.may_take(holding):
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
    own = not flavor or view.quotas.within_nominal(entry.w.queue, flavor, entry.asked)
    evict = tuple(
        Evict(h.held.workload.id, reason, _words(entry, h, reason, own=own), entry.w.id) for h, reason in chosen
    )
    return Found(evict, flavor or "default", tuple(share.node for share in shares))


def _fewest(
    trial: _Trial, chosen: list[tuple[Holding, Reason]], shares: tuple[Share, ...]
) -> tuple[list[tuple[Holding, Reason]], tuple[Share, ...]]:
    """Let back whoever is not needed, the first chosen (the worst off) last."""
    kept = dict.fromkeys(chosen)
    for one in reversed(chosen[:-1]):
        trial.restore(one[0])
        again = trial.place()
        if again is None:
            trial.evict(one[0])
        else:
            del kept[one]
            shares = again
    return list(kept), shares


class _Trial:
    """What would be if some were evicted: the pool by its own what-if, quotas by booking back and forth."""

    def __init__(self, view: Scheduler, entry: Entry, flavor: str, now: float) -> None:
        self.view, self.entry, self.flavor, self.now = view, entry, flavor, now
        self.out: dict[str, Holding] = {}
        self.spent: set[str] = set()  # queues that borrow no more; while others are evicted, they will not again
        self.within = view.open_to(entry.w, now)
        if flavor:
            mask = view.pool.flavor_mask(flavor)
            self.within = mask if self.within is None else self.within & mask

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
        if self.flavor and not view.quotas.fits(w.queue, self.flavor, self.entry.asked):
            return None
        return view.pool.find(w, within=self.within)

    def fits_by_itself(self) -> bool:
        """Now, so that what keeps it waiting is no victim's place but a promise; or as soon as those are gone who are
        leaving already and for nobody (cancelled, or evicted before the server was started again).
        """
        if self.place() is not None:
            return True
        claimed = {id_ for awaiting in self.view.awaiting.values() for id_ in awaiting.victims}
        going = [one for id_, one in self.view.leaving.items() if id_ not in claimed]
        for one in going:
            self.evict(one)
        fits = bool(going) and self.place() is not None
        for one in going:
            self.restore(one)
        return fits

    def may_take(self, holding: Holding) -> bool:
        """Whether its queue still borrows, now that others of it are evicted, and by what rule it may lose this."""
        quotas, w, victim = self.view.quotas, self.entry.w, holding.held.workload
        asked = self.entry.asked
        if victim.queue in self.spent:
            return False
        if not quotas.reclaimable(victim.queue, w.queue, self.flavor, asked):
            self.spent.add(victim.queue)
            return False
        if quotas.within_nominal(w.queue, self.flavor, asked):
            return True
        self.evict(holding)
        quotas.take(w.queue, self.flavor, asked)
        mine, theirs = (quotas.borrowed_share(name, self.flavor) for name in (w.queue, victim.queue))
        quotas.give(w.queue, self.flavor, asked)
        self.restore(holding)
        return mine <= theirs + SLACK and theirs >= -SLACK


def may_evict(view: Scheduler, entry: Entry) -> bool:
    """Whether there is any rule by which anybody could be evicted for it: most often there is none, and no search."""
    queues = view.setup.queues
    if view.policy.preemption or any(queue.reclaim_after_s is not None for queue in queues.values()):
        return True
    own = queues.get(entry.w.queue)
    return own is not None and (own.preempt_within_queue != "never" or view.quotas.limited(own.name))


def _words(entry: Entry, holding: Holding, reason: Reason, *, own: bool) -> str:
    w, victim = entry.w, holding.held.workload
    if reason is Reason.Reclaimed:
        if own:
            return f"queue {victim.queue} had borrowed it; {w.name} of queue {w.queue} takes back its own quota"
        return f"queue {victim.queue} borrows more than its fair share; {w.name} of queue {w.queue} borrows less"
    if reason is Reason.IdleReclaimed:
        return f"its GPUs were idle for longer than queue {victim.queue} allows; {w.name} needs them"
    return f"{w.name} has priority {w.priority}, above its {victim.priority}"
