"""The simulated engine beyond the contract: scripts, time that passes faster, restarts, failures, what it leaves behind."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.simulated import records
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.simulated.script import BUSY, Script
from penstock.engines.simulated.shape import BLOCK, RACK, Fleet, offers, parse_shape
from penstock.engines.spec import Observation, RankGroup, Stage
from tests.engines.conftest import World, until


@pytest.mark.parametrize(
    ("command", "script"),
    [
        (("sleep", "5"), Script(5.0)),
        (("sleep", "1h30m"), Script(5400.0)),
        (("exit", "3"), Script(0.0, 3)),
        (("sleep", "5", "then", "exit", "3"), Script(5.0, 3)),
        (("sh", "-c", "sleep 5; exit 3"), Script(5.0, 3)),
        (("echo", "all of it"), Script(0.0, prints="all of it\n")),
        (("sleep", "infinity"), Script(float("inf"))),
        (("python", "train.py"), Script(600.0)),
        (("true",), Script(0.0)),
        (("false",), Script(0.0, 1)),
        (("idle-gpu", "sleep", "9"), Script(9.0, gpu_busy=0.0)),
        (("ignore-term", "sleep", "9"), Script(9.0, ignores_term=True, prints="ready\n")),
    ],
)
def test_scripts(command: tuple[str, ...], script: Script) -> None:
    assert Script.parse(command, 600.0) == script


def test_a_script_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="not a duration"):
        Script.parse(("sleep", "long"), 1.0)


@pytest.mark.parametrize("text", ["", "64", "64x", "x8", "0x8", "8x17", "64X8", "1000000x8", "-1x8", "6 4x8"])
def test_a_shape_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"NODESxGPUS|nodes with"):
        parse_shape(text)


@given(st.integers(1, 300), st.integers(0, 16))
def test_every_fleet_is_laid_out(nodes: int, gpus: int) -> None:
    assert parse_shape(f"{nodes}x{gpus}") == (nodes, gpus)
    found = offers(Fleet(nodes, gpus))
    assert len({offer.name for offer in found}) == nodes
    assert len({gpu.id for offer in found for gpu in offer.gpus}) == nodes * gpus
    racks: dict[str, set[str]] = {}
    for offer in found:
        racks.setdefault(offer.labels[RACK], set()).add(offer.labels[BLOCK])
    assert all(len(blocks) == 1 for blocks in racks.values())
    assert max(sum(offer.labels[RACK] == rack for offer in found) for rack in racks) <= 8


class Clock:
    """Set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_was_left_running_has_ended_when_it_must_have(data: Path) -> None:
    """The next server, after ``away`` seconds, with each end that may have come meanwhile."""

    async def main(away: float, command: tuple[str, ...], limit: float | None) -> Observation:
        clock = Clock()
        fleet = Fleet(2, speed=10)
        before = World(SimulatedEngine(fleet, clock=clock), data)
        await before.engine.start(before.seen.append)
        launch = before.launch(*command, time_limit_s=limit, grace_s=50.0)
        await before.engine.submit(launch)
        await before.engine.close()
        clock.now += away
        after = SimulatedEngine(fleet, clock=clock)
        await after.start(lambda _seen: None)
        seen = await after.adopt(launch.attempt_id, launch.run_dir)
        assert await SimulatedEngine(fleet, clock=clock).adopt(launch.attempt_id, launch.run_dir) == seen
        await after.close()
        return seen

    def run(away: float, *command: str, limit: float | None = None) -> tuple[Stage, str | None, float | None]:
        seen = asyncio.run(main(away, command, limit))
        assert seen.started_at == 1000.0
        return seen.stage, seen.reason, seen.ended_at

    running = (Stage.RUNNING, None, None)
    assert run(9.0, "sleep", "100") == running
    assert run(11.0, "sleep", "100") == (Stage.EXITED, "Completed", 1010.0)
    assert run(11.0, "sleep", "100", "then", "exit", "3") == (Stage.EXITED, "Failed", 1010.0)
    assert run(11.0, "sleep", "100", limit=50.0) == (Stage.EXITED, "TimeLimit", 1005.0)
    assert run(7.0, "ignore-term", "sleep", "300", limit=50.0) == running
    assert run(11.0, "ignore-term", "sleep", "300", limit=50.0) == (Stage.EXITED, "TimeLimit", 1010.0)
    assert run(11.0, "ignore-term", "sleep", "70", limit=50.0) == (Stage.EXITED, "TimeLimit", 1007.0)


