"""What a job's GPUs, and the nodes that it runs on, did of late: the nodes' recent history, less other jobs' GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy.engine import Connection, Row

from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint
from penstock.jobs import queries
from penstock.jobs.room import Room
from penstock.telemetry.charts import charts
from penstock.telemetry.history import History, Recent
from penstock.telemetry.room import Telemetry
from penstock.telemetry.routes import Window

MOST_NODES = 16  # of a job, whose history is shown


def endpoints(room: Room, telemetry: Telemetry) -> Sequence[Endpoint]:
    async def recent(call: Call) -> dict[str, Any]:
        job = await room.row(call.path)
        attempt = await room.store.read(lambda conn: _newest(conn, job.id))
        now = room.store.clock()
        until = now if attempt is None or attempt.ended_at is None else attempt.ended_at
        since = max(now - 60 * call.query.minutes, 0 if attempt is None else attempt.admitted_at)
        groups = json.loads(attempt.groups)[:MOST_NODES] if attempt is not None else []
        found = charts(
            one for group in groups for one in of_node(telemetry.history, group, len(groups) > 1, since, until)
        )
        nodes = [group["node"] for group in groups]
        return {"at": format_time(now), "nodes": nodes, "charts": [chart.to_dict() for chart in found]}

    return (
        Endpoint(
            "GET",
            "/api/v1/projects/{project}/jobs/{name}/telemetry",
            "jobs.read",
            recent,
            "What a job's GPUs and nodes did of late, as charts of lines",
            query=Window,
        ),
    )


def _newest(conn: Connection, job_id: str) -> Row[Any] | None:
    return next(reversed(queries.attempt_rows(conn, job_id)), None)


def of_node(history: History, group: Mapping[str, Any], several: bool, since: float, until: float) -> Iterator[Recent]:
    """Of one node: its own series, and the GPUs that the job holds there."""
    held = {str(gpu.get("gpu") or gpu["id"]) for gpu in group["gpus"]}
    for one in history.series(group["node"], since, until):
        if one.name.startswith("penstock_gpu_") and one.device not in held:
            continue
        where = f"{group['node']} {one.device}".strip() if several else one.device
        yield one._replace(device=where)
