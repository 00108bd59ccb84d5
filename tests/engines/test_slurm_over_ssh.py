"""The contract of engines on a real Slurm whose commands and files are beyond a real sshd."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.engines.slurm.engine import SlurmEngine
from penstock.engines.slurm.ssh import SSHTransport
from penstock.engines.spec import SessionRequest, Stage
from tests.engines.conftest import World, until
from tests.engines.contract import CONTRACT
from tests.engines.slurm_world import configured, running
from tests.engines.sshd import Sshd, sshd
from tests.engines.test_contract import shell
from tests.slurm_cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "sshd", "root")]


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with sshd() as running:
        yield running


def over_ssh(cluster: Cluster, server: Sshd, data: Path) -> SlurmEngine:
    site = configured(cluster, data, ssh=server.target())
    transport = SSHTransport(server.target(), str(data / "ssh"), config=server.config, environment=site.environment)
    return SlurmEngine(site, transport)


@pytest.mark.parametrize("clause", CONTRACT)
def test_slurm_over_ssh(clause: str, data: Path, slurm_cluster: Cluster, server: Sshd) -> None:
    async def main() -> None:
        async with running(over_ssh(slurm_cluster, server, data), slurm_cluster, data) as world:
            await CONTRACT[clause](world, shell)

    asyncio.run(main())


def test_a_submission_in_flight_when_ssh_is_lost_is_found_again_and_runs_once(
    data: Path, slurm_cluster: Cluster, server: Sshd
) -> None:
    async def main() -> None:
        world = World(over_ssh(slurm_cluster, server, data), data)
        await world.engine.start(world.seen.append)
        try:
            for number in range(4):
                launch = world.launch("sh", "-c", f"echo once >>{data}/cluster/count-{number}")
                await world.engine.submit(launch)
                await asyncio.sleep(0.05 * number)  # cut at another moment of the submission each time
                server.drop()
                ended = await world.end_of(launch)
                assert ended.reason == "Completed", ended
                named = slurm_cluster.run("squeue", "-h", "-t", "all", "-o", "%j").split()
                assert sum(name.endswith(f".{launch.attempt_id}") for name in named) == 1
        finally:
            await world.engine.close()
            slurm_cluster.clear()

    asyncio.run(main())
    for number in range(4):
        assert (data / f"cluster/count-{number}").read_text() == "once\n"


def test_what_runs_is_unknown_while_ssh_is_lost_and_known_again_after(
    data: Path, slurm_cluster: Cluster, server: Sshd
) -> None:
    async def main() -> None:
        world = World(over_ssh(slurm_cluster, server, data), data)
        await world.engine.start(world.seen.append)
        try:
            launch = await world.begin("sh", "-c", "echo here; sleep 300")
            server.stop()
            await until(lambda: (seen := world.last(launch)) and seen.unknown_since)
            server.start()
            await until(lambda: (seen := world.last(launch)) and not seen.unknown_since)
            seen = world.last(launch)
            assert seen is not None
            assert seen.stage is Stage.RUNNING
            assert await world.log(launch) == "here\n"
            session = await world.engine.session(launch.attempt_id, launch.run_dir, SessionRequest(("echo", "in")))
            assert await session.receive() == b"in\n"
            await session.close()
            await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=5.0)
            assert (await world.end_of(launch)).reason == "Cancelled"
        finally:
            await world.engine.close()
            slurm_cluster.clear()

    asyncio.run(main())
