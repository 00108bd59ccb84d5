"""How many replicas a service's queue may have at once, as the schedulers' quotas are: what the autoscaler may ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sqlalchemy.engine import Connection

from penstock.jobs.view import Memory, engine_of, fresh, queue_of, to_workload
from penstock.scheduling import live
from penstock.scheduling.quota import SLACK, Quotas, TreeNode, totals
from penstock.serving import jobs
from penstock.serving.versions import Held


def most(conn: Connection, held: Held, memory: Memory, now: float) -> int | None:
    """What its replicas hold and what is left; None: no quota bounds it, or another engine's does, which is not known here."""
    setup = live.current(conn)
    spec = jobs.as_job(held.row.name, held.spec)
    queue = setup.queues.get(queue_of(setup, spec, held.row.project))
    engine = engine_of(setup, spec, held.row.project)
    if queue is None or engine not in (None, memory.own) or not Quotas(setup).limited(queue.name):
        return None
    workload = to_workload(setup, spec, held.row.project, held.row.user, memory.speed)
    _, scheduler = fresh(conn, now, memory)
    asked = totals(workload.parts)
    node = scheduler.quotas.queues[queue.name]
    left = [room(node, flavor, asked) for flavor in scheduler.flavors_for(queue, workload)]
    if None in left:
        return None
    mine = sum(one.id in scheduler.held for one in held.replicas)
    return mine + sum(one for one in left if one is not None)


def room(node: TreeNode, flavor: str, asked: Mapping[str, float]) -> int | None:
    """How many more of what is asked fit a queue, of one flavor: what is free, or its own though others have borrowed it."""
    cells = [((flavor, resource), amount) for resource, amount in asked.items() if (flavor, resource) in node.quotas]
    if not cells:
        return None

    def left(cell: tuple[str, str]) -> float:
        return max(node.available(cell), node.subtree.get(cell, 0.0) - node.usage.get(cell, 0.0))

    return max(0, min(math.floor((left(cell) + SLACK) / amount) for cell, amount in cells))
