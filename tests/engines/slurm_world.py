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


def engine(cluster: Cluster, data: Path, **config: Any) -> SlurmEngine:
    """On the two nodes of partition ``pair``; Penstock may change them."""
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
    site = SlurmConfig("c1", **(told | config))
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
