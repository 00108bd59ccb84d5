"""The contract of engines, clause by clause, on a real Slurm."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.engines.contract import CONTRACT
from tests.engines.slurm_world import slurm_world
from tests.engines.test_contract import shell
from tests.slurm_cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]


@pytest.mark.parametrize("clause", CONTRACT)
def test_slurm(clause: str, data: Path, slurm_cluster: Cluster) -> None:
    async def main() -> None:
        async with slurm_world(slurm_cluster, data) as world:
            await CONTRACT[clause](world, shell)

    asyncio.run(main())
