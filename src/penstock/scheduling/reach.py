"""Whether a workload could run on the fleet as it is, with nobody else there; of one that takes fewer groups, at its least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from penstock.scheduling import partial
from penstock.scheduling.quota import totals

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler
    from penstock.scheduling.spec import Queue
    from penstock.scheduling.state import Workload


def could_run(view: Scheduler, w: Workload, asked: Mapping[str, float]) -> bool:
    queue = view.setup.queues.get(w.queue)
    if queue is None:
        return False
    if w.least:
        w = partial.smallest(w)
        asked = totals(w.parts)
    if view.quotas.limited(w.queue):
        return any(
            view.pool.could_place(w, view.pool.flavor_mask(name)) for name in within_reach(view, queue, w, asked)
        )
    return view.pool.could_place(w)


def within_reach(view: Scheduler, queue: Queue, w: Workload, asked: Mapping[str, float]) -> list[str]:
    """Flavors of which its queue could have what it asks for, if nobody used anything."""
    checks = ((flavor, view.quotas.check(w.queue, flavor, asked)) for flavor in view.flavors_for(queue, w))
    return [flavor for flavor, refusal in checks if refusal is None or not refusal.never]
