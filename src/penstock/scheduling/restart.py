"""What a scheduler knows that no row of a job or node says, and how another takes it over: promises, for whom others
leave, and what was used. With it, one that is built anew decides as the one before would have.

Of order ``multifactor`` priorities are brought up to date at a take-over, as Slurm does when it starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from penstock.scheduling.fairshare import faded
from penstock.scheduling.holding import Awaiting
from penstock.scheduling.state import Awaited, Promise, Snapshot, Usage, Workload
from penstock.scheduling.timeline import Window, end_of

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler


def snapshot(view: Scheduler) -> Snapshot:
    """The view as one frozen value."""
    return Snapshot(
        tuple(view.pool.states()),
        tuple(holding.held for holding in view.held.values()),
        tuple(entry.w for entry in (*view.lines.entries.values(), *view.aside.values())),
        tuple(view.reservations.known.values()),
        tuple(window.promise for window in view.windows.values()),
        tuple(awaited(view, id_) for id_ in view.awaiting),
        tuple(used(view, path) for path in view.fair.accounts) if view.by_use else (),
    )


def awaited(view: Scheduler, id_: str) -> Awaited:
    one = view.awaiting[id_]
    nodes = tuple(node.name for i, node in enumerate(view.pool.nodes) if node is not None and one.mask >> i & 1)
    return Awaited(id_, one.flavor, nodes, frozenset(one.victims))


def used(view: Scheduler, path: tuple[str, ...]) -> Usage:
    account = view.fair.accounts[path]
    return Usage(path, account.decayed, account.at, account.rate)


def promises(view: Scheduler, given: Iterable[Promise]) -> None:
    """What was promised before; what does not stand any more is not. After ``awaiting``."""
    for promise in given:
        entry = view.lines.entries.get(promise.id)
        names = [share.node for share in promise.shares]
        if entry is None or not view.backfills or not all(map(view.pool.takes, names)):
            continue
        mask = view.pool.node_mask(names)
        if not view.reservations.blocked(entry.w, promise.start) & mask:
            view.timeline.book(Window(promise, end_of(entry.w, promise.start), mask))


def awaiting(view: Scheduler, given: Iterable[Awaited]) -> None:
    """For whom others leave: its quota is booked, and its nodes are kept. After everybody is in line or held."""
    for one in given:
        entry = view.lines.entries.get(one.id)
        if entry is None:
            continue
        view.quotas.take(entry.w.queue, one.flavor, entry.asked)
        held = {id_: view.held[id_].held for id_ in one.victims if id_ in view.held}
        victims = {id_ for id_, each in held.items() if each.leaving}  # one that left may have been admitted again
        view.awaiting[one.id] = Awaiting(entry, one.flavor, view.pool.node_mask(one.nodes), victims)


def usage(view: Scheduler, given: Iterable[Usage], now: float) -> None:
    """What each account has used; after everybody is held. What ended while nobody looked counts as held until now."""
    if not view.by_use:
        return
    found: set[tuple[str, ...]] = set()
    for one in given:
        queue = one.path[-2] if len(one.path) > 1 else ""
        if queue in view.setup.queues:
            view.path_of(Workload("", "", 0.0, (), queue, one.path[-1]))
        account = view.fair.accounts.get(one.path)
        if account is None:
            continue  # of a queue or cohort that is no more
        account.decayed, account.at = one.decayed, one.at
        if account.rate == one.rate:
            found.add(one.path)
        else:
            account.decayed, account.at = faded(one.decayed, one.rate, now - one.at, view.fair.half_life), now
            view.fair.changed.add(one.path)
        account.scored_in = -1
    view.fair.changed -= found


def leaves(view: Scheduler, id_: str) -> None:
    """Somebody asked a held one to end: it needs no eviction any more."""
    holding = view.held.get(id_)
    if holding is not None and not holding.held.leaving:
        holding.held = replace(holding.held, leaving=True)
        view.leaving[id_] = holding
