"""Many jobs are asked after by what goes on, and those that are over by their numbers: the answer is the same."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.measure import until
from penstock.engines.slurm.commands import CommandController
from penstock.engines.slurm.spec import SlurmConfig
from penstock.engines.slurm.transport import LocalTransport
from tests.slurm_cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]


def test_many_jobs_of_which_some_run_some_wait_and_some_are_over(slurm_cluster: Cluster) -> None:
    script = "case $SLURM_ARRAY_TASK_ID in [0-4]) exit 0 ;; *) sleep 60 ;; esac"
    words = ("sbatch", "--parsable", "--array=0-79", "--ntasks=1", "--mem=10", "--output=/dev/null", "--wrap", script)
    number = slurm_cluster.run(*words, user="nobody").strip()
    keys = [f"{number}_{index}" for index in range(80)]
    controller = CommandController(LocalTransport(slurm_cluster.environment), SlurmConfig("c1"))

    def states() -> dict[str, str]:
        found = asyncio.run(controller.jobs([*keys, "999999"]))
        assert len(found) == len({job.key for job in found})
        return {job.key: job.state for job in found}

    try:
        until(lambda: list(states().values()).count("COMPLETED") == 5, "the first five to end", timeout=30)
        seen = states()
        assert sorted(seen) == sorted(keys)
        assert {"RUNNING", "PENDING"} <= set(seen.values())
        assert all(seen[f"{number}_{index}"] == "COMPLETED" for index in range(5))
        assert len(asyncio.run(controller.jobs(keys[:10]))) == 10
    finally:
        slurm_cluster.run("scancel", number)
        slurm_cluster.clear()
