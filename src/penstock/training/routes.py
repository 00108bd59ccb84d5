"""Goodput and checkpoints over HTTP: of one job, and of the fleet as far as the caller may see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from penstock.base.errors import Conflict, Forbidden, InvalidInput, NotFound, Problem
from penstock.base.quantities import parse_moment
from penstock.base.reasons import Reason
from penstock.base.routes import Call, Endpoint
from penstock.engines.spec import SessionRequest
from penstock.jobs import queries, submit
from penstock.jobs.state import Phase
from penstock.tenancy.plan import decide, visible
from penstock.training.room import Training

JOB = "/api/v1/projects/{project}/jobs/{name}"
DEFAULT_S = 7 * 86_400.0
_ASK = ': > "${PENSTOCK_CKPT_DIR:?the job has no folder for checkpoints}/save-now"'

_UNKNOWN = "it has never reported a checkpoint: unless its script uses penstock.checkpoint, nobody hears this"


class FleetQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    project: str | None = Field(None, max_length=63)
    since: str | None = Field(None, max_length=40, description="RFC 3339, or how long ago; default: 7d")
    until: str | None = Field(None, max_length=40, description="RFC 3339, or how long ago; default: now")


def endpoints(training: Training) -> Sequence[Endpoint]:
    routes = _Routes(training)
    return (
        Endpoint("GET", JOB + "/goodput", "jobs.read", routes.job, "Where a job's wall time went"),
        Endpoint("GET", JOB + "/checkpoints", "jobs.read", routes.checkpoints, "What became of a job's checkpoints"),
        Endpoint(
            "POST", JOB + "/checkpoints/save", "jobs.exec", routes.save, "Ask a running job to save now", status=202
        ),
        Endpoint(
            "GET",
            "/api/v1/goodput",
            "jobs.read",
            routes.fleet,
            "Where the trainings' device-hours went, by project and job",
            query=FleetQuery,
        ),
    )


class _Routes:
    def __init__(self, training: Training) -> None:
        self._training = training
        self._room = training.room

    async def job(self, call: Call) -> dict[str, Any]:
        from penstock.training import answers  # noqa: PLC0415 - the server is ready without it

        row = await self._room.row(call.path)
        return answers.goodput(await self._training.accounts.job(row))

    async def checkpoints(self, call: Call) -> dict[str, Any]:
        from penstock.training import answers  # noqa: PLC0415 - as above

        row = await self._room.row(call.path)
        return answers.checkpoints(await self._training.accounts.job(row))

    async def fleet(self, call: Call) -> dict[str, Any]:
        query: FleetQuery = call.query
        projects = visible(call.actor)
        if query.project is not None:
            if projects is not None and query.project not in projects:
                raise NotFound(f"there is no project {query.project!r}")
            projects = frozenset({query.project})
        now = self._room.store.clock()
        until = min(now, _moment(query.until, "until", now, now))
        since = _moment(query.since, "since", now, max(0.0, until - DEFAULT_S))
        if since >= until:
            raise InvalidInput("the period cannot be used", details=[Problem("since", "must lie before `until`")])
        return await self._training.accounts.fleet(since, until, projects)

    async def save(self, call: Call) -> dict[str, Any]:
        """Leave a file in the job's folder of checkpoints, as the job's own user: its checkpointer looks for it."""
        row = await self._room.row(call.path)
        if not decide(call.actor, "jobs.exec", row.project, owner=row.user):
            raise Forbidden(f"job {row.name!r} belongs to {row.user}: only they may ask it to save")
        attempt = await self._room.store.read(lambda conn: queries.find_attempt(conn, row, None))
        if attempt is None or row.phase not in (Phase.RUNNING, Phase.STOPPING):
            raise Conflict(
                f"job {row.name!r} is {row.phase}: only a running one can save", hint="`penstock get` shows it."
            )
        engine = self._room.engines.named(attempt.engine)
        request = SessionRequest(("/bin/sh", "-c", _ASK))
        session = await engine.session(f"{row.id}.{attempt.number}", attempt.run_dir, request)
        try:
            await session.close_input()
            said = b""
            while (data := await session.receive()) is not None:
                said = (said + data)[-2000:]
            code = await session.wait()
        finally:
            await session.close()
        if code:
            words = said.decode(errors="replace").strip() or "the request could not be left in its folder"
            raise Conflict(f"{row.name}: {words}", hint="`penstock logs` shows the job.")
        known = bool((await self._training.accounts.job(row)).told)
        words = "asked to save a checkpoint now" + ("" if known else f"; {_UNKNOWN}")
        await self._room.store.write(
            lambda tx: tx.emit(submit.ref(row), Reason.SaveAsked, words, actor=call.actor.user)
        )
        return {"asked": True, "known": known, "words": "" if known else _UNKNOWN}


def _moment(text: str | None, path: str, now: float, otherwise: float) -> float:
    if text is None:
        return otherwise
    try:
        return parse_moment(text, now)
    except ValueError as error:
        raise InvalidInput("the period cannot be used", details=[Problem(path, str(error))]) from None
