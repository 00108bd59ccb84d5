"""An inference service as people and programs see it: JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection, Row

from penstock.base.quantities import format_time
from penstock.serving import rollout_memory, routing, versions
from penstock.serving.past import EVERY_S, Recent
from penstock.serving.place import KIND, report_of
from penstock.serving.shadowed import Shadowed
from penstock.serving.state import WHOLE, Counts, ReplicaPhase
from penstock.serving.versions import Held

_FIGURES = ("running", "waiting", "memory_bytes", "memory_used")
_BATCH = "batch_"  # and a size: how often the runtime made one of it


def resource(held: Held, base: str, progress: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``base``: the gateway's URL."""
    row = held.row
    ready = sum(one.phase == ReplicaPhase.READY for one in held.replicas)
    return {
        "kind": KIND,
        "project": row.project,
        "name": row.name,
        "id": row.id,
        "generation": row.generation,
        "user": row.user,
        "created_at": format_time(row.created_at),
        "labels": json.loads(row.labels),
        "spec": held.spec.model_dump(mode="json", exclude_defaults=True),
        "status": {
            "phase": routing.phase(held),
            "reason": row.reason,
            "message": row.message,
            "url": f"{base}/{row.project}/{row.name}",
            "replicas": {"wanted": held.wanted, "ready": ready, "all": len(held.replicas)},
            "versions": [version(held, one, progress) for one in held.versions],
            "rollout": rollout(held.rollout) if held.rollout is not None else None,
        },
    }


def version(held: Held, row: Row[Any], progress: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    mine = [one for one in held.replicas if one.version == row.number]
    return {
        "number": row.number,
        "role": row.role,
        "weight": row.weight * 100 / WHOLE,
        "mirror": row.mirror * 100 / WHOLE,
        "template": json.loads(row.template),
        "digest": row.digest,
        "created_at": format_time(row.created_at),
        "failures": row.failures,
        "message": row.message,
        "replicas": [replica(one, report_of(progress, one.id)) for one in mine],
    }


def replica(row: Row[Any], report: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "job": row.name,
        "phase": row.phase,
        "since": format_time(row.since),
        "address": row.address,
        "port": row.port,
        "grpc_port": row.grpc_port,
        "stages": json.loads(row.stages),
        "batches": {name.removeprefix(_BATCH): report[name] for name in report if name.startswith(_BATCH)},
        **{name: report[name] for name in _FIGURES if name in report},
    }


def rollout(row: Row[Any]) -> dict[str, Any]:
    return {
        "stable": row.stable,
        "candidate": row.candidate,
        "phase": row.phase,
        "step": row.step,
        "since": format_time(row.since),
        "message": row.message,
        "evidence": json.loads(row.evidence),
        "points": rollout_memory.points(json.loads(row.memory)),
        "asked": row.asked or None,
        "created_at": format_time(row.created_at),
        "ended_at": format_time(row.ended_at) if row.ended_at is not None else None,
    }


def history(conn: Connection, row: Row[Any]) -> list[dict[str, Any]]:
    """Its rollouts, the newest first."""
    return [rollout(one) for one in versions.all_rollouts(conn, row.id)]


def traffic(counts: Counts) -> dict[str, Any]:
    return {
        "requests": counts.requests,
        "errors": counts.errors,
        "refused": counts.refused,
        "active": counts.active,
        "seconds": counts.seconds,
        "p50": counts.latency.quantile(0.5),
        "p95": counts.latency.quantile(0.95),
        "p99": counts.latency.quantile(0.99),
    }


def recent(found: Recent | None) -> dict[str, Any] | None:
    """Of all of a service's versions together, for a list."""
    if found is None:
        return None
    return {
        "seconds": found.seconds,
        "requests_per_second": found.requests / found.seconds if found.seconds else 0.0,
        "error_share": found.errors / found.requests if found.requests else 0.0,
        "p95": found.p95,
        "active": found.active,
    }


def shadow(seen: Shadowed) -> dict[str, Any]:
    """What the comparator saw of a candidate, with example requests."""
    agreement = seen.agreement
    return {
        "compared": agreement.compared,
        "agreed": agreement.agreed,
        "failed": agreement.failed,
        "slower_s": agreement.slower_s,
        "offered": seen.offered,
        "received": seen.received,
        "dropped": dict(seen.dropped),
        "unjudged": seen.unjudged,
        "problem": seen.problem,
        "stable": traffic(seen.stable_counts),
        "candidate": traffic(seen.candidate_counts),
        "examples": [dict(one) for one in agreement.examples],
    }


def drawn(past: Mapping[int, Mapping[str, list[float | None]]]) -> dict[str, Any]:
    """``at`` is in epoch seconds; requests and errors are counts of ``seconds``."""
    return {"every": EVERY_S, "items": [{"version": number, **line} for number, line in past.items()]}


def keys(rows: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    return [{"name": one.name, "user": one.user, "created_at": format_time(one.created_at)} for one in rows]