def test_a_fleet_that_shrank_has_lost_what_ran_there(data: Path) -> None:
    async def main() -> None:
        before = World(SimulatedEngine(Fleet(2)), data)
        await before.engine.start(before.seen.append)
        launch = await before.begin("sleep", "60", nodes=("node-0", "node-1"))
        await before.engine.close()
        seen = await SimulatedEngine(Fleet(1)).adopt(launch.attempt_id, launch.run_dir)
        assert (seen.stage, seen.reason) == (Stage.EXITED, "NodeLost")
        assert "node-1" in seen.message

    asyncio.run(main())


def _break(run_dir: str) -> None:
    """As a server leaves it whose power went while it wrote."""
    Path(run_dir, f"{records.RUN}.part").write_text("{")


def test_a_claim_without_a_beginning_may_be_taken_again(data: Path) -> None:
    async def main() -> None:
        world = World(SimulatedEngine(Fleet(1)), data)
        await world.engine.start(world.seen.append)
        launch = world.launch("echo", "once")
        assert records.claim(launch.run_dir)
        _break(launch.run_dir)
        assert (await world.engine.adopt(launch.attempt_id, launch.run_dir)).stage is Stage.ABSENT
        await world.engine.submit(launch)
        assert (await world.end_of(launch)).reason == "Completed"
        assert await world.log(launch) == "once\n"

    asyncio.run(main())


def test_speed_divides_what_jobs_state(data: Path) -> None:
    async def main() -> None:
        world = World(SimulatedEngine(Fleet(1, speed=3600)), data)
        await world.engine.start(world.seen.append)
        ended = await world.run("sleep", "1h")
        assert ended.started_at is not None
        assert ended.ended_at is not None
        assert ended.ended_at - ended.started_at == pytest.approx(1.0)
        limited = await world.run("sleep", "10h", time_limit_s=360.0)
        assert limited.reason == "TimeLimit"
        assert "360 s" in limited.message
        assert "0.1s at speed 3600" in limited.message
        shown = await world.log(world.launch("sleep", "1"))
        assert shown == ""

    asyncio.run(main())


def test_nodes_fail_and_come_back(data: Path) -> None:
    """At a thousand times the speed, an MTBF of an hour on 20 nodes is a failure each 0.18 s."""

    async def main() -> None:
        fleet = Fleet(20, 8, speed=1000, mtbf_s=3600.0, repair_s=100.0)
        world = World(SimulatedEngine(fleet, rng=random.Random(1)), data)
        changes: list[int] = []
        world.engine.on_change = lambda: changes.append(sum(not offer.ready for offer in world.engine.nodes()))
        await world.engine.start(world.seen.append)
        struck = [await world.begin("sleep", "infinity", nodes=(f"node-{n}",)) for n in range(20)]
        await until(lambda: len(changes) >= 10)
        assert {0, 1} <= set(changes)
        down = [offer for offer in world.engine.nodes() if not offer.ready]
        assert all(offer.message.startswith("simulated: ") for offer in down)
        ended = [over for launch in struck if (over := world.over(launch))]
        assert ended
        assert {over.reason for over in ended} == {"NodeLost"}
        await world.engine.close()
        count = len(changes)
        await asyncio.sleep(0.3)
        assert len(changes) == count

    asyncio.run(main())


def test_the_offers_are_the_same_object_while_nothing_changes() -> None:
    engine = SimulatedEngine(Fleet(2000, 8))
    assert engine.nodes() is engine.nodes()


def test_what_gpus_do(data: Path) -> None:
    async def main() -> None:
        world = World(SimulatedEngine(Fleet(1, 2)), data)
        await world.engine.start(world.seen.append)
        for gpu, words in (("SIM-0-0", ("sleep", "60")), ("SIM-0-1", ("idle-gpu", "sleep", "60"))):
            await world.begin(*words, groups=(RankGroup("node-0", 0, 1.0, None, (gpu,)),))
        found = {(one.node, one.gpu): one.utilization for one in await world.engine.gpu_samples()}
        assert found == {("node-0", "SIM-0-0"): 100 * BUSY, ("node-0", "SIM-0-1"): 0.0}
        await world.engine.close()

    asyncio.run(main())
