"""Idle holders: how long their queue bears them. Pure.

A holder all of whose GPUs have done nothing for its queue's ``reclaim_idle_after`` may be evicted for whoever could start
then, whatever its priority or quota (preemption.py says who goes first); never when nobody waits.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler
    from penstock.scheduling.holding import Holding


def set_idle(view: Scheduler, id: str, since: float | None) -> None:  # noqa: A002 - the word of every other place here
    """Since when the GPUs that it holds have done nothing, as telemetry says; None: they work, or nobody knows."""
    holding = view.held.get(id)
    if holding is not None and holding.held.idle_since != since:
        holding.held = replace(holding.held, idle_since=since)
        mind(view, holding)


def mind(view: Scheduler, holding: Holding) -> None:
    """Note when its queue's patience ends."""
    w, since = holding.held.workload, holding.held.idle_since
    queue = view.setup.queues.get(w.queue)
    if since is not None and queue is not None and queue.reclaim_after_s is not None:
        view.patience[w.id] = since + queue.reclaim_after_s
    else:
        view.patience.pop(w.id, None)


def lose(view: Scheduler, now: float) -> bool:
    """Whether some queue has had enough by now: then evicting for those who wait is tried anew."""
    over = [id_ for id_, at in view.patience.items() if at <= now]
    for id_ in over:
        del view.patience[id_]
    if over:
        for entry in view.lines.entries.values():
            entry.tried_at = -1
    return bool(over)
