"""Jobs that people submit to an engine themselves: taken from its own accounting into the usage ledger, each once.

One question in a while, from where the last left off. A row is known by the engine, its job and the accounting's own
number of the run; whoever asks again finds it there. How far is known moves on only when the engine's accounting has been told all
that its controller knows, so that what ran while accounting was down is found when it is back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, delete, insert, select

from penstock.cost.spec import CPUS, GPUS, MEMORY
from penstock.cost.tables import UNRECORDED, capacity, outside, usage
from penstock.engines.slurm.history import Run, Told
from penstock.engines.slurm.spec import attempt_of
from penstock.jobs.known import engine_jobs, of_engine
from penstock.scheduling import live
from penstock.scheduling.models import means
from penstock.store.store import Store, Tx
from penstock.tenancy import accounts

OUTSIDE = "outside"  # the project of those whose account is no project of ours
OVERLAP_S = 300.0  # asked for again each time: clocks differ, and a record may be written late
GIVE_UP_S = 3600.0  # a record that is still not whole is taken as it is
_ATTEMPTS = 1 << 31  # what the ledger's column holds
_AT_ONCE = 500
_EVERYBODY = 1 << 31
_FOREVER = 1e18
Row = dict[str, Any]


class Records(Protocol):
    """``engines.slurm.accounting.Accounts``."""

    async def told(self) -> Told: ...
    async def runs(self, since: float) -> list[Run]: ...


@dataclass(frozen=True, slots=True)
class Source:
    """``prefix`` stands before the names of its nodes here."""

    engine: str
    records: Records
    prefix: str = ""


async def look(store: Store, source: Source, fence: Callable[[Tx], object] = lambda _tx: None) -> int:
    """Take over what is new. How many runs were written. Raises what the engine's accounting raises when it does not answer."""
    told = await source.records.told()
    at = told.at if told.at is not None else store.clock()
    known = await store.read(lambda conn: _known(conn, source.engine))
    since, until = known or (at, at)
    runs = await source.records.runs(until - OVERLAP_S)
    whole = [run for run in runs if run.whole or (run.ended_at or at) < at - GIVE_UP_S]

    def write(tx: Tx) -> int:
        fence(tx)
        written = take(tx, source, whole, since)
        if known is None or (told.all and len(whole) == len(runs) and at > until):
            tx.conn.execute(delete(outside).where(outside.c.engine == source.engine))
            tx.conn.execute(insert(outside).values(engine=source.engine, since=since, known=at))
        return written

    return await store.write(write)


def _known(conn: Connection, engine: str) -> tuple[float, float] | None:
    row = conn.execute(select(outside.c.since, outside.c.known).where(outside.c.engine == engine)).first()
    return None if row is None else (row.since, row.known)


def take(tx: Tx, source: Source, runs: Sequence[Run], since: float) -> int:
    """Write what differs from what is written. How many runs that were."""
    foreign = [run for run in runs if run.ended_at is None or run.ended_at > since]
    own = _ours(tx.conn, source.engine, foreign)
    foreign = [run for run in foreign if run.record not in own]
    names = _Names.read(tx.conn)
    written = 0
    for at in range(0, len(foreign), _AT_ONCE):
        part = foreign[at : at + _AT_ONCE]
        there = _there(tx.conn, source, part)
        models = _models(tx.conn, {source.prefix + node for run in part for node in run.nodes})
        for run in part:
            rows = list(_rows(run, source, names, models, since))
            before = there.get((_job_id(run, source), run.record % _ATTEMPTS), [])
            if _keyed(rows) == _keyed(before):
                continue
            mine = (usage.c.job_id == _job_id(run, source)) & (usage.c.attempt == run.record % _ATTEMPTS)
            tx.conn.execute(delete(usage).where(mine))
            if rows:
                tx.conn.execute(insert(usage), rows)
            written += 1
    return written


