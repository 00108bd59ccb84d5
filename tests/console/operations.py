"""What the fleet in memory says of its queues, as the API says it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict

from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint
from penstock.diagnosis.routes import Asked, answered
from penstock.diagnosis.state import Happened
from tests.diagnosis.scenes import Scene, adds, from_step, on

_GIB = 1 << 30


class NodesQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: list[str] = []


class CostQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    month: str | None = None
    by: str | None = None
    row: str | None = None
    since: str | None = None
    until: str | None = None


def report() -> dict[str, Any]:
    items = [{"key": {"project": "default"}, "amount": 12.5, "quantities": {}}]
    return {"currency": "USD", "items": items, "total": 12.5}


def queue_report() -> dict[str, Any]:
    """Two queues of a cohort, one of which borrows what the other lends, and one that stands alone."""

    def row(queue: str, cohort: str | None, resource: str, *figures: float | None, waiting: int) -> dict[str, Any]:
        nominal, used, borrowed, lent = figures
        return {
            "queue": queue,
            "cohort": cohort,
            "weight": 2.0 if queue == "research" else 1.0,
            "flavor": "h200" if cohort else "default",
            "resource": resource,
            "nominal": nominal,
            "used": used,
            "borrowed": borrowed,
            "lent": lent,
            "waiting": waiting,
        }

    items = [
        row("research", "ai", "gpus", 64, 88, 24, 0, waiting=37),
        row("research", "ai", "memory", 512 * _GIB, 480 * _GIB, 0, 0, waiting=37),
        row("serving", "ai", "gpus", 64, 20, 0, 24, waiting=0),
        row("default", None, "gpus", None, 3, 0, 0, waiting=2),
    ]
    return {"policy": "fairshare, skip, easy backfill", "generation": 4, "items": items, "next_cursor": None}


def waiting_report(now: float) -> dict[str, Any]:
    def head(queue: str, place: int, name: str | None, reason: str, message: str, **more: Any) -> dict[str, Any]:
        return {
            "queue": queue,
            "place": place,
            "project": "vision" if name else None,
            "name": name,
            "user": "linus" if name else None,
            "nodes": more.get("nodes", 1),
            "gpus": more.get("gpus", 1.0),
            "queued_at": format_time(now - 1560 / place),
            "reason": reason,
            "message": message,
            "helps": more.get("helps", []),
            "start_estimate": format_time(now + more["starts_in"]) if "starts_in" in more else None,
            "firm": more.get("firm", False),
        }

    items = [
        head(
            "research", 1, "llm-70b", "WaitingForResources",
            "needs 32 GPUs in one rack; the best rack has 12 free; 4 are promised to job probe at 14:05",
            nodes=4, gpus=32.0, starts_in=5400.0, firm=True, helps=["uncordon node-2 (`penstock uncordon node-2`)"],
        ),
        head("research", 2, None, "WaitingBehind", "", gpus=8.0, starts_in=9000.0),
        head(
            "default", 1, "giant", "Unschedulable", "needs 16 GPUs on one node; the largest node has 8",
            gpus=16.0, helps=["ask for 8 GPUs on 2 nodes"],
        ),
    ]  # fmt: skip
    return {"at": format_time(now), "items": items, "next_cursor": None}


def _answer(scale: float, policy: str, *, real: bool = False) -> dict[str, Any]:
    at = [3600.0 * n for n in range(200)]
    wave = [0.5 + 0.45 * math.sin(n / 9) for n in range(200)]
    queues = {"research": 0.7, "serving": 0.3}
    rows = {
        name: {
            "jobs": int(9000 * share), "mean_wait_s": 5400 * scale, "p50_wait_s": 600 * scale, "p95_wait_s": 21600 * scale,
            "evictions": 0, "lost_gpu_hours": 0.0, "nominal_gpu_hours": None, "used_gpu_hours": 41000 * share,
        }
        for name, share in queues.items()
    }  # fmt: skip
    series: dict[str, dict[str, list[Any]]] = {
        "gpus": {name: [512 * share * w for w in wave] for name, share in queues.items()},
        "waiting": {name: [90 * share * w * scale for w in wave] for name, share in queues.items()},
        "wait_s": {name: [7200 * w * scale if n % 7 else None for n, w in enumerate(wave)] for name in queues},
    }
    every: dict[str, list[float]] = {
        kind: [sum(row[n] or 0 for row in found.values()) for n in range(200)] for kind, found in series.items()
    }
    told = {f"{what}_{whose}_s": 21600 * scale for what in ("p50", "p95", "mean") for whose in ("real", "replay")}
    return {
        "jobs": 9000, "mean_completion_s": 21000.0, "mean_wait_s": 5400 * scale, "p50_wait_s": 600 * scale,
        "p95_wait_s": 21600 * scale, "makespan_s": 720_000.0, "utilization": 0.71 / scale**0.2, "events": 18000,
        "wall_s": 0.9, "by_queue": rows, "evictions": 0, "failure_restarts": 0, "lost_gpu_hours": 0.0, "unplaced": 0,
        "start_estimate_error": None, "reality": {"jobs": 9000, **told} if real else None, "policy": policy,
        "trace": {"rows": 9004, "rejected": 0, "rejected_by_reason": {}, "noted_by_reason": {"asks no GPU": 4}},
        "timeline": {"width_s": 3600.0, "at": at, "capacity": 512, **series, "all": every},
    }  # fmt: skip


def replay_record(now: float, state: str = "done", **more: Any) -> dict[str, Any]:
    """Our own history, against a fifth more nodes and easy backfill."""
    side = {
        "nodes": 64, "gpus_per_node": 8, "gpu_model": "NVIDIA H200", "policy": None, "blocking": None, "backfill": None,
        "queues": "today", "mtbf": None,
    }  # fmt: skip
    done = state == "done"
    return {
        "kind": "Replay",
        "id": more.get("id", "01M89PKG4S2BR8T64VYYBVY5JM"),
        "by": "ada",
        "created_at": format_time(now - 90),
        "state": state,
        "message": more.get("message", ""),
        "problem": more.get("problem"),
        "progress": {"scenario": 1, "ended": 3000, "of": 9000} if state == "running" else None,
        "asked": {
            "source": {"kind": "own", "days": 30, "cluster": None, "jobs": 5000, "seed": 0, "name": None, "preset": "csv"},
            "a": side,
            "b": side | {"nodes": 77, "backfill": "easy"},
        },
        "result": {"scenarios": [_answer(1.0, "fairshare-skip", real=True), _answer(0.4, "fairshare-skip-easy")]} if done else None,
        "cost": [
            {
                "gpus": nodes * 8, "currency": "USD", "reserved": None, "spot": None,
                "on_demand": {"gpu_hour": 2.5, "hour": 2.5 * nodes * 8, "month": 2.5 * nodes * 8 * 730},
            }
            for nodes in (64, 77)
        ],
    }  # fmt: skip


SOURCES: dict[str, Any] = {
    "fleet": {"nodes": 64, "gpus": 512, "gpus_per_node": 8, "gpu_model": "NVIDIA H200"},
    "own": {"jobs": 9004, "first": "2026-10-01T00:00:00.000Z", "last": "2026-11-25T00:00:00.000Z"},
    "traces": ["march.csv"],
    "clusters": ["seren", "philly"],
}


MONTH = "2026-11"


def outlook() -> dict[str, Any]:
    """A month of which 24 days are over, dearer from week to week, with commitments that are not all up."""
    days: list[dict[str, Any]] = []
    for n in range(24):
        used, idle, unused = 2000 + 45 * n + 300 * (n % 5), 500 - 12 * n, 90
        parts = {"used": used, "idle": idle, "unused": unused}
        days.append({"day": f"{MONTH}-{n + 1:02d}"} | {kind: amount * 10**9 for kind, amount in parts.items()})
    sums: dict[str, int] = {kind: sum(day[kind] for day in days) for kind in ("used", "idle", "unused")}
    return {
        "currency": "USD",
        "since": f"{MONTH}-01T00:00:00.000Z",
        "until": f"{MONTH}-25T00:00:00.000Z",
        "ends": "2026-12-01T00:00:00.000Z",
        "nanos": sum(sums.values()),
        **sums,
        "days": days,
        "forecast": {
            "expected": 106_400.0, "low": 101_200.0, "high": 111_900.0, "per_hour": 141.3,
            "method": "spent, and for the rest the greater of the mean of the last 14 whole days and what the fleet costs now; interval 80%",
        },
    }  # fmt: skip


def bill(by: str | None) -> dict[str, Any]:
    whole = outlook()
    used = whole["used"]
    names = {"language": 0.55, "vision": 0.3, "science": 0.15}
    if by is not None:
        items = [
            {"kind": "used", "name": name, "nanos": int(used * share), "hours": 1e4 * share}
            for name, share in names.items()
        ]
        items += [{"kind": kind, "name": "", "nanos": whole[kind], "hours": 1e3} for kind in ("idle", "unused")]
        return {"currency": "USD", "nanos": whole["nanos"], "items": items}
    rows = [
        {
            "id": f"used/on_demand/gpus:H200/{name}/{job}",
            "kind": "used",
            "key": {"project": name, "user": "ada", "job": job, "node": "node-1", "queue": "research"},
            "paid": ["on_demand", "gpus:H200"],
            "nanos": int(used * share / 2),
            "hours": 5e3 * share,
            "intervals": [f"{job}.1/node-1/gpus:H200"],
        }
        for name, share in names.items()
        for job in ("digits", "llm-70b")
    ]
    return {"currency": "USD", "nanos": whole["nanos"], "items": rows}


TRACE: dict[str, Any] = {
    "currency": "USD",
    "nanos": 12_340_000_000,
    "hours": 4.9,
    "items": [
        {
            "id": "digits.1/node-1/gpus:H200", "node": "node-1", "resource": "gpus:H200", "quantity": 4.0,
            "started_at": f"{MONTH}-03T08:00:00.000Z", "ended_at": f"{MONTH}-03T09:13:30.000Z",
        }
    ],
}  # fmt: skip

BUDGETS = [
    {
        "project": project, "amount": amount, "spent": spent, "thresholds": [80, 100], "refuse": refusing, "contact": "",
        "currency": "USD", "share": share, "reached": reached, "refusing": refusing,
    }
    for project, amount, spent, share, reached, refusing in (
        ("language", "40000", "37810.00", 94.52, 80, False),
        ("vision", "20000", "20500.00", 102.5, 100, True),
        ("science", "30000", "10311.00", 34.37, None, False),
    )
]  # fmt: skip

IDLE: dict[str, Any] = {
    "currency": "USD", "by": "user", "since": None, "until": None, "total": 412.5,
    "items": [{"key": {"user": "linus"}, "idle_gpu_hours": 165.0, "gpu_hours": 900.0, "amount": 412.5, "idle_now": 8}],
}  # fmt: skip


def told(what: Callable[[], dict[str, Any]]) -> Callable[[Call], Awaitable[dict[str, Any]]]:
    async def handler(_call: Call) -> dict[str, Any]:
        return what()

    return handler


async def _bill(call: Call) -> dict[str, Any]:
    return bill(call.query.by)


def cost_endpoints() -> list[Endpoint]:
    get, cost = "GET", "/api/v1/cost"
    return [
        Endpoint(get, cost + "/outlook", "bill.read", told(outlook), "", query=CostQuery),
        Endpoint(get, cost + "/bill", "bill.read", _bill, "", query=CostQuery),
        Endpoint(get, cost + "/trace", "bill.read", told(lambda: TRACE), "", query=CostQuery),
        Endpoint(get, cost + "/idle", "cost.read", told(lambda: IDLE), "", query=CostQuery),
        Endpoint(get, cost + "/report", "cost.read", told(report), "", query=CostQuery),
        Endpoint(get, "/api/v1/budgets", "cost.read", told(lambda: {"items": BUDGETS}), ""),
        Endpoint(get, "/api/v1/projects/{project}/forecast", "cost.read", told(lambda: {"expected": 46100.0}), ""),
    ]


def glance(nodes: list[dict[str, Any]]) -> dict[str, Any]:
    """As fleet/floor.py has it: of the GPUs that are held every eleventh does nothing."""
    items, count = [], 0
    for node in nodes:
        state = "lost" if not node["ready"] else "cordoned" if node["cordoned"] else "ready"
        cells = ""
        for gpu in node["capacity"]["gpus"]:
            count += 1
            held = "h" if count % 11 else "i"
            cells += (
                "l" if state == "lost" else held if gpu["id"] in node["allocated"]["gpus"] else "fc"[state != "ready"]
            )
        items.append(
            {
                "name": node["name"],
                "block": node.get("block", ""),
                "rack": node.get("rack", ""),
                "state": state,
                "cells": cells,
                "jobs": len(node["jobs"]),
            }
        )
    every = "".join(item["cells"] for item in items)
    words = {"h": "held", "i": "idle", "f": "free", "c": "cordoned", "l": "lost"}
    states = [item["state"] for item in items]
    return {
        "at": None,
        "nodes": {"all": len(items)} | {state: states.count(state) for state in ("ready", "cordoned", "lost")},
        "gpus": {"all": len(every)} | {word: every.count(cell) for cell, word in words.items()},
        "items": items,
    }


def many_nodes(count: int) -> list[dict[str, Any]]:
    """A fleet of eights, nine tenths of it held, one node in fifty cordoned, one in ninety lost."""
    found = []
    for n in range(count):
        gpus = [{"id": f"GPU-{n}-{g}", "model": "NVIDIA H200"} for g in range(8)]
        lost, cordoned = n % 90 == 37, n % 50 == 21
        held = [] if lost else [gpu["id"] for g, gpu in enumerate(gpus) if (n * 8 + g) * 7919 % 100 < 90]
        found.append(
            {
                "kind": "Node", "name": f"node-{n}", "engine": "simulated",
                "capacity": {"cpus": 128.0, "memory": 2048 * _GIB, "gpus": gpus},
                "allocated": {"cpus": 16.0 * len(held), "memory": 256 * _GIB * len(held), "gpus": held},
                "cordoned": cordoned, "ready": not lost, "reason": "Lost" if lost else "Joined", "message": "",
                "conditions": [], "jobs": [{"project": "vision", "name": f"job-{n}"}] if held else [],
            }
        )  # fmt: skip
    return found


def diagnosis(job: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """Of a training whose rank 1 waits for data; the job's own words stand where a stranger's may."""
    late = Scene(nodes={0: "node-0", 1: "node-0"}).evidence(from_step(60, on(1, adds(data=0.03))))
    told = str(job["status"].get("message") or "no telemetry of its nodes is kept")
    happened = (Happened(late.at - 3, told, told),)
    named = replace(late, job=job["name"], project=job["project"], happened=happened, missing=(told,))
    return answered(named, asked)
