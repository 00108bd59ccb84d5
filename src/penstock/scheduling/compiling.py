"""The queue file that holds, put into the accounting of an engine that schedules itself.

What is made is recorded before and after, so that an interrupted run is taken up again and nobody else's is ever taken
for ours.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from penstock.base.errors import Conflict
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.base.routes import Call, Endpoint
from penstock.engines.slurm.accounts import Accounting, Action, Change, Fields, Key, command
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.scheduling import live
from penstock.scheduling import made as made_rows
from penstock.scheduling.compiler import Person, compiled
from penstock.scheduling.drift import Made, Plan, plan
from penstock.store.store import Store, Tx
from penstock.tenancy import accounts
from penstock.tenancy.plan import FLEET_ROLES

COMPILE = "/api/v1/queues/compile"
_EVERYBODY = 1 << 31
_WRITERS = frozenset({"member", "admin"})


class Books(Protocol):
    """An engine's accounting: ``engines.slurm.accounting.Accounts``."""

    async def read(self) -> Accounting: ...
    async def change(self, change: Change, cluster: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Engine:
    """``fallback``: the Unix user of jobs whose submitter is mapped to none."""

    name: str
    books: Books
    managed: bool
    fallback: str | None = None


class CompileQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    engine: str = Field(max_length=63)
    dry_run: bool = False
    overwrite: bool = Field(default=False, description="set back what was changed by hand")


def endpoints(store: Store, engine: Callable[[str], Awaitable[Engine]]) -> list[Endpoint]:
    """``engine(name)`` raises NotFound, and Conflict for one that has no accounting."""

    async def compile_(call: Call) -> dict[str, Any]:
        query: CompileQuery = call.query
        chosen = await engine(query.engine)
        made = await _planned(store, chosen, overwrite=query.overwrite)
        if query.dry_run:
            return made.answer | {"dry_run": True, "failed": []}
        if not chosen.managed:
            raise Conflict(
                f"the accounting of {chosen.name} is not Penstock's to change",
                hint=f"Add it with --manage, or look with `penstock queues compile --engine {chosen.name} --dry-run`.",
            )
        failed = await _apply(store, chosen, made, actor=call.actor.user)
        return made.answer | {"dry_run": False, "failed": failed}

    return [
        Endpoint(
            "POST", COMPILE, "queues.write", compile_, "Put the queue file into an engine's own accounts and QoS",
            query=CompileQuery,
        )
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Planned:
    plan: Plan
    made: Mapping[Key, Made]
    cluster: str
    answer: dict[str, Any]


async def _planned(store: Store, engine: Engine, *, overwrite: bool) -> _Planned:
    there = await engine.books.read()
    setup, people, made = await store.read(
        lambda conn: (live.current(conn), everybody(conn, engine.fallback), made_rows.recorded(conn, engine.name))
    )
    wanted = compiled(setup, people, there, engine.name)
    found = plan(wanted, there, made, overwrite=overwrite)
    answer = {
        "engine": engine.name,
        "cluster": there.cluster,
        "managed": engine.managed,
        "changes": [_change(one, there.cluster) for one in found.changes],
        "drift": [{"what": str(one.key), "field": one.field, "message": str(one)} for one in found.drift],
        "left": found.left,
        "cannot": wanted.cannot,
    }
    return _Planned(found, made, there.cluster, answer)


def _change(one: Change, cluster: str) -> dict[str, Any]:
    return {
        "action": one.action.value,
        "what": str(one.key),
        "fields": dict(one.fields),
        "why": one.why,
        "command": list(command(one, cluster)),
    }


async def _apply(store: Store, engine: Engine, made: _Planned, *, actor: str) -> list[str]:
    """What Slurm refused, in words; all else is done. Raises Unreachable: what was done till then is recorded."""
    found = made.plan
    before = {one.key: _after(one, made.made) for one in found.changes if one.action is not Action.DELETE}
    await store.write(lambda tx: made_rows.record(tx, engine.name, before, pending=True))
    done: list[Change] = []
    failed: list[str] = []
    lost: Unreachable | None = None
    for one in found.changes:
        try:
            await engine.books.change(one, made.cluster)
            done.append(one)
        except Refused as error:
            failed.append(f"{one.key}: {error}")
        except Unreachable as error:
            lost = error
            break

    def record(tx: Tx) -> None:
        refused = [one for one in found.changes if one not in done] if lost is None else []
        made_rows.record(
            tx, engine.name, {one.key: before[one.key] for one in done if one.key in before}, pending=False
        )
        made_rows.record(tx, engine.name, found.settled, pending=False)
        for one in refused:  # as it was: one that was not made is not ours
            was = made.made.get(one.key)
            if was is not None:
                made_rows.record(tx, engine.name, {one.key: was.fields}, pending=was.pending)
        gone = [one.key for one in done if one.action is Action.DELETE] + found.forget
        made_rows.forget(tx, engine.name, [*gone, *(one.key for one in refused if one.key not in made.made)])
        if done:
            words = f"{len(done)} changes in the accounting of {engine.name}" + (
                f", {len(failed)} refused" if failed else ""
            )
            data = {"engine": engine.name, "changes": [f"{one.action} {one.key}" for one in done[:100]]}
            tx.emit(Ref("Queues", "queues", id="queues"), Reason.QueuesCompiled, words, actor=actor, data=data)

    await store.write(record)
    if lost is not None:
        raise lost
    return failed


def _after(one: Change, made: Mapping[Key, Made]) -> Fields:
    """What of it will be ours: fields that were changed by hand, and are left, are as we last set them."""
    if one.action is Action.ADD:
        return one.fields
    ours = dict(made[one.key].fields) if one.key in made else {}
    return {name: value for name, value in {**ours, **one.fields}.items() if value}


def everybody(conn: Connection, fallback: str | None) -> list[Person]:
    """Who may submit, where; an administrator of the fleet may everywhere."""
    return [
        Person(
            user.name,
            user.unix_user or fallback,
            None
            if user.role == FLEET_ROLES[-1]
            else frozenset(project for project, role in user.projects.items() if role in _WRITERS),
        )
        for user in accounts.list_users(conn, "", _EVERYBODY)
    ]
