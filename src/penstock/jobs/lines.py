"""What each queue holds, lends and keeps waiting, for `penstock queues` and the console."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy.engine import Connection, Row

from penstock.base.errors import InvalidInput
from penstock.base.quantities import format_time
from penstock.fleet import inventory
from penstock.jobs import admission, view
from penstock.scheduling import live, outlook
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.quota import TreeNode, totals
from penstock.scheduling.spec import Capacity, parse_setup
from penstock.scheduling.state import Reservation, Workload


def report(conn: Connection, now: float, memory: view.Memory) -> dict[str, Any]:
    """By queue, flavor and resource. A queue without quotas has one row, of the GPUs that it uses."""
    seen, scheduler = view.fresh(conn, now, memory)
    waiting = Counter(seen_by_queue(scheduler))
    errors = outlook.errors(conn, now)
    items = []
    for queue in seen.setup.queues.values():
        rows = _limited(scheduler, queue.name) if queue.limited else [_free(scheduler, queue.name)]
        items += [
            {
                "queue": queue.name,
                "cohort": queue.cohort,
                "weight": queue.weight,
                **row,
                "waiting": waiting[queue.name],
                "start_error": errors.get(queue.name),
            }
            for row in rows
        ]
    row = live.newest(conn)
    return {
        "policy": seen.setup.policy.name,
        "generation": row.generation if row is not None else 0,
        "items": items,
        "next_cursor": None,
    }


def heads(conn: Connection, now: float, memory: view.Memory, most: int) -> list[dict[str, Any]]:
    """Of each queue the first ``most`` in line, in their order of service, then those that could never run: why each
    waits, and when it may start. As a look at the fleet by itself sees it: what starts at this moment is no longer there.
    """
    seen, scheduler = view.fresh(conn, now, memory)
    scheduler.plan(now)
    taken: Counter[str] = Counter()
    found = []
    for entry in (*scheduler.lines.in_order(), *scheduler.aside.values()):
        queue = entry.w.queue
        row = seen.rows.get(entry.w.id)
        if row is None or taken[queue] >= most:
            continue
        taken[queue] += 1
        found.append(_head(seen, scheduler, row, entry.w, now) | {"place": taken[queue]})
    return found


def _head(seen: view.View, scheduler: Scheduler, row: Row[Any], w: Workload, now: float) -> dict[str, Any]:
    wait = admission.wait(seen, scheduler, w.id, now)
    return {
        "queue": w.queue,
        "project": w.project,
        "name": w.name,
        "user": w.user,
        "nodes": sum(part.count for part in w.parts),
        "gpus": totals(w.parts).get("gpus", 0.0),
        "queued_at": format_time(row.queued_at),
        "reason": wait.reason,
        "message": wait.message,
        "helps": list(wait.helps),
        "start_estimate": format_time(wait.start_estimate),
        "firm": scheduler.promise(w.id) is not None,
    }


def seen_by_queue(scheduler: Scheduler) -> list[str]:
    """The queue of everyone who waits, those included that could never run."""
    return [entry.w.queue for entry in (*scheduler.lines.entries.values(), *scheduler.aside.values())]


def _limited(scheduler: Scheduler, queue: str) -> list[dict[str, Any]]:
    node = scheduler.quotas.queues[queue]
    rows = []
    for cell, quota in node.quotas.items():
        used = node.usage.get(cell, 0.0)
        idle = max(0.0, quota.nominal - used)
        root = _root(node)
        short = max(0.0, root.usage.get(cell, 0.0) - used) if root is not node else 0.0
        lendable = idle if quota.lending_limit is None else min(idle, quota.lending_limit)
        others = _borrowed_by_others(scheduler, queue, cell)
        rows.append(
            {
                "flavor": cell[0],
                "resource": cell[1],
                "nominal": quota.nominal,
                "used": used,
                "borrowed": max(0.0, used - quota.nominal),
                "lent": min(lendable, others, short),
            }
        )
    return rows


def _borrowed_by_others(scheduler: Scheduler, queue: str, cell: tuple[str, str]) -> float:
    """What queues of the same tree hold above their nominal."""
    root = _root(scheduler.quotas.queues[queue])
    found = 0.0
    for name, node in scheduler.quotas.queues.items():
        if name != queue and _root(node) is root and cell in node.quotas:
            found += max(0.0, node.usage.get(cell, 0.0) - node.quotas[cell].nominal)
    return found


def _root(node: TreeNode) -> TreeNode:
    while node.parent is not None:
        node = node.parent
    return node


def _free(scheduler: Scheduler, queue: str) -> dict[str, Any]:
    held = [holding.held.workload for holding in scheduler.held.values()]
    used = sum(totals(w.parts).get("gpus", 0.0) for w in held if w.queue == queue)
    return {"flavor": "default", "resource": "gpus", "nominal": None, "used": used, "borrowed": 0.0, "lent": 0.0}


def in_the_way(conn: Connection, window: Reservation, now: float, memory: view.Memory) -> list[dict[str, Any]]:
    """The jobs that hold its nodes and may do so still when it begins, though it keeps them out."""
    found = []
    for holding in view.fresh(conn, now, memory)[1].held.values():
        held = holding.held
        nodes = sorted(window.nodes.intersection(view.node_names(held.shares)))
        if nodes and window.keeps_out(held.workload) and holding.end > window.start and not held.leaving:
            one = held.workload
            found.append(
                {"project": one.project, "name": one.name, "nodes": nodes, "ends_by": format_time(held.ends_by)}
            )
    return sorted(found, key=lambda item: (item["project"], item["name"]))


def capacity(conn: Connection, text: str) -> Capacity | None:
    """What the fleet has of each flavor of a queue file; of a bad file, nothing: parsing it again tells what is wrong."""
    seen = view.View(view.Memory())
    try:
        seen.setup = parse_setup(text)
    except InvalidInput:
        return None
    found: dict[str, dict[str, float]] = {}
    for row in inventory.all_nodes(conn):
        node = seen.node(row)
        has = found.setdefault(node.flavor, {"gpus": 0.0, "cpus": 0.0, "memory": 0.0})
        has["gpus"] += sum(len(gpu.mig) or 1 for gpu in node.gpus)  # a MIG instance counts as one
        has["cpus"] += node.cpus
        has["memory"] += node.memory
    return found