def _keyed(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted(tuple(str(row[name]) for name in usage.c.keys()) for row in rows)  # noqa: SIM118 - a column collection


def _job_id(run: Run, source: Source) -> str:
    return f"{source.engine}/{run.job}"


def _ours(conn: Connection, engine: str, runs: Sequence[Run]) -> set[int]:
    """The records of attempts of our own: the ledger has them already. A name alone can be anybody's; the tasks of an array
    have one name, that of the first.
    """
    named: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        if (attempt := attempt_of(run.name)) is not None:
            named.setdefault(attempt, []).append(run)
    if not named:
        return set()
    found = engine_jobs(conn, engine, named.keys())
    taken = of_engine(conn, engine, {name for those in named.values() for run in those for name in _called(run)})
    gone = _held(conn, [key for key in named if key not in found])
    return {
        run.record
        for key, those in named.items()
        for run in those
        if not taken.isdisjoint(_called(run))
        or (key in found and found[key] is None)
        or any(run.started_at < end and (run.ended_at or end) >= start for start, end in gone.get(key, ()))
    }


def _called(run: Run) -> tuple[str, str]:
    """What an attempt may know it by: a task of an array by both."""
    return run.shown, str(run.job)


def _held(conn: Connection, keys: Collection[tuple[str, int]]) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """When attempts used something, whose jobs were deleted since."""
    ids = sorted({job_id for job_id, _ in keys})
    query = select(usage.c.job_id, usage.c.attempt, usage.c.started_at, usage.c.ended_at)
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for job_id, attempt, start, end in conn.execute(query.where(usage.c.job_id.in_(ids))):
        found.setdefault((job_id, attempt), []).append((start, _FOREVER if end is None else end))
    return found


def _there(conn: Connection, source: Source, runs: Sequence[Run]) -> dict[tuple[str, int], list[Mapping[str, Any]]]:
    ids = sorted({_job_id(run, source) for run in runs})
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in conn.execute(select(usage).where(usage.c.job_id.in_(ids))).mappings():
        found.setdefault((row["job_id"], row["attempt"]), []).append(dict(row))
    return found


def _rows(
    run: Run, source: Source, names: _Names, models: Mapping[str, Collection[str]], since: float
) -> Iterator[Row]:
    project, user, queue = names.of(run)
    nodes = [source.prefix + node for node in run.nodes] or [source.engine]
    started = max(run.started_at, since)
    for node in nodes:
        held = {CPUS: run.cpus, MEMORY: run.memory}
        for kind, count in run.gpus.items():
            name = GPUS + _model(kind, models.get(node, ()))
            held[name] = held.get(name, 0.0) + count
        for resource, much in held.items():
            if much > 0:
                yield {
                    "job_id": _job_id(run, source),
                    "attempt": run.record % _ATTEMPTS,
                    "node": node,
                    "resource": resource,
                    "project": project,
                    "user": user,
                    "job": f"{source.engine}/{run.shown}",
                    "quantity": much / len(nodes),
                    "started_at": started,
                    "ended_at": None if run.ended_at is None else max(run.ended_at, started),
                    "queue": queue,
                }


def _model(kind: str, there: Collection[str]) -> str:
    """What the node calls the GPUs that Slurm calls ``kind``."""
    fitting = [model for model in sorted(there) if not kind or means(kind, model)] or sorted(there)
    return fitting[0] if len(there) == 1 or (kind and fitting) else (kind or "unknown")


def _models(conn: Connection, nodes: Collection[str]) -> dict[str, set[str]]:
    """The GPU models of nodes, as the ledger of what was up has them."""
    query = select(capacity.c.node, capacity.c.resource).distinct()
    query = query.where(capacity.c.node.in_(sorted(nodes)), capacity.c.resource.startswith(GPUS))
    found: dict[str, set[str]] = {}
    for node, resource in conn.execute(query):
        found.setdefault(node, set()).add(resource.removeprefix(GPUS))
    return found


@dataclass(frozen=True, slots=True)
class _Names:
    """Unix users and Slurm accounts -> users, projects and queues of ours."""

    users: Mapping[str, str]
    projects: Mapping[str, str]

    @classmethod
    def read(cls, conn: Connection) -> _Names:
        users: dict[str, list[str]] = {}
        for user in accounts.list_users(conn, "", _EVERYBODY):
            if user.unix_user is not None:
                users.setdefault(user.unix_user, []).append(user.name)
        queues = live.current(conn).queues.values()
        projects = {queue.name: queue.projects[0] for queue in queues if len(queue.projects) == 1}
        known = {str(one["name"]) for one in accounts.list_projects(conn, None, "", _EVERYBODY)}
        return cls(
            {unix: names[0] for unix, names in users.items() if len(names) == 1},
            projects | {name: name for name in known},
        )

    def of(self, run: Run) -> tuple[str, str, str]:
        """project, user, queue."""
        project = self.projects.get(run.account, OUTSIDE)
        return project, self.users.get(run.user, run.user), run.account or run.partition or UNRECORDED
