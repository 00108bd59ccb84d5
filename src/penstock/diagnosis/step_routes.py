"""What a job's steps were spent on, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from penstock.base.routes import Call, Endpoint
from penstock.diagnosis import steps
from penstock.diagnosis.evidence import Collector
from penstock.jobs.room import Room

PATH = "/api/v1/projects/{project}/jobs/{name}/steps"


def endpoints(room: Room) -> Sequence[Endpoint]:
    collector = Collector(room.store, room.engines)

    async def told(call: Call) -> dict[str, Any]:
        row = await room.row(call.path)
        found = await collector.watched(row)
        shown = await asyncio.to_thread(steps.picture, found.ranks, found.nodes, found.procs)
        return {"project": row.project, "name": row.name, "attempt": found.attempt, **shown}

    return (Endpoint("GET", PATH, "jobs.read", told, "What each rank's steps were spent on"),)
