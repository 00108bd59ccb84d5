"""What flows: logs, a job's changes, terminals and ports inside its allocation."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from sqlalchemy.engine import Row

from penstock.base.errors import Forbidden, InvalidInput, PenstockError, Problem
from penstock.base.quantities import parse_duration, parse_time
from penstock.base.reasons import Reason
from penstock.base.routes import Call, Endpoint, ServerEvent, Stream
from penstock.engines.spec import LogRequest, Session, SessionRequest
from penstock.jobs import queries, submit
from penstock.jobs.room import Room
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import FINAL, Phase
from penstock.store.store import Tx
from penstock.tenancy.plan import decide

WATCH_S = 10.0  # a look at the row even when nothing was heard: another server's changes on PostgreSQL


class LogQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rank: str | None = Field(default=None, max_length=32, pattern=r"^(\d+|launcher)$")
    attempt: int | None = Field(default=None, ge=1)
    follow: bool = False
    since: str | None = Field(default=None, max_length=64)
    tail: int | None = Field(default=None, ge=0, le=1_000_000)
    prefix: bool | None = None
    timestamps: bool = False
    raw: bool = False

    @field_validator("since")
    @classmethod
    def _since(cls, value: str | None) -> str | None:
        if value is not None:
            _parse_since(value, 0.0)
        return value


class ExecQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tty: bool = False
    cols: int = Field(default=80, ge=1, le=1000)
    rows: int = Field(default=24, ge=1, le=1000)
    node: str | None = Field(default=None, max_length=100)


class ForwardQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    port: int = Field(ge=1, le=65535)
    node: str | None = Field(default=None, max_length=100)


def _parse_since(text: str, now: float) -> float:
    """``10m`` ago, or an RFC 3339 time, as epoch seconds. Raises ValueError."""
    try:
        return now - parse_duration(text)
    except ValueError:
        try:
            return parse_time(text)
        except ValueError:
            raise ValueError(f"{text!r} is neither a duration (10m) nor a time (2026-01-31T12:00:00Z)") from None


def endpoints(room: Room, job: str) -> list[Endpoint]:
    streams = _Streams(room)
    return [
        Endpoint("GET", job + "/logs", "jobs.read", streams.logs, "A job's logs", query=LogQuery, kind="text"),
        Endpoint("GET", job + "/watch", "jobs.read", streams.watch, "A job's changes", kind="sse"),
        Endpoint(
            "GET",
            job + "/exec",
            "jobs.exec",
            streams.execute,
            "A command or terminal in a job",
            query=ExecQuery,
            kind="websocket",
        ),
        Endpoint(
            "GET",
            job + "/forward",
            "jobs.exec",
            streams.forward,
            "A port in a job",
            query=ForwardQuery,
            kind="websocket",
        ),
    ]


class _Streams:
    def __init__(self, room: Room) -> None:
        self.room = room

    async def logs(self, call: Call) -> Stream:
        query: LogQuery = call.query
        row = await self.room.row(call.path)
        if row.array_count is not None and row.array_of is None:
            raise InvalidInput(
                f"{row.name!r} is an array: its tasks have the logs",
                details=[Problem("name", f"name a task: {row.name}-0 to {row.name}-{row.array_count - 1}")],
            )
        _check_rank(row, query.rank)
        await self.room.store.read(lambda conn: queries.find_attempt(conn, row, query.attempt))
        since = _parse_since(query.since, self.room.store.clock()) if query.since else None
        request = LogRequest(query.rank, query.follow, since, query.tail, query.prefix, query.timestamps, query.raw)
        return Stream(self._log_chunks(row, request, query.attempt))

    async def _log_chunks(self, row: Row[Any], request: LogRequest, number: int | None) -> AsyncIterator[bytes]:
        """One attempt's log; when following without a number, those of the attempts that come after it too."""
        shown = 0
        async with self.room.watching(row.id) as changed:
            while True:
                changed.clear()
                job = await self.room.store.read(lambda conn: submit.by_id(conn, row.id))
                if job is None:
                    return
                attempt = await self.room.store.read(partial(queries.find_attempt, row=job, number=number))
                if attempt is not None and attempt.number > shown:
                    if shown:
                        yield f"--- attempt {attempt.number} ---\n".encode()
                    shown = attempt.number
                    ended = self._ended(attempt)
                    async for chunk in (
                        self.room.engines.named(attempt.engine).logs(attempt.run_dir).read(request, ended)
                    ):
                        yield chunk
                    continue
                if not request.follow or job.phase in FINAL or (number is not None and shown):
                    return
                await _wait(changed)

    def _ended(self, attempt: Row[Any]) -> Callable[[], bool]:
        """Whether an attempt is over, asked often while its log is followed: looks at the row only every so often,
        and at once when its job changes.
        """
        state = {"over": attempt.ended_at is not None, "seq": -1.0}

        def ask() -> bool:
            if not state["over"] and self.room.changes != state["seq"]:
                state["seq"] = self.room.changes
                state["over"] = (attempt.job_id, attempt.number) in self.room.ended_attempts
            return bool(state["over"])

        return ask

    async def watch(self, call: Call) -> AsyncIterator[ServerEvent]:
        row = await self.room.row(call.path)
        return self._changes(row.project, row.name, row.id)

    async def _changes(self, project: str, name: str, job_id: str) -> AsyncIterator[ServerEvent]:
        before = None
        async with self.room.watching(job_id) as changed:
            while True:
                changed.clear()
                body = await self.room.shown(project, name)
                text = json.dumps(body, sort_keys=True)
                if text != before:
                    before = text
                    yield ServerEvent(body, "job", f"{time.time():.6f}")
                if body["status"]["phase"] in FINAL:
                    return
                await _wait(changed)

    async def execute(self, call: Call) -> None:
        query: ExecQuery = call.query
        first = await call.socket.receive()
        command = _command(first)
        await self._session(
            call, SessionRequest(command, query.tty, query.cols, query.rows, None, query.node), " ".join(command)[:100]
        )

    async def forward(self, call: Call) -> None:
        query: ForwardQuery = call.query
        await self._session(call, SessionRequest(port=query.port, node=query.node), f"port {query.port}")

    async def _session(self, call: Call, request: SessionRequest, what: str) -> None:
        """Open, record, pump both ways until one side ends."""
        row = await self.room.row(call.path)
        if not decide(call.actor, "jobs.exec", row.project, owner=row.user):
            raise Forbidden(f"job {row.name!r} belongs to {row.user}: only they may go inside it")
        attempt = await self.room.store.read(lambda conn: queries.find_attempt(conn, row, None))
        if attempt is None or row.phase not in (Phase.RUNNING, Phase.STOPPING):
            raise InvalidInput(
                f"job {row.name!r} is {row.phase}: there is nothing to go into", hint="Wait until it runs."
            )
        engine = self.room.engines.named(attempt.engine)
        session = await engine.session(f"{row.id}.{attempt.number}", attempt.run_dir, request)
        await self._record(row, call, Reason.SessionOpened, what)
        try:
            await _pump(call.socket, session)
        finally:
            await session.close()
            await self._record(row, call, Reason.SessionClosed, what)

    async def _record(self, row: Row[Any], call: Call, reason: Reason, what: str) -> None:
        def work(tx: Tx) -> None:
            tx.emit(submit.ref(row), reason, what, actor=call.actor.user)

        await self.room.store.write(work)


