"""The contract of engines, clause by clause, on a real Slurm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.engines.slurm.engine import SlurmEngine
from penstock.engines.slurm.spec import SlurmConfig
from penstock.engines.slurm.transport import LocalTransport
from tests.engines.conftest import World
from tests.engines.contract import CONTRACT
from tests.engines.test_contract import shell
from tests.slurm_cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]


def engine(cluster: Cluster, data: Path, **config: Any) -> SlurmEngine:
    """On the two nodes of partition ``pair``; Penstock may change them."""
    folder = data / "cluster"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o1777)
    environment = {"SLURM_CONF": cluster.environment["SLURM_CONF"]}
    told: dict[str, Any] = {"folder": str(folder), "partition": "pair", "managed": True, "poll_s": 0.2}
    site = SlurmConfig("c1", environment=environment, **(told | config))
    return SlurmEngine(site, LocalTransport(site.environment))


@asynccontextmanager
async def slurm_world(cluster: Cluster, data: Path, **config: Any) -> AsyncIterator[World]:
    world = World(engine(cluster, data, **config), data)
    await world.engine.start(world.seen.append)
    try:
        yield world
    finally:
        await world.engine.close()
        for node in ("node-0", "node-1"):
            cluster.tried("scontrol", "update", f"NodeName={node}", "State=RESUME")
        cluster.clear()


@pytest.mark.parametrize("clause", CONTRACT)
def test_slurm(clause: str, data: Path, slurm_cluster: Cluster) -> None:
    async def main() -> None:
        async with slurm_world(slurm_cluster, data) as world:
            await CONTRACT[clause](world, shell)

    asyncio.run(main())
