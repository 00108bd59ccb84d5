"""Real trainings on a real Slurm: two nodes of two ranks each do what they do on this machine, also when they are struck."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import sys
import tarfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.engines.spec import Launch, Observation, Stage
from tests.engines.conftest import World, local_world
from tests.engines.slurm_world import slurm_world
from tests.slurm_cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VENV = str(Path(sys.executable).parent.parent)
GANG: dict[str, Any] = {
    "launcher": "torchrun",
    "procs": 2,
    "nodes": ("node-0", "node-1"),
    "environment": {"venv": VENV},
    "cpus": 2.0,
    "memory": 3 << 30,
}
Slurm = Callable[[Callable[[World], Awaitable[None]]], None]


@pytest.fixture
def slurm(slurm_cluster: Cluster, data: Path) -> Slurm:
    def run(body: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            async with slurm_world(slurm_cluster, data) as world:
                await body(world)

        asyncio.run(main())

    return run


def carried(folder: Path, data: Path) -> str:
    """A snapshot of an example's folder."""
    path = data / f"{folder.name}.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            text = file.read_bytes()
            member = tarfile.TarInfo(file.name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    path.chmod(0o644)
    return str(path)


async def finished(world: World, *command: str, **fields: Any) -> tuple[Launch, Observation, str]:
    launch = await world.begin(*command, wait=False, **(GANG | fields))
    ended = await world.end_of(launch)
    return launch, ended, await world.log(launch)


def test_an_unmodified_torchrun_script_says_what_it_says_here(slurm: Slurm, data: Path) -> None:
    snapshot = carried(EXAMPLES / "torchrun", data)
    said: list[list[str]] = []

    async def body(world: World) -> None:
        _, ended, log = await finished(world, "python", "train.py", snapshot=snapshot)
        assert ended.reason == "Completed", (ended, log)
        assert [(rank.rank, rank.exit_code) for rank in ended.ranks] == [(rank, 0) for rank in range(4)]
        nodes = [rank.node for rank in ended.ranks]  # which node is first, torch's rendezvous decides
        assert sorted(nodes) == ["node-0", "node-0", "node-1", "node-1"]
        said.append(re.findall(r"step \d+ loss [\d.]+|y = .*", log))  # torch's own warnings aside

    async def here() -> None:
        async with local_world(data, local_nodes=2) as world:
            await body(world)

    slurm(body)
    asyncio.run(here())
    assert said[0] == said[1]
    assert len(said[0]) == 6
    assert "by 4 ranks" in said[0][-1]


def test_digits_learn_report_and_leave_their_result(slurm: Slurm, data: Path) -> None:
    snapshot = carried(EXAMPLES / "digits", data)

    async def body(world: World) -> None:
        command = ("python", "train.py", "--epochs", "6", "--checkpoint-every", "20")
        launch, ended, log = await finished(world, *command, snapshot=snapshot)
        assert ended.reason == "Completed", (ended, log)
        assert "4 rank(s) on cpu, 66 steps: a fresh start" in log
        assert re.search(r"test accuracy 0\.9\d", log)
        points = await world.engine.logs(launch.run_dir).progress()
        assert [point["step"] for point in points] == [*range(5, 66, 5), 66]
        assert all(point["rank"] == 0 for point in points)
        assert points[-1]["metrics"]["accuracy"] > 0.9
        assert [point["at"] for point in points] == sorted(point["at"] for point in points)
        work = data / "cluster" / launch.attempt_id / "work"
        assert json.loads((work / "result.json").read_text())["world_size"] == 4
        assert (data / "cluster" / launch.job_id / "checkpoints/last.pt").exists()

    slurm(body)


def test_every_rank_has_its_own_exit_and_the_first_failure_is_named(slurm: Slurm, data: Path) -> None:
    async def body(world: World) -> None:
        script = 'echo "I am $RANK of $WORLD_SIZE"; [ "$RANK" != 2 ] || exit 7; sleep 60'
        _, ended, log = await finished(world, "sh", "-c", script, launcher="none", environment={}, grace_s=2.0)
        assert (ended.reason, ended.exit_code) == ("Failed", 7), (ended, log)
        assert "rank 2" in ended.message
        assert "7" in ended.message
        exits = {rank.rank: (rank.exit_code, rank.signal) for rank in ended.ranks}
        assert exits[2] == (7, None)
        assert {exits[rank] for rank in (0, 1, 3)} == {(None, 15)}
        assert sorted(log.splitlines()) == [f"[rank {rank}] I am {rank} of 4" for rank in range(4)]

    slurm(body)


def rank_process(job_id: str, rank: int) -> int:
    """Its process id: the one that torch knows as this rank."""
    for entry in Path("/proc").iterdir():
        try:
            variables = (entry / "environ").read_bytes().split(b"\0") if entry.name.isdigit() else []
            words = (entry / "cmdline").read_bytes() if variables else b""
        except OSError:
            continue
        mine = {f"PENSTOCK_JOB_ID={job_id}".encode(), f"RANK={rank}".encode()}
        if mine <= set(variables) and b"train.py" in words and b"python" in words.split(b"\0")[0]:
            return int(entry.name)
    return 0


async def following(world: World, launch: Launch, text: str) -> None:
    while text not in await world.log(launch):
        assert not world.over(launch), await world.log(launch)
        await asyncio.sleep(0.2)


def test_a_rank_that_is_killed_is_named_and_the_next_attempt_resumes(slurm: Slurm, data: Path) -> None:
    snapshot = carried(EXAMPLES / "digits", data)
    command = ("python", "train.py", "--epochs", "12", "--checkpoint-every", "10")

    async def body(world: World) -> None:
        launch = await world.begin(*command, **GANG, snapshot=snapshot, grace_s=2.0)
        await following(world, launch, "epoch 3/12")
        os.kill(rank_process(launch.job_id, 3), signal.SIGKILL)
        ended = await world.end_of(launch)
        assert ended.reason == "Failed"
        assert "rank 3" in ended.message
        assert "KILL" in ended.message
        struck = next(rank for rank in ended.ranks if rank.rank == 3)
        assert struck.signal == 9
        again = await world.begin(*command, **GANG, snapshot=snapshot, job_id=launch.job_id, attempt=2, wait=False)
        ended = await world.end_of(again)
        log = await world.log(again)
        assert ended.reason == "Completed", log
        assert int(re.findall(r"resumed at step (\d+)", log)[0]) >= 30

    slurm(body)


def test_a_requeue_goes_on_from_the_checkpoint(slurm: Slurm, data: Path, slurm_cluster: Cluster) -> None:
    snapshot = carried(EXAMPLES / "digits", data)
    command = ("python", "train.py", "--epochs", "12", "--checkpoint-every", "10")

    async def body(world: World) -> None:
        launch = await world.begin(*command, **GANG, snapshot=snapshot, options={"requeue": True}, grace_s=2.0)
        await following(world, launch, "epoch 3/12")
        seen = world.last(launch)
        assert seen is not None
        slurm_cluster.run("scontrol", "requeue", seen.engine_job)
        ended = await world.end_of(launch)
        log = await world.log(launch)
        assert ended.reason == "Completed", (ended, log)
        assert ended.restarts >= 1
        assert int(re.findall(r"resumed at step (\d+)", log)[0]) >= 30
        assert Stage.QUEUED in {one.stage for one in world.seen[world.seen.index(seen) :]}

    slurm(body)