async def _wait(changed: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WATCH_S):
            await changed.wait()


def _check_rank(row: Row[Any], rank: str | None) -> None:
    """Raises InvalidInput for a rank that the job does not have."""
    if rank is None or not rank.isdigit():
        return
    spec = JobSpec.model_validate_json(row.spec)
    world = spec.nodes * spec.procs
    if int(rank) >= world:
        ranks = "rank 0 alone" if world == 1 else f"ranks 0 to {world - 1}"
        raise InvalidInput(f"{row.name!r} has {ranks}", details=[Problem("rank", f"there is no rank {rank}")])


def _command(first: Any) -> tuple[str, ...]:
    """The first frame of exec: ``{"command": [...]}`` (an empty list asks for the user's shell)."""
    try:
        words = json.loads(first)["command"]
        if not isinstance(words, list) or not all(isinstance(w, str) and "\x00" not in w for w in words):
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise InvalidInput('the first frame must be {"command": ["word", ...]}') from None
    return tuple(words)


async def _pump(socket: Any, session: Session) -> None:
    async def inward() -> None:
        while True:
            frame = await socket.receive()
            if frame is None:
                return
            data = frame.encode() if isinstance(frame, str) else frame
            channel, rest = data[:1], data[1:]
            if channel == b"0":
                await session.send(rest)
            elif channel == b"1":
                size = json.loads(rest)
                await session.resize(int(size["cols"]), int(size["rows"]))
            elif channel == b"2":
                await session.close_input()

    async def outward() -> None:
        while (data := await session.receive()) is not None:
            await socket.send(b"0" + data)
        code = await session.wait()
        if code is not None:
            await socket.send(b"3" + json.dumps({"exit_code": code}).encode())

    tasks = [asyncio.ensure_future(inward()), asyncio.ensure_future(outward())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.exception()
            if isinstance(error, PenstockError):
                raise error
            if error is not None and not isinstance(error, OSError | ValueError | KeyError | TypeError):
                raise error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
