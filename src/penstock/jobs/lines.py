"""What each queue holds, lends and keeps waiting, for `penstock queues` and the console."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection, Row

from penstock.base.errors import InvalidInput
from penstock.base.quantities import format_time
from penstock.fleet import inventory
from penstock.jobs import view
from penstock.scheduling import lending, live, outlook
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.quota import Cell, Quotas, totals
from penstock.scheduling.spec import Capacity, Queue, beyond, parse_setup
from penstock.scheduling.state import Reservation, Workload

Who = tuple[str, Cell]  # a queue, and of what


def report(conn: Connection, now: float, memory: view.Memory) -> dict[str, Any]:
    """By queue, flavor and resource. A queue without quotas has one row, of the GPUs that it uses; so has one that the file
    does not name any more, while jobs run or wait in it.
    """
    seen, scheduler = view.fresh(conn, now, memory)
    waiting = Counter(seen_by_queue(scheduler))
    errors = outlook.errors(conn, now)
    use = _use(scheduler)
    lent = _lent(scheduler.quotas, use)
    items = []
    gone = sorted({*waiting, *(who[0] for who in use.used)} - seen.setup.queues.keys())
    for queue in (*seen.setup.queues.values(), *map(Queue, gone)):
        limited = scheduler.quotas.limited(queue.name)
        rows = _limited(scheduler, queue.name, use, lent) if limited else [_free(scheduler, queue.name)]
        items += [
            {
                "queue": queue.name,
                "cohort": queue.cohort,
                "weight": queue.weight,
                "in_file": queue.name in seen.setup.queues,
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
        "warnings": _too_much(conn, seen),
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
        found.append(_head(scheduler, row, entry.w, now) | {"place": taken[queue]})
    return found


def _head(scheduler: Scheduler, row: Row[Any], w: Workload, now: float) -> dict[str, Any]:
    wait = scheduler.why(w.id, now)
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


def _limited(scheduler: Scheduler, queue: str, use: _Use, lent: Mapping[Who, float]) -> list[dict[str, Any]]:
    rows = []
    for cell, quota in scheduler.quotas.queues[queue].quotas.items():
        used = use.used[queue, cell]
        rows.append(
            {
                "flavor": cell[0],
                "resource": cell[1],
                "nominal": quota.nominal,
                "used": used,
                "promised": use.promised[queue, cell],
                "borrowed": max(0.0, used - quota.nominal),
                "lent": lent[queue, cell],
            }
        )
    return rows


def _lent(quotas: Quotas, use: _Use) -> dict[Who, float]:
    """By queue and (flavor, resource): each tree of cohorts lends by itself."""
    stakes: dict[tuple[str, Cell], dict[str, lending.Stake]] = defaultdict(dict)
    common: dict[tuple[str, Cell], float] = defaultdict(float)
    for name, node in quotas.queues.items():
        for cell, quota in node.quotas.items():
            stake = lending.Stake(quota.nominal, use.used[name, cell], quota.lending_limit)
            stakes[node.path()[-1].name, cell][name] = stake
    for node in quotas.cohorts.values():
        for cell, quota in node.quotas.items():
            common[node.path()[-1].name, cell] += quota.nominal
    return {
        (name, tree[1]): amount
        for tree, found in stakes.items()
        for name, amount in lending.lent(found, common[tree]).items()
    }


@dataclass(frozen=True, slots=True)
class _Use:
    """By queue and (flavor, resource): what is held, by those too who were told to leave and do not count against a quota
    any more; and what is kept for those for whom they leave.
    """

    used: defaultdict[Who, float]
    promised: defaultdict[Who, float]


def _use(scheduler: Scheduler) -> _Use:
    found = _Use(defaultdict(float), defaultdict(float))
    for holding in scheduler.held.values():
        _add(found.used, holding.held.workload.queue, holding.flavor, holding.asked)
    for one in scheduler.awaiting.values():
        _add(found.promised, one.entry.w.queue, one.flavor, one.entry.asked)
    return found


def _add(to: defaultdict[Who, float], queue: str, flavor: str, asked: Mapping[str, float]) -> None:
    for resource, amount in asked.items():
        to[queue, (flavor, resource)] += amount


def _free(scheduler: Scheduler, queue: str) -> dict[str, Any]:
    held = [holding.held.workload for holding in scheduler.held.values()]
    coming = [one.entry.w for one in scheduler.awaiting.values()]
    used, promised = (
        sum(totals(w.parts).get("gpus", 0.0) for w in some if w.queue == queue) for some in (held, coming)
    )
    return {
        "flavor": "default", "resource": "gpus", "nominal": None,
        "used": used, "promised": promised, "borrowed": 0.0, "lent": 0.0,
    }  # fmt: skip


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


def _too_much(conn: Connection, seen: view.View) -> list[str]:
    """Quotas that were within the fleet when they were applied, and are not since it shrank."""
    has = _has(conn, seen)
    return [f"{words} now; jobs that are within their quota may wait for nodes" for words in beyond(seen.setup, has)]


def capacity(conn: Connection, text: str) -> Capacity | None:
    """What the fleet has of each flavor of a queue file; of a bad file, nothing: parsing it again tells what is wrong."""
    seen = view.View(view.Memory())
    try:
        seen.setup = parse_setup(text)
    except InvalidInput:
        return None
    return _has(conn, seen)


def _has(conn: Connection, seen: view.View) -> dict[str, dict[str, float]]:
    """Of every engine: quotas hold on those that schedule themselves too, where they were compiled."""
    found: dict[str, dict[str, float]] = {}
    for row in inventory.all_nodes(conn):
        node = seen.node(row)
        has = found.setdefault(node.flavor, {"gpus": 0.0, "cpus": 0.0, "memory": 0.0})
        has["gpus"] += sum(len(gpu.mig) or 1 for gpu in node.gpus)  # a MIG instance counts as one
        has["cpus"] += node.cpus
        has["memory"] += node.memory
    return found
