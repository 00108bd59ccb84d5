"""How an inference service reads in a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from penstock.client.verb import Column, Invocation
from penstock.jobs.commands.view import EVENT_COLUMNS, age, because, first_line
from penstock.serving import rollout_view

Body = Mapping[str, Any]
_STYLES = {
    "Ready": "green",
    "Starting": "blue",
    "Degraded": "red",
    "RollingOut": "yellow",
    "Idle": "dim",
    "Deleting": "dim",
}


def _status(body: Body) -> Body:
    status: Body = body["status"]
    return status


def _replicas(body: Body, _now: float) -> str:
    found = _status(body)["replicas"]
    return f"{found['ready']}/{found['wanted']}"


def _versions(body: Body, _now: float) -> str:
    """``2 (90%), 3 (10%)``."""
    live = [one for one in _status(body)["versions"] if one["role"] != "Retired"]
    return ", ".join(f"{one['number']} ({one['weight']:g}%)" for one in live)


def _why(body: Body, _now: float) -> str:
    status = _status(body)
    return first_line(because(status["reason"], status["message"], status["phase"]))


COLUMNS = (
    Column("NAME", lambda body, _: str(body["name"])),
    Column("PHASE", lambda body, _: str(_status(body)["phase"]), style=lambda phase: _STYLES.get(phase, "")),
    Column("READY", _replicas, right=True),
    Column("VERSIONS", _versions),
    Column("URL", lambda body, _: str(_status(body)["url"])),
    Column("AGE", lambda body, now: age(body.get("created_at"), now), right=True),
    Column("WHY", _why),
)
_REPLICAS = (
    Column("JOB", lambda one, _: str(one["job"])),
    Column("VERSION", lambda one, _: str(one["version"]), right=True),
    Column("PHASE", lambda one, _: str(one["phase"])),
    Column("SINCE", lambda one, now: age(one["since"], now), right=True),
    Column("ADDRESS", lambda one, _: f"{one['address']}:{one['port']}" if one["port"] else ""),
    Column(
        "MEMORY", lambda one, _: f"{one['memory_bytes'] / (1 << 20):.0f}Mi" if "memory_bytes" in one else "", right=True
    ),
    Column("COLD START", lambda one, _: _stages(one["stages"])),
)
_TRAFFIC = (
    Column("VERSION", lambda one, _: str(one["version"]), right=True),
    Column("REQUESTS", lambda one, _: f"{one['requests']:.0f}", right=True),
    Column("ERRORS", lambda one, _: f"{one['errors']:.0f}", right=True),
    Column("REFUSED", lambda one, _: f"{one['refused']:.0f}", right=True),
    Column("ACTIVE", lambda one, _: f"{one['active']:.0f}", right=True),
    Column("P50", lambda one, _: _ms(one["p50"]), right=True),
    Column("P95", lambda one, _: _ms(one["p95"]), right=True),
    Column("P99", lambda one, _: _ms(one["p99"]), right=True),
)
_KEYS = (
    Column("NAME", lambda one, _: str(one["name"])),
    Column("USER", lambda one, _: str(one["user"])),
    Column("AGE", lambda one, now: age(one["created_at"], now), right=True),
)


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g} ms"


def _stages(stages: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in stages.items())


def describe(call: Invocation, body: Body) -> None:
    """All there is to know of one."""
    out, status = call.output, _status(body)
    out.line(f"{'Service:':<14}{body['project']}/{body['name']}")
    out.line(f"{'Phase:':<14}{status['phase']}: {status['message']}")
    out.line(f"{'URL:':<14}{status['url']}")
    out.line(f"{'Replicas:':<14}{status['replicas']['ready']} of {status['replicas']['wanted']} ready")
    for one in status["versions"]:
        mirror = f", {one['mirror']:g}% mirrored" if one["mirror"] else ""
        out.line(f"{'Version ' + str(one['number']) + ':':<14}{one['role']}, {one['weight']:g}% of requests{mirror}")
        for name, value in one["template"].items():
            out.line(f"  {name}: {value if isinstance(value, str) else json.dumps(value)}")
        if one["message"]:
            out.line(f"  the last replica that ended: {one['message']}")
    rows = [{"version": v["number"], **one} for v in status["versions"] for one in v["replicas"]]
    if rows:
        out.line("\nReplicas:")
        out.table(_REPLICAS, rows, call.now)
    if body["traffic"]:
        out.line("\nTraffic:")
        traffic(call, body["traffic"])
    cost = body.get("cost") or {}
    if cost.get("per_1000") is not None:
        out.line(
            f"\nCost: {cost['per_1000']:.3g} {cost['currency']} per 1,000 requests "
            f"({cost['requests']:,.0f} since {cost['since']}, {cost['total']:.3g} {cost['currency']} for its replicas)"
        )
    if body["rollouts"]:
        out.line("\nRollout:")
        rollout_view.show(call, body["rollouts"][0])
    if body["events"]:
        out.line("\nEvents:")
        out.table(EVENT_COLUMNS, body["events"], call.now)


def traffic(call: Invocation, rows: Sequence[Body]) -> None:
    call.output.table(_TRAFFIC, rows, call.now)


def keys(call: Invocation, rows: Sequence[Body]) -> None:
    call.output.table(_KEYS, rows, call.now)
