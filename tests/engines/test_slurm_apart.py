"""Nodes that share no files, for real: each has a disk of its own, and the server still ends up with everything."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.engines.slurm.engine import SlurmEngine
from penstock.engines.slurm.spec import SlurmConfig
from penstock.engines.slurm.transport import LocalTransport
from penstock.engines.spec import LogRequest
from tests.engines.conftest import OVER, World
from tests.engines.test_slurm_launch import carried
from tests.slurm_cluster import Cluster, cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]
PAIR: dict[str, Any] = {"nodes": ("node-0", "node-1"), "procs": 1, "grace_s": 2.0}


@pytest.fixture(scope="module")
def separate() -> Iterator[Cluster]:
    with cluster(private_mounts=["/srv/penstock-test"], settings={"SchedulerParameters": _PARAMETERS}) as slurm:
        yield slurm


_PARAMETERS = "bf_interval=1,bf_resolution=1,bf_continue,batch_sched_delay=0,sched_interval=1,sched_min_interval=0,max_script_size=200000"


def world_on(slurm: Cluster, data: Path) -> World:
    site = SlurmConfig(
        "c1",
        environment={"SLURM_CONF": slurm.environment["SLURM_CONF"]},
        folder="/srv/penstock-test",
        partition="pair",
        poll_s=0.2,
        shared=False,
    )
    return World(SlurmEngine(site, LocalTransport(site.environment)), data)


def code(data: Path, size: int = 0) -> str:
    folder = data / "code"
    folder.mkdir(exist_ok=True)
    (folder / "say.sh").write_text(
        'echo "rank $RANK on $(cat where)"; sleep "$1"; seq 20000; echo last of $RANK; exit "$2"\n'
    )
    (folder / "where").write_text("its own disk\n")
    if size:
        (folder / "big").write_bytes(os.urandom(size))
    return carried(folder, data)


def test_a_gang_has_its_files_on_every_node_and_its_logs_come_home(separate: Cluster, data: Path) -> None:
    async def main() -> None:
        world = world_on(separate, data)
        await world.engine.start(world.seen.append)
        launch = await world.begin("sh", "say.sh", "3", "0", **PAIR, snapshot=code(data))
        reader = world.engine.logs(launch.run_dir)
        followed = b""
        early = False
        async for piece in reader.read(LogRequest(follow=True), lambda: world.over(launch) is not None):
            followed += piece
            early = early or world.over(launch) is None
        began = time.monotonic()
        ended = await world.end_of(launch)
        assert ended.reason == "Completed", (ended, followed[-2000:])
        assert [(rank.rank, rank.node, rank.exit_code) for rank in ended.ranks] == [(0, "node-0", 0), (1, "node-1", 0)]
        log = await world.log(launch)
        for rank in (0, 1):
            mine = [line for line in log.splitlines() if line.startswith(f"[rank {rank}] ")]
            assert mine[0] == f"[rank {rank}] rank {rank} on its own disk"
            assert mine[-1] == f"[rank {rank}] last of {rank}"
            assert len(mine) == 20_002
        assert early
        assert sorted(followed.decode().splitlines()) == sorted(log.splitlines())
        assert time.monotonic() - began < 20
        for node in ("node-0", "node-1"):
            assert (separate.disk(node, "/srv/penstock-test") / launch.attempt_id / "work/say.sh").exists()
        await world.engine.close()

    asyncio.run(main())
    separate.clear()


def test_a_failure_is_named_though_no_disk_is_shared(separate: Cluster, data: Path) -> None:
    async def main() -> None:
        world = world_on(separate, data)
        await world.engine.start(world.seen.append)
        script = 'echo "hello from $RANK"; sleep 3; [ "$RANK" = 0 ] || exit 9; sleep 60'
        launch = await world.begin("sh", "-c", script, **PAIR, wait=False)
        ended = await world.end_of(launch)
        assert (ended.reason, ended.exit_code) == ("Failed", 9), ended
        assert "rank 1" in ended.message
        assert await world.log(launch) == "[rank 0] hello from 0\n[rank 1] hello from 1\n"
        single = await world.begin("sh", "-c", "echo alone; exit 4", wait=False)
        ended = await world.end_of(single)
        assert (ended.reason, ended.exit_code) == ("Failed", 4)
        assert await world.log(single) == "alone\n"
        stopped = await world.begin("sh", "-c", "echo begun; sleep 60")
        await world.engine.stop(stopped.attempt_id, stopped.run_dir, reason="Cancelled", grace_s=2.0)
        assert (await world.end_of(stopped)).reason == "Cancelled"
        assert await world.log(stopped) == "begun\n"
        await world.engine.close()

    asyncio.run(main())
    separate.clear()


def test_too_many_files_are_refused_in_words_before_slurm_is_asked(separate: Cluster, data: Path) -> None:
    async def main() -> None:
        world = world_on(separate, data)
        await world.engine.start(world.seen.append)
        launch = await world.begin("true", **PAIR, snapshot=code(data, 300_000), wait=False)
        ended = await world.end_of(launch)
        assert ended.reason == "LaunchFailed"
        assert "max_script_size" in ended.message
        assert separate.run("squeue", "-h") == ""
        await world.engine.close()

    asyncio.run(main())


def test_nobody_who_fetches_holds_a_job_up_for_long(separate: Cluster, data: Path) -> None:
    """The server is away: the job ends all the same, and its logs stay on its nodes."""

    async def main() -> None:
        world = world_on(separate, data)
        await world.engine.start(world.seen.append)
        launch = await world.begin("sh", "-c", "echo here; sleep 1")
        seen = world.last(launch)
        assert seen is not None
        await world.engine.close()
        began = time.monotonic()
        while separate.state(seen.engine_job) == "RUNNING":
            await asyncio.sleep(0.5)
        assert 30 < time.monotonic() - began < 90
        later = world_on(separate, data)
        await later.engine.start(later.seen.append)
        ended = await later.engine.adopt(launch.attempt_id, launch.run_dir)
        if ended.stage not in OVER:
            ended = await later.end_of(launch)
        assert (ended.reason, ended.exit_code) == ("Completed", 0)
        await later.engine.close()

    asyncio.run(main())
