"""Game days over HTTP: whether a fault may be injected into a job, and the ledger's record of it. Done it is on the node itself."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from penstock.base.errors import Conflict, Forbidden
from penstock.base.reasons import Reason
from penstock.base.routes import Call, Endpoint
from penstock.diagnosis.injecting import catalogue
from penstock.diagnosis.injecting.spec import words
from penstock.jobs import submit
from penstock.jobs.room import Room
from penstock.jobs.state import Phase

JOB = "/api/v1/projects/{project}/jobs/{name}"
_LONGEST_S = 3600.0


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    fault: str = Field(max_length=63, description="a fault's name, or its cause's")
    ranks: list[int] = Field([], max_length=1024, description="none: those of the fault itself")
    strength: float | None = Field(None, gt=0, allow_inf_nan=False)
    for_s: float = Field(60.0, gt=0, le=_LONGEST_S, description="seconds")


class Ended(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(max_length=63)
    fault: str = Field(max_length=63)
    left: list[str] = Field([], max_length=100, description="what could not be undone")
    done: bool = Field(True, description="false: refused on the node, or failed halfway and put back")


def endpoints(room: Room, production: Collection[str]) -> Sequence[Endpoint]:
    routes = _Routes(room, production)
    return (
        Endpoint(
            "POST", JOB + "/injections", "faults.write", routes.inject, "Ask to break something of a job on purpose, and record it", body=Asked, status=201,
        ),
        Endpoint("POST", JOB + "/injections/ended", "faults.write", routes.ended, "Record that it was undone, or not done", body=Ended),
    )  # fmt: skip


class _Routes:
    def __init__(self, room: Room, production: Collection[str]) -> None:
        self._room = room
        self._production = production

    async def inject(self, call: Call) -> dict[str, Any]:
        """Answers which attempt it is whose processes are to be touched."""
        asked: Asked = call.body
        row = await self._room.row(call.path)
        self._spared(row.project)
        fault = catalogue.named(asked.fault)
        if row.phase != Phase.RUNNING:
            raise Conflict(f"job {row.name!r} is {row.phase}: only what runs can be broken")
        identity = secrets.token_hex(6)
        strength = fault.strength.default if asked.strength is None else asked.strength
        said = words(fault, asked.ranks, strength, asked.for_s)
        facts = {"id": identity, "fault": fault.name, "cause": fault.cause, "ranks": asked.ranks, "strength": strength}
        await self._room.store.write(
            lambda tx: tx.emit(
                submit.ref(row), Reason.FaultInjected, said, actor=call.actor.user, data=facts | {"for_s": asked.for_s}
            )
        )
        return {"id": identity, "job_id": row.id, "attempt": f"{row.id}.{row.attempt}", "fault": fault.name}

    async def ended(self, call: Call) -> dict[str, Any]:
        said: Ended = call.body
        row = await self._room.row(call.path)
        self._spared(row.project)
        undone = f"{said.fault} was undone" if said.done else f"{said.fault} was not done"
        text = f"{said.fault} could not be undone whole: {'; '.join(said.left)}" if said.left else undone
        facts = {"id": said.id, "fault": said.fault, "left": said.left, "done": said.done}
        await self._room.store.write(
            lambda tx: tx.emit(submit.ref(row), Reason.FaultEnded, text[:2000], actor=call.actor.user, data=facts)
        )
        return {"id": said.id}

    def _spared(self, project: str) -> None:
        if project in self._production:
            raise Forbidden(
                f"project {project!r} is marked as production: nothing is broken there",
                hint="Take a project for game days; `penstock up --production` marks those that must be left alone.",
            )
