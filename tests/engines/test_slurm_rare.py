"""Ends that take Slurm a minute and more to bring about, on clusters of their own: run by `make soak`."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from penstock.engines.spec import Stage
from tests.engines.conftest import World, until
from tests.engines.slurm_world import engine, running, slurm_world
from tests.slurm_cluster import cluster

pytestmark = [pytest.mark.soak, pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]


def test_jobs_that_slurmctld_has_purged(data: Path) -> None:
    """They ended while no server looked, and slurmctld forgot them: told by the run folder, or else by slurmdbd."""

    async def main() -> None:
        with cluster(min_job_age=2) as slurm:
            first = World(engine(slurm, data), data)
            await first.engine.start(first.seen.append)
            kept = await first.begin("sh", "-c", "echo told; sleep 3; exit 3")
            bare = await first.begin("sh", "-c", "sleep 3; exit 4", nodes=("node-1",))
            await first.engine.close()
            await until(lambda: not slurm.run("squeue", "-h", "-t", "all", "-o", "%i").split())
            shutil.rmtree(data / "cluster" / bare.attempt_id)
            async with running(engine(slurm, data), slurm, data) as world:
                seen = await world.engine.adopt(kept.attempt_id, kept.run_dir)
                ended = seen if seen.stage is Stage.EXITED else await world.end_of(kept)
                assert (ended.reason, ended.exit_code) == ("Failed", 3)
                assert await world.log(kept) == "told\n"
                seen = await world.engine.adopt(bare.attempt_id, bare.run_dir)
                ended = seen if seen.stage is Stage.EXITED else await world.end_of(bare)
                assert (ended.reason, ended.exit_code) == ("Failed", 4)

    asyncio.run(main())


def test_slurms_own_limits_and_another_qos(data: Path) -> None:
    async def main() -> None:
        with cluster(preempt="qos") as slurm:
            async with slurm_world(slurm, data) as world:
                deaf = ("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
                over = await world.begin(*deaf, options={"time": "1"}, grace_s=600.0)
                late = await world.begin(
                    "sleep", "60", cpus=8, nodes=("node-0",), wait=False,
                    options={"deadline": "now+75seconds", "time": "1"},
                )  # fmt: skip
                weak = await world.begin("sleep", "300", cpus=8, nodes=("node-1",))
                urgent = (
                    "-N1",
                    "-n1",
                    "-c8",
                    "-w",
                    "node-1",
                    "-p",
                    "pair",
                    "--qos=high",
                    "-D",
                    "/tmp",
                    "-o",
                    "/dev/null",
                )
                slurm.run("sbatch", *urgent, "--wrap", "sleep 2", user="daemon")
                assert (await world.end_of(weak)).reason == "Preempted"
                ended = await world.end_of(over)
                assert ended.reason == "TimeLimit", ended
                ended = await world.end_of(late)
                assert ended.stage is Stage.EXITED
                assert "deadline" in ended.message.lower(), ended

    asyncio.run(main())
