"""Compiling over the API, and what is remembered of it: nothing twice, nothing lost half-way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from penstock.base.errors import Conflict
from penstock.base.reasons import Reason
from penstock.base.resource import Actor
from penstock.base.routes import Call
from penstock.engines.slurm.accounts import Accounting, Action, Change, Key, Kind, limit
from penstock.engines.slurm.errors import Refused, Unreachable
from penstock.scheduling import live, made
from penstock.scheduling.compiling import CompileQuery, Engine, endpoints
from penstock.store import events
from penstock.store.store import Store, Tx
from penstock.tenancy import accounts
from penstock.tenancy.state import User
from tests.stores import opened

ROOT = {"fairshare": "1"}


@dataclass
class Site:
    """An accounting that remembers; it may refuse, or be lost after some changes."""

    there: Accounting = field(
        default_factory=lambda: Accounting(
            "test",
            {Key(Kind.ACCOUNT, "root"): ROOT},
            frozenset({"cpu", "gres/gpu"}),
            frozenset({"associations", "limits"}),
            "priority/multifactor",
        )
    )
    refuses: str = ""
    lost_after: int | None = None
    changes: int = 0

    async def read(self) -> Accounting:
        return self.there

    async def change(self, change: Change, cluster: str) -> None:
        assert cluster == "test"
        if self.lost_after is not None and self.changes >= self.lost_after:
            raise Unreachable("the site is gone")
        if self.refuses and self.refuses in str(change.key):
            raise Refused("you may not")
        self.changes += 1
        entities = dict(self.there.entities)
        if change.action is Action.DELETE:
            del entities[change.key]
        else:
            entities[change.key] = {n: v for n, v in {**entities.get(change.key, {}), **change.fields}.items() if v}
        self.there = replace(self.there, entities=entities)


async def prepared(store: Store, text: str) -> None:
    def write(tx: Tx) -> None:
        if not accounts.any_user(tx.conn):
            accounts.add_project(tx, "root", "vision")
            accounts.add_user(tx, "root", User("ann@example.org", "", tx.now, "ann"))
            accounts.set_member(tx, "root", "vision", "ann@example.org", "member")
            accounts.add_user(tx, "root", User("bob", "", tx.now))
            accounts.set_member(tx, "root", "vision", "bob", "member")
        live.replace(tx, text, actor="root")

    await store.write(write)


async def compile_(store: Store, site: Site, *, managed: bool = True, **query: bool) -> dict[str, Any]:
    async def engine(name: str) -> Engine:
        return Engine(name, site, managed, "nobody")

    handler = endpoints(store, engine)[0].handler
    answer = await handler(Call(Actor("root", "admin"), {}, CompileQuery(engine="c1", **query)))
    assert isinstance(answer, dict)
    return answer


QUEUES = "queues: [{name: vision, projects: [vision], quotas: {default: {gpus: 16}}}]"


def test_a_dry_run_changes_nothing_and_what_is_not_managed_cannot_be_changed(sqlite_url: str) -> None:
    async def main() -> None:
        site = Site()
        async with opened(sqlite_url) as store:
            await prepared(store, QUEUES)
            answer = await compile_(store, site, managed=False, dry_run=True)
            assert [(one["action"], one["what"]) for one in answer["changes"]] == [
                ("add", "account vision"),
                ("add", "user ann in account vision"),
                ("add", "user nobody in account vision"),  # bob's jobs run as the fallback
            ]
            assert answer["changes"][0]["command"][:5] == ["sacctmgr", "-i", "add", "account", "name=vision"]
            with pytest.raises(Conflict, match="not Penstock's to change"):
                await compile_(store, site, managed=False)
            assert site.changes == 0
            assert await store.read(made.account_options) == {}

    asyncio.run(main())


def test_twice_is_once_and_a_job_of_the_queue_goes_to_its_account(sqlite_url: str) -> None:
    async def main() -> None:
        site = Site()
        async with opened(sqlite_url) as store:
            await prepared(store, QUEUES)
            assert len((await compile_(store, site))["changes"]) == 3
            assert (await compile_(store, site))["changes"] == []
            assert site.changes == 3
            assert await store.read(made.account_options) == {("c1", "vision"): {"account": "vision"}}
            await prepared(store, "queues: [{name: other, projects: [vision]}]")
            await compile_(store, site)
            assert await store.read(made.account_options) == {("c1", "other"): {"account": "other"}}
            assert Key(Kind.ACCOUNT, "vision") not in site.there.entities
            told = await store.read(lambda conn: events.page(conn, after=None, limit=100, reason=Reason.QueuesCompiled))
            assert told[0].message == "3 changes in the accounting of c1"

    asyncio.run(main())


def test_a_change_by_hand_stays_until_it_is_overwritten(sqlite_url: str) -> None:
    async def main() -> None:
        site = Site()
        key = Key(Kind.ACCOUNT, "vision")
        async with opened(sqlite_url) as store:
            await prepared(store, QUEUES)
            await compile_(store, site)
            await site.change(Change(Action.SET, key, {limit("gres/gpu"): "99"}), "test")
            for _ in range(2):
                answer = await compile_(store, site)
                assert answer["changes"] == []
                assert [one["message"] for one in answer["drift"]] == [
                    "account vision: limit gres/gpu is 99, changed by hand from 16"
                ]
            assert site.there.entities[key][limit("gres/gpu")] == "99"
            await compile_(store, site, overwrite=True)
            assert site.there.entities[key][limit("gres/gpu")] == "16"
            assert (await compile_(store, site))["drift"] == []

    asyncio.run(main())


def test_what_is_refused_is_told_and_is_not_ours(sqlite_url: str) -> None:
    async def main() -> None:
        site = Site(refuses="user ann")
        async with opened(sqlite_url) as store:
            await prepared(store, QUEUES)
            assert (await compile_(store, site))["failed"] == ["user ann in account vision: you may not"]
            site.refuses = ""
            assert [one["what"] for one in (await compile_(store, site))["changes"]] == ["user ann in account vision"]
            site.refuses = "account vision"
            await prepared(store, QUEUES.replace("16", "17"))
            assert (await compile_(store, site))["failed"]
            site.refuses = ""
            answer = await compile_(store, site)
            assert [one["fields"] for one in answer["changes"]] == [{limit("gres/gpu"): "17"}]
            assert answer["drift"] == []

    asyncio.run(main())


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_site_that_is_lost_half_way_is_taken_up_where_it_was(sqlite_url: str, after: int) -> None:
    async def main() -> None:
        site = Site(lost_after=after)
        async with opened(sqlite_url) as store:
            await prepared(store, QUEUES)
            with pytest.raises(Unreachable):
                await compile_(store, site)
            site.lost_after = None
            answer = await compile_(store, site)
            assert len(answer["changes"]) == 3 - after
            assert answer["drift"] == []
            assert (await compile_(store, site))["changes"] == []

    asyncio.run(main())
