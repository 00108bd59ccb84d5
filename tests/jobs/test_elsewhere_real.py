"""The reconciler with a real Slurm: the same job, in Slurm's own line, with usage by Slurm's times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.cost import ledger
from penstock.engines.several import Engines
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.simulated.shape import Fleet
from penstock.jobs.launch import Site
from penstock.jobs.reconcile import JobReconciler
from penstock.jobs.room import Room
from penstock.jobs.view import Memory
from penstock.reconcile.loop import Loop
from penstock.store.store import Store
from tests.engines import slurm_world
from tests.jobs.cluster import Cluster
from tests.slurm_cluster import Cluster as Slurm
from tests.stores import Clock

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]
PATIENCE_S = 60.0


class Real(Cluster):
    """As the made-up one, with Slurm as c1 and the clock on the wall. Jobs run as root's job user: nobody."""

    slurm: Slurm

    async def start(self) -> None:
        own = SimulatedEngine(Fleet(1, 0, cpus=2.0))
        self.engines = Engines(own)
        self.engines.add(slurm_world.engine(self.slurm, self.path, node_prefix="c1-"))
        site = Site("/nowhere", 1 << 20, 1 << 20, {})
        self.reconciler = JobReconciler(self.store, self.engines, Loop(), lambda _tx: 1, f"{self.path}/jobs", site)
        memory = Memory(own=own.name)
        self.room = Room(
            self.store,
            self.engines,
            {},
            lambda *_: True,
            lambda *_: None,
            unix_user="nobody",
            as_root=True,
            memory=memory,
        )
        await self.reconciler.start()
        await self.until(lambda: self._there())

    async def _there(self) -> bool:
        return "c1" in self.reconciler._running

    async def settled(self) -> None:
        """Slurm takes its time: each test waits for what it wants to see."""

    async def until(self, what: Callable[[], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := await what()):
                await asyncio.sleep(0.05)
            return found

    async def reaches(self, name: str, **wanted: object) -> dict[str, Any]:
        async def there() -> dict[str, Any] | None:
            status = await self.status(name)
            return status if all(status.get(key) == value for key, value in wanted.items()) else None

        try:
            return dict(await self.until(there))
        except TimeoutError:
            raise AssertionError((await self.reasons(name), await self.attempts(name))) from None


@asynccontextmanager
async def reals(slurm: Slurm, path: Path) -> AsyncIterator[Real]:
    store = Store.open(f"sqlite:///{path}/p.db", clock=time.time)
    ledger.attach(store)
    real = Real(store, Clock(), path, "nobody")
    real.slurm = slurm
    await real.start()
    try:
        yield real
    finally:
        await real.reconciler.close()
        await store.close()
        slurm.clear()


def test_a_line_a_requeue_a_cancel_and_a_restart_of_the_server(slurm_cluster: Slurm, data: Path) -> None:
    async def main() -> None:
        async with reals(slurm_cluster, data) as real:
            await real.run(
                "gang",
                "sleep",
                "1000",
                nodes=2,
                resources={"cpus": 8, "gpus": 4},
                max_restarts=2,
                engine_options={"requeue": True},
            )
            status = await real.reaches("gang", phase="Running")
            assert sorted(status["nodes"]) == ["c1-node-0", "c1-node-1"]
            await real.run("next", "sh", "-c", "exit 3", resources={"cpus": 2})
            await real.reaches("next", phase="Pending", reason="WaitingForResources")
            named = await real.until(lambda: _job_of(real, "next"))
            await real.until(lambda: _helps(real, "next"))
            await real.run("other", "sleep", "1000", resources={"cpus": 2})
            await real.until(lambda: _job_of(real, "other"))
            await real.cancel("other")
            await real.reaches("other", phase="Cancelled")
            assert real.slurm.tried("squeue", "-h", "-j", named).returncode == 0

            real.slurm.run("scontrol", "requeue", str(status["engine_job"]))
            again = await real.reaches("gang", restarts=1)
            assert again["phase"] in ("Pending", "Running")
            await real.restart()
            await real.cancel("gang")
            await real.reaches("gang", phase="Cancelled")
            ended = await real.reaches("next", phase="Failed")
            assert (ended["exit_code"], ended["engine_job"]) == (3, named)
            used = await real.usage()
            assert await real.attempt_id("other") not in used
            assert all(end is not None for spans in used.values() for *_, end in spans)
            gpus = (await real.attempts("gang"))[0]["groups"]
            assert gpus == [] or {gpu["model"] for group in gpus for gpu in group["gpus"]} == {"h100"}

    asyncio.run(main())


def test_the_wait_of_a_requeue_while_no_server_ran_costs_nothing(slurm_cluster: Slurm, data: Path) -> None:
    async def main() -> None:
        async with reals(slurm_cluster, data) as real:
            await real.run("job", "sleep", "1000", max_restarts=2, engine_options={"requeue": True})
            status = await real.reaches("job", phase="Running")
            number = str(status["engine_job"])
            await asyncio.sleep(2)
            await real.reconciler.close()
            before = time.time()
            real.slurm.run("scontrol", "requeuehold", number)
            await real.until(lambda: _is(real, number, "PENDING"))
            over = time.time()
            await asyncio.sleep(5)
            real.slurm.run("scontrol", "release", number)
            real.slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now")
            await real.until(lambda: _is(real, number, "RUNNING"))
            await real.start()
            await real.reaches("job", phase="Running", restarts=1)
            (_, began, ended), (_, again, none) = (await real.usage())[await real.attempt_id("job")]
            assert none is None and ended is not None
            assert began + 1 <= ended and before - 1 <= ended <= over + 1, (began, before, ended, over, again)
            assert again >= ended + 4

    asyncio.run(main())


async def _is(real: Real, number: str, state: str) -> bool:
    return real.slurm.run("squeue", "-h", "-o", "%T", "-j", number).strip() == state


def test_an_array_is_one_sbatch(slurm_cluster: Slurm, data: Path) -> None:
    async def main() -> None:
        async with reals(slurm_cluster, data) as real:
            await real.run("sweep", "sh", "-c", "exit 0", array={"count": 12})
            await real.reaches("sweep", phase="Succeeded")
            jobs = {(await real.status(f"sweep-{n}"))["engine_job"].partition("_")[0] for n in range(12)}
            assert len(jobs) == 1

    asyncio.run(main())


async def _helps(real: Real, name: str) -> list[str]:
    return list((await real.why(name))["helps"])


async def _job_of(real: Real, name: str) -> str | None:
    found: str | None = (await real.status(name)).get("engine_job")
    return found
