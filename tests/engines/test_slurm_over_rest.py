"""The contract of engines on a real Slurm that is asked by its slurmrestd; its commands do only what that version cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.engines.slurm.commands import CommandController
from penstock.engines.slurm.engine import SlurmEngine
from penstock.engines.slurm.rest import RestController
from penstock.engines.slurm.spec import SlurmConfig
from penstock.engines.slurm.transport import LocalTransport
from tests.engines.conftest import until
from tests.engines.contract import CONTRACT
from tests.engines.slurm_world import configured, running
from tests.engines.test_contract import shell
from tests.slurm_cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]


@pytest.fixture(scope="module")
def restd(slurm_cluster: Cluster) -> Iterator[str]:
    yield slurm_cluster.start_restd()
    slurm_cluster.stop_restd()


def over_rest(cluster: Cluster, url: str, site: SlurmConfig) -> SlurmEngine:
    site = replace(site, rest=url, token=cluster.token("root"))
    transport = LocalTransport(site.environment)
    return SlurmEngine(site, transport, RestController(site, CommandController(transport, site)))


@pytest.mark.parametrize("clause", CONTRACT)
def test_slurm_over_rest(clause: str, data: Path, slurm_cluster: Cluster, restd: str) -> None:
    async def main() -> None:
        engine = over_rest(slurm_cluster, restd, configured(slurm_cluster, data))
        async with running(engine, slurm_cluster, data) as world:
            await CONTRACT[clause](world, shell)

    asyncio.run(main())


def test_a_range_of_nodes_is_as_many_as_are_free(data: Path, slurm_cluster: Cluster, restd: str) -> None:
    """By slurmrestd alone, with no commands at hand."""

    async def main() -> None:
        site = replace(configured(slurm_cluster, data), rest=restd, token=slurm_cluster.token("root"))
        engine = SlurmEngine(site, LocalTransport(site.environment), RestController(site))
        async with running(engine, slurm_cluster, data) as world:
            asked = {"nodes": ("", ""), "least": 1, "cpus": 5.0}
            both = await world.begin("true", **asked, wait=False)
            ended = await world.end_of(both)
            assert [(rank.rank, rank.node, rank.exit_code) for rank in ended.ranks] == [
                (0, "node-0", 0), (1, "node-1", 0),
            ]  # fmt: skip
            words = ("--parsable", "-D", "/tmp", "-o", "/dev/null", "-p", "pair", "-w", "node-0", "-c8")
            slurm_cluster.run("sbatch", *words, "--wrap", "sleep 100", user="nobody")
            await until(lambda: slurm_cluster.run("squeue", "-h", "-t", "R", "-o", "%i").split())
            one = await world.begin("sh", "-c", "echo $PENSTOCK_NNODES", **asked, wait=False)
            ended = await world.end_of(one)
            assert [(rank.rank, rank.node) for rank in ended.ranks] == [(0, "node-1")]
            assert [group.node for group in ended.groups] == ["node-1"]
            assert (await world.log(one)).endswith("1\n")

    asyncio.run(main())
