"""A Slurm engine on a real cluster, as its tests need it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from penstock.engines.slurm.engine import SlurmEngine
from penstock.engines.slurm.spec import SlurmConfig
from penstock.engines.slurm.transport import LocalTransport
from tests.engines.conftest import World
from tests.slurm_cluster import Cluster


def configured(cluster: Cluster, data: Path, **config: Any) -> SlurmConfig:
    """The two nodes of partition ``pair``; Penstock may change them."""
    folder = data / "cluster"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o1777)
    environment = {"SLURM_CONF": cluster.environment["SLURM_CONF"]}
    told: dict[str, Any] = {
        "folder": str(folder),
        "partition": "pair",
        "managed": True,
        "poll_s": 0.2,
        "environment": environment,
    }
    return SlurmConfig("c1", **(told | config))


def engine(cluster: Cluster, data: Path, **config: Any) -> SlurmEngine:
    site = configured(cluster, data, **config)
    return SlurmEngine(site, LocalTransport(site.environment))


@asynccontextmanager
async def running(under_test: SlurmEngine, cluster: Cluster, data: Path) -> AsyncIterator[World]:
    """The engine's world; afterwards the cluster is as it was."""
    world = World(under_test, data)
    await world.engine.start(world.seen.append)
    try:
        yield world
    finally:
        await world.engine.close()
        for node in ("node-0", "node-1"):
            cluster.tried("scontrol", "update", f"NodeName={node}", "State=RESUME")
        cluster.clear()


@asynccontextmanager
async def slurm_world(cluster: Cluster, data: Path, **config: Any) -> AsyncIterator[World]:
    async with running(engine(cluster, data, **config), cluster, data) as world:
        yield world
