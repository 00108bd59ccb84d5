"""Ranks on two nodes of a real Slurm, looked at and ended through sessions inside their allocation."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from penstock.training import culprit, stacks
from penstock.training.state import Clue, Evidence
from tests.engines.slurm_world import slurm_world
from tests.slurm_cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]
PATIENCE_S = 120.0
TRAIN = """
import os, time
import torch, torch.distributed as dist
import penstock
dist.init_process_group("gloo")
life = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
for step in range(10_000):
    if step == 10 and life == 0 and dist.get_rank() == 1:
        time.sleep(3600)
    dist.all_reduce(torch.ones(8))
    time.sleep(0.02)
    penstock.report(step=step + 1000 * life)
"""


def test_a_rank_that_hangs_on_another_node_is_named_and_all_are_started_again(
    slurm_cluster: Cluster, data: Path
) -> None:
    async def body() -> None:
        async with slurm_world(slurm_cluster, data) as world:
            launch = await world.begin(
                "python", "-c", TRAIN, launcher="torchrun", nodes=("node-0", "node-1"), restarts_left=2, cpus=1.0,
                memory=2 << 30, environment={"venv": str(Path(sys.executable).parent.parent)},
            )  # fmt: skip

            async def steps() -> dict[int, int]:
                points = await world.engine.logs(launch.run_dir).progress()
                return {point["rank"]: point["step"] for point in points}

            async with asyncio.timeout(PATIENCE_S):
                while (await steps()).get(0) != 9:
                    await asyncio.sleep(0.2)
            place = stacks.Place(world.engine, launch.attempt_id, launch.run_dir, ("node-0", "node-1"), 1)
            seen = await stacks.look(place)
            assert [(look.rank, look.node) for look in seen.looks] == [(0, "node-0"), (1, "node-1")], seen
            found = culprit.find(Evidence(seen.looks, 2, await steps(), seen.flight))
            assert (found.ranks, found.clue) == ((1,), Clue.APART), (found, seen)
            assert await stacks.end(place, seen.looks, found.ranks) >= 1
            async with asyncio.timeout(PATIENCE_S):
                while min((await steps()).values()) < 1000:
                    await asyncio.sleep(0.2)

    asyncio.run(body())
