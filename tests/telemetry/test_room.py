"""Pushes: whose token, which push, what goes on to health; what is refused is told once."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from penstock.base.errors import Conflict, Forbidden, InvalidInput, NotFound, Unavailable
from penstock.base.resource import Actor
from penstock.store import events
from penstock.telemetry.push import Answer, Push, Row
from penstock.telemetry.spec import Finding
from tests.stores import NOON
from tests.telemetry.agents import Agent, Rig, own, rigged

XID = Finding("Xid", "node-1", NOON, NOON, "the GPU has fallen off the bus", code="79", device="GPU-0")


async def misuses(rig: Rig) -> list[str]:
    rows = await rig.room.store.read(
        lambda conn: events.page(conn, after=0, limit=100, kind="Token", reason="TokenMisused")
    )
    return [row.message for row in rows]


def test_a_nodes_own_agent_is_heard(tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(tmp_path) as rig:
            agent = Agent("node-1")
            assert await rig.take(agent, named=False) == Answer(0, series_wanted=True)
            agent.sequence = 0
            assert await rig.take(agent) == Answer(1)
            rig.clock.now += 10
            assert await rig.take(agent, named=False) == Answer(2)
            found = {series.name for series in rig.room.series("node-1", NOON - 60, NOON + 60)}
            assert "penstock_gpu_utilization_ratio" in found
            assert "penstock_node_tcp_retransmits_total" in found
            told = {(one.name, one.labels.get("outcome")): one.value for one in await rig.room.samples()}
            assert told["telemetry_pushes", "taken"] == 2
            assert told["telemetry_pushes", "series"] == 1
            assert told["telemetry_agents", None] == 1

    asyncio.run(test())


def test_another_nodes_token_is_refused_and_told_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(tmp_path) as rig:
            thief = own("node-2")
            for _ in range(3):
                with pytest.raises(Forbidden, match="agent:node-2 may not tell of node 'node-1'"):
                    await rig.room.take(thief, Agent("node-1").push(NOON))
            with pytest.raises(Forbidden):
                await rig.room.take(Actor("ann", projects={"default": "admin"}), Agent("node-1").push(NOON))
            assert len(await misuses(rig)) == 2
            assert rig.room.series("node-1", 0, NOON) == ()
            await rig.room.take(Actor("root", "admin"), Agent("node-1").push(NOON))

    asyncio.run(test())


def test_findings_of_other_nodes_are_refused_and_told_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(tmp_path) as rig:
            push = dataclasses.replace(Agent("node-2").push(NOON), findings=(XID,))
            for _ in range(2):
                with pytest.raises(InvalidInput, match="findings of other nodes"):
                    await rig.room.take(own("node-2"), push)
            assert rig.findings == []
            assert len(await misuses(rig)) == 1

    asyncio.run(test())


def test_a_push_counts_once_and_an_older_run_no_more(tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(tmp_path) as rig:
            agent = Agent("node-1")
            first = dataclasses.replace(agent.push(NOON), findings=(XID,))
            assert await rig.room.take(own("node-1"), first) == Answer(1)
            assert await rig.room.take(own("node-1"), first) == Answer(1)
            assert len(rig.findings) == 1
            restarted = Agent("node-1", run="run-2")
            assert await rig.take(restarted) == Answer(1)
            with pytest.raises(Conflict, match="a newer one has followed"):
                await rig.room.take(own("node-1"), agent.push(NOON + 10))

    asyncio.run(test())


def test_findings_that_health_cannot_take_are_sent_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(tmp_path) as rig:

            async def busy(_push: object, _findings: object) -> None:
                raise Unavailable("the database is away")

            rig.room.on_findings.append(busy)
            push = dataclasses.replace(Agent("node-1").push(NOON), findings=(XID,))
            with pytest.raises(Unavailable):
                await rig.room.take(own("node-1"), push)
            rig.room.on_findings.remove(busy)
            assert await rig.room.take(own("node-1"), push) == Answer(1)
            assert rig.findings[-1] == ("node-1", XID)

    asyncio.run(test())


@pytest.mark.parametrize("wrong", [-86400.0, 3600.0, 40 * 365 * 86400.0])
def test_a_node_whose_clock_is_wrong_is_heard_by_the_servers(tmp_path: Path, wrong: float) -> None:
    async def test() -> None:
        async with rigged(tmp_path) as rig:
            agent = Agent("node-1")
            await rig.take(agent)
            rig.clock.now += 10
            moved = dataclasses.replace(XID, at=NOON + 9 + wrong, first_at=NOON + 9 + wrong)
            push = dataclasses.replace(agent.push(NOON + 10 + wrong), findings=(moved,))
            assert await rig.room.take(own("node-1"), push) == Answer(2)
            assert rig.findings[-1][1].at == NOON + 9
            (load, *_) = rig.room.series("node-1", NOON - 60, NOON + 60)
            assert [at for at, _ in load.samples] == [NOON, NOON + 10]
            assert rig.room.heard["node-1"].offset == pytest.approx(-wrong)

    asyncio.run(test())


def test_rows_of_the_future_are_left(tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(tmp_path) as rig:
            agent = Agent("node-1")
            await rig.room.take(own("node-1"), agent.push(NOON, rows=[agent.row(NOON), agent.row(NOON + 1e6)]))
            rig.clock.now += 10
            await rig.take(agent)
            (load, *_) = rig.room.series("node-1", 0, NOON + 1e7)
            assert [at for at, _ in load.samples] == [NOON, NOON + 10]

    asyncio.run(test())


def test_a_node_that_is_not_there_is_not_heard(tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(tmp_path) as rig:
            with pytest.raises(NotFound):
                await rig.take(Agent("node-9"))
            assert not rig.room.heard

    asyncio.run(test())


def test_rows_that_are_shorter_than_their_series_are_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with rigged(tmp_path) as rig:
            agent = Agent("node-1")
            await rig.take(agent)
            short: Push = dataclasses.replace(agent.push(NOON + 10, named=False), rows=(Row(NOON + 10, (1.0,)),))
            with pytest.raises(InvalidInput, match="as long as its series"):
                await rig.room.take(own("node-1"), short)

    asyncio.run(test())
