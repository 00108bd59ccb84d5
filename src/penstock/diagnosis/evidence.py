"""Collects the evidence of a job: its rows, the ledger, its run folder, its processes while it runs, its nodes' history.

What cannot be had is named in ``missing``; nothing here raises for that. Every part has a bound.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.engine import Connection, Row

from penstock.base.errors import PenstockError
from penstock.base.quantities import parse_time
from penstock.base.reasons import Reason
from penstock.base.text import one_line
from penstock.diagnosis import reading
from penstock.diagnosis.lines import telling
from penstock.diagnosis.state import Counters, Evidence, Happened, LogLine, NodeEvidence, Rank
from penstock.engines.several import Engines
from penstock.engines.spec import Engine, LogReader, LogRequest
from penstock.jobs import queries
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import ACTIVE
from penstock.store import events
from penstock.store.store import Store
from penstock.training import stacks
from penstock.training.stacks import Place, Seen
from penstock.training.state import Look

_EVENTS = 500
_SLACK_S = 1.0  # a restart is told of a little later than it was
_TAIL = 2000  # lines of each rank's log that are looked through
_RANKS = 64  # whose logs are read each by itself
_LOG_BYTES = 4 << 20
_LOGS_AT_ONCE = 8
_COUNT_S = 2.0  # between two looks at ranks that count nothing themselves: twenty periods of a CPU quota
NodeHistory = Callable[[str, float, float], Awaitable[NodeEvidence]]  # of a node, from, until


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The attempt that is looked at: the newest that started."""

    row: Row[Any]
    spec: JobSpec
    nodes: tuple[str, ...]
    events: Sequence[tuple[float, str, str, Mapping[str, Any]]]

    @property
    def running(self) -> bool:
        return self.row.phase in ACTIVE and self.row.started_at is not None

    @property
    def world(self) -> int:
        return len(self.nodes) * self.spec.procs

    @property
    def born(self) -> float:
        """When its ranks were started last."""
        starts = [
            float(data.get("at") or at)
            for at, reason, _, data in self.events
            if data.get("attempt") == self.row.number
            and (reason == Reason.RankRestarted or (reason == Reason.RankHung and data.get("restarted")))
        ]
        return max([float(self.row.started_at or self.row.admitted_at), *starts])

    def of_this_life(self, told: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        return [one for one in told if float(one["at"]) >= self.born - _SLACK_S]


@dataclass(frozen=True, slots=True)
class Watched:
    """Nothing where nothing has started, or its engine does not answer."""

    attempt: int | None
    ranks: Mapping[int, Rank] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    procs: int = 1


class Collector:
    """``history``: what is known of a node over a time; None where nobody keeps it."""

    def __init__(self, store: Store, engines: Engines, history: NodeHistory | None = None) -> None:
        self._store = store
        self._engines = engines
        self._history = history

    async def watched(self, row: Row[Any]) -> Watched:
        """What the ranks of the newest attempt say of their steps by ``penstock.watch``: little to read, and often asked for."""
        attempt = await self._store.read(lambda conn: _attempt(conn, row))
        engine = None if attempt is None else self._engines.find(attempt.row.engine)
        if attempt is None or engine is None or engine.unknown_since is not None:
            return Watched(None if attempt is None else attempt.row.number)
        try:
            told = await engine.logs(attempt.row.run_dir).watched()
        except (PenstockError, OSError):
            told = []
        ranks = await asyncio.to_thread(reading.watched, attempt.of_this_life(told))
        return Watched(attempt.row.number, ranks, attempt.nodes, attempt.spec.procs)

    async def collect(self, row: Row[Any], *, live: bool = True) -> Evidence:
        """Of a job as it stands. ``live``: its processes are looked at too, where it runs."""
        now = self._store.clock()
        attempt = await self._store.read(lambda conn: _attempt(conn, row))
        empty = Evidence(row.name, row.project, row.phase, now, spec=queries.spec(row))
        if attempt is None:
            return replace(empty, missing=("it has never started: there is nothing to look at",))
        engine = self._engines.find(attempt.row.engine)
        missing: list[str] = []
        if engine is None or engine.unknown_since is not None:
            missing.append(f"the engine {attempt.row.engine!r} does not answer: neither logs nor reports can be read")
            ranks: dict[int, Rank] = {}
            points: Sequence[Mapping[str, Any]] = ()
        else:
            points, ranks = await self._told(engine, attempt, missing)
            if live and attempt.running:
                ranks = await _looked_at(engine, attempt, ranks, missing, self._store.clock)
        return replace(
            empty,
            ranks=tuple(_ended(_placed(ranks.get(n, Rank(n, "")), attempt), attempt) for n in range(attempt.world)),
            nodes=await self._nodes(attempt, now, missing),
            happened=_by_time(reading.happened(attempt.events), reading.saves(points)),
            env=dict(attempt.spec.env),
            topology=_topology(ranks),
            baseline=_baseline(attempt.events),
            missing=tuple(missing),
        )

    async def _told(
        self, engine: Engine, attempt: _Attempt, missing: list[str]
    ) -> tuple[Sequence[Mapping[str, Any]], dict[int, Rank]]:
        """Reports, and ranks by the best of what there is: watch, reports, logs."""
        reader = engine.logs(attempt.row.run_dir)
        try:
            watched, points = await asyncio.gather(reader.watched(), reader.progress())
        except (PenstockError, OSError) as error:
            missing.append(f"its reports cannot be read: {one_line(str(error))}")
            watched, points = [], []
        ranks = await asyncio.to_thread(reading.watched, attempt.of_this_life(watched))
        if not ranks:
            missing.append(
                "its script has told nothing by penstock.watch (yet): what its steps were spent on is not known"
            )
            ranks = await asyncio.to_thread(reading.reported, points, attempt.born)
        lines = await _logs(reader, attempt, missing)
        if not ranks:
            steps = {rank: reading.logged(told) for rank, told in lines.items()}
            ranks = {rank: Rank(rank, "", told) for rank, told in steps.items() if told}
            if not ranks:
                missing.append("neither reports nor its log tell how long its steps took")
        for rank, told in lines.items():
            known = ranks.get(rank, Rank(rank, ""))
            ranks[rank] = replace(known, lines=telling(told))
        return points, ranks

    async def _nodes(self, attempt: _Attempt, now: float, missing: list[str]) -> tuple[NodeEvidence, ...]:
        names = tuple(dict.fromkeys(attempt.nodes))
        if self._history is None:
            missing.append("no telemetry of its nodes is kept")
            return tuple(NodeEvidence(name) for name in names)
        since, until = float(attempt.row.started_at or attempt.row.admitted_at), float(attempt.row.ended_at or now)
        found = []
        for name in names:
            node = await self._history(name, since, until)
            if not node.series:
                missing.append(
                    f"no telemetry of {name} in that time: no agent runs there, or none of its samples (one each ten seconds) is of it"
                )
            found.append(node)
        return tuple(found)


def _attempt(conn: Connection, row: Row[Any]) -> _Attempt | None:
    rows = [one for one in queries.attempt_rows(conn, row.id) if one.started_at is not None]
    if not rows:
        return None
    told = events.page(conn, kind="Job", subject_id=row.id, limit=_EVENTS, newest_first=True)
    happened = [(event.at, event.reason, event.message, event.data) for event in reversed(told)]
    last = max(rows, key=lambda one: one.number)
    nodes = tuple(group["node"] for group in json.loads(last.groups))
    return _Attempt(last, JobSpec.model_validate_json(row.spec), nodes, happened)


async def _logs(reader: LogReader, attempt: _Attempt, missing: list[str]) -> dict[int, list[LogLine]]:
    """The newest lines by rank. Of very many ranks the first ones."""
    gate = asyncio.Semaphore(_LOGS_AT_ONCE)

    async def one(rank: int) -> list[LogLine]:
        request = LogRequest(None if attempt.world == 1 else str(rank), tail=_TAIL, prefix=False, timestamps=True)
        text, size = [], 0
        async with gate:
            async for piece in reader.read(request, _over):
                text.append(piece)
                size += len(piece)
                if size > _LOG_BYTES:
                    break
        return await asyncio.to_thread(stamped, b"".join(text), rank)

    if attempt.world > _RANKS:
        missing.append(f"of {attempt.world} ranks the logs of the first {_RANKS} were read")
    try:
        ranks = range(min(attempt.world, _RANKS))
        return dict(zip(ranks, await asyncio.gather(*map(one, ranks)), strict=True))
    except (PenstockError, OSError) as error:
        missing.append(f"its logs cannot be read: {one_line(str(error))}")
        return {}


def _over() -> bool:
    return True


def stamped(text: bytes, rank: int) -> list[LogLine]:
    """Lines of a log that is shown with its times."""
    found = []
    for line in text.decode("utf-8", "replace").splitlines():
        word, _, rest = line.partition(" ")
        try:
            found.append(LogLine(parse_time(word), rest, rank))
        except ValueError:
            continue  # what tells of a gap has no time
    return found


async def _looked_at(
    engine: Engine, attempt: _Attempt, ranks: Mapping[int, Rank], missing: list[str], clock: Callable[[], float]
) -> dict[int, Rank]:
    """Stacks, states and collectives of its processes just now."""
    job_id = attempt.row.job_id
    place = Place(engine, f"{job_id}.{attempt.row.number}", attempt.row.run_dir, attempt.nodes, attempt.spec.procs)
    counted = any(rank.counters for rank in ranks.values())
    seen = await stacks.look(place, between_s=stacks.BETWEEN_S if counted else _COUNT_S)
    missing += [f"its processes on {node} could not be looked at: {why}" for node, why in seen.silent.items()]
    return with_looks(ranks, seen, clock())


def with_looks(ranks: Mapping[int, Rank], seen: Seen, now: float) -> dict[int, Rank]:
    """What was seen of each rank at ``now``; and where it counts nothing itself, what the kernel counted of it between the looks."""
    newest = {
        rank: max(group.last.get(rank, -1) for group in seen.flight.groups)
        for rank in {rank for group in seen.flight.groups for rank in group.last}
    }
    found = dict(ranks)
    for look in seen.looks:
        known = found.get(look.rank, Rank(look.rank, look.node))
        found[look.rank] = replace(
            known,
            counters=known.counters or _between(look, now),
            stack=tuple(map(str, look.frames)),
            state=look.state,
            last_collective=newest.get(look.rank),
        )
    return found


def _between(look: Look, now: float) -> tuple[Counters, ...]:
    if not look.grown or look.over_s <= 0:
        return ()
    return (Counters(now - look.over_s, dict.fromkeys(look.grown, 0.0)), Counters(now, look.grown))


def _placed(rank: Rank, attempt: _Attempt) -> Rank:
    node = attempt.nodes[min(rank.rank // attempt.spec.procs, len(attempt.nodes) - 1)]
    groups = json.loads(attempt.row.groups)
    gpus = groups[min(rank.rank // attempt.spec.procs, len(groups) - 1)].get("gpus") or []
    local = rank.rank % attempt.spec.procs
    return replace(rank, node=node, gpu=str(gpus[local]["id"]) if local < len(gpus) else "")


def _ended(rank: Rank, attempt: _Attempt) -> Rank:
    """With how it ended, and how it stood when a hang was found."""
    code, number = reading.exits(attempt.events, attempt.born).get(rank.rank, (None, None))
    gone = code is not None or number is not None
    rank = replace(rank, exit_code=code, signal=number, state="gone" if gone else rank.state)
    for _, reason, _, data in reversed(attempt.events):
        if rank.stack or reason != Reason.RankHung or data.get("attempt") != attempt.row.number:
            continue
        mine: Mapping[str, Any] = next((s for s in data.get("stacks") or () if s.get("rank") == rank.rank), {})
        return replace(rank, stack=tuple(mine.get("frames") or ()), state=rank.state or str(mine.get("state") or ""))
    return rank


def _topology(ranks: Mapping[int, Rank]) -> str:
    words = {str(rank.config.get("wrapper") or "") for rank in ranks.values()}
    word = next(iter(words)) if len(words) == 1 else ""
    return "fsdp" if word.startswith("fsdp") else word if word == "ddp" else ""


def _baseline(told: Sequence[tuple[float, str, str, Mapping[str, Any]]]) -> float | None:
    """As the last slow-down that was found compares with."""
    found = (data.get("baseline_s") for _, reason, _, data in reversed(told) if reason == Reason.SlowedDown)
    value = next(found, None)
    return float(value) if isinstance(value, int | float) else None


def _by_time(*parts: Sequence[Happened]) -> tuple[Happened, ...]:
    return tuple(sorted((one for part in parts for one in part), key=lambda one: one.at))
