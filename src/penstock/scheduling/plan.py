"""One decision from one snapshot: a ``Scheduler`` built from scratch. The incremental one must decide the same."""

from __future__ import annotations

from penstock.scheduling import restart
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.spec import Setup
from penstock.scheduling.state import Decision, Snapshot


def build(setup: Setup, snapshot: Snapshot, now: float) -> Scheduler:
    """A scheduler that knows what the snapshot says, and nothing of how it came about."""
    scheduler = Scheduler(setup)
    for node in snapshot.nodes:
        scheduler.put_node(node)
    for reservation in snapshot.reservations:
        scheduler.put_reservation(reservation)
    for held in snapshot.held:
        scheduler.begin(held)
    for workload in snapshot.queued:
        scheduler.submit(workload)
    restart.usage(scheduler, snapshot.usage, now)
    restart.awaiting(scheduler, snapshot.awaiting)
    restart.promises(scheduler, snapshot.promises)
    return scheduler


def plan(setup: Setup, snapshot: Snapshot, now: float) -> Decision:
    """Who starts where, and who is evicted for whom. Pure and deterministic."""
    return build(setup, snapshot, now).plan(now)
