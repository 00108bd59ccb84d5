"""A workload's priority under the order ``multifactor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.scheduling.fairshare import multifactor
from penstock.scheduling.quota import totals

if TYPE_CHECKING:
    from penstock.scheduling.cycle import Scheduler
    from penstock.scheduling.state import Workload


def score(view: Scheduler, w: Workload) -> float:
    """Slurm's multifactor priority, plus the workload's own."""
    policy = view.policy
    capacity = view.fair.capacity
    size = view.asked_of(w.parts) or totals(w.parts)
    queue = view.setup.queues.get(w.queue)
    factors = {
        "age": min(1.0, max(0.0, view.now - w.queued_at) / policy.max_age_s),
        "fairshare": view.fair.fair_tree(view.path_of(w), view.now),
        "jobsize": size.get("gpus", 0.0) / capacity["gpus"] if capacity.get("gpus") else 0.0,
        "partition": queue.partition if queue else 0.0,
        "qos": queue.qos if queue else 0.0,
    }
    return multifactor(dict(policy.weights), factors) + w.priority
