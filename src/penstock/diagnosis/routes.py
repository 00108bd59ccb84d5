"""A job's diagnosis over HTTP: evidence is collected when it is asked for, and nothing is kept of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from penstock.base.routes import Call, Endpoint
from penstock.diagnosis import outside, report, ticket
from penstock.diagnosis.evidence import Collector, NodeHistory
from penstock.diagnosis.features import features
from penstock.diagnosis.plan import concluded
from penstock.diagnosis.state import Evidence
from penstock.jobs.room import Room

PATH = "/api/v1/projects/{project}/jobs/{name}/diagnosis"


class Asked(BaseModel):
    """What is asked beside the job: nothing needs be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ticket: str | None = Field(
        None, max_length=ticket.LONGEST, description='what is wrong, in words: "training is slow since this morning"'
    )
    offset_s: float = Field(0.0, ge=-50_400, le=50_400, description="how far the asker's clock is ahead of UTC")


def endpoints(room: Room, history: NodeHistory | None = None) -> Sequence[Endpoint]:
    collector = Collector(room.store, room.engines, history)
    others = outside.Outside(room.engines, history)

    async def diagnose(call: Call) -> dict[str, Any]:
        asked: Asked = call.body if call.query is None else call.query
        elsewhere = outside.named(call.path["name"])
        if elsewhere is not None:
            evidence = await others.collect(*elsewhere, call.path["project"], call.actor, room.store.clock())
        else:
            evidence = await collector.collect(await room.row(call.path))
        return await asyncio.to_thread(answered, evidence, asked)

    return (
        Endpoint("GET", PATH, "jobs.read", diagnose, "Why a job is slow, hangs or failed, with evidence", query=Asked),
        Endpoint("POST", PATH, "jobs.read", diagnose, "The same, asked in words too long for a query", body=Asked),
    )


def answered(evidence: Evidence, asked: Asked) -> dict[str, Any]:
    """The whole answer: what was made of the evidence, in the time that the ticket speaks of."""
    window = ticket.window(asked.ticket, evidence.at, asked.offset_s) if asked.ticket else None
    known = features(evidence, window.at(evidence) if window is not None else None)
    return report.answer(evidence, known, concluded(known), window)
