"""Engines under test, and the little world that each test of them needs."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from penstock.engines.local.engine import LocalConfig, LocalEngine
from penstock.engines.local.machine import Machine
from penstock.engines.local.spawner import Spawner
from penstock.engines.spec import Engine, Launch, LogRequest, Observation, RankGroup, Stage

DEADLINE_S = 240.0  # a deadline, not a wait: a loaded machine takes its time
MACHINE = Machine(4.0, 4 << 30)
JOB_USER = "nobody" if os.geteuid() == 0 else None
OVER = (Stage.EXITED, Stage.LOST)
_numbers = itertools.count()


async def until(what: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """Wait until ``what()`` is true; its value."""
    end = asyncio.get_running_loop().time() + deadline_s
    while not (value := what()):
        assert asyncio.get_running_loop().time() < end, "it did not happen in time"
        await asyncio.sleep(0.005)
    return value


@dataclass
class World:
    """One engine with everything it has said."""

    engine: Any
    data: Path
    seen: list[Observation] = field(default_factory=list)

    def launch(self, *command: str, **fields: Any) -> Launch:
        """An attempt of a new job on node-0 (or on ``nodes``)."""
        number = next(_numbers)
        job = fields.pop("job_id", f"01TEST{os.getpid():07d}{number:06d}")
        attempt = fields.pop("attempt", 1)
        nodes = fields.pop("nodes", ("node-0",))
        cpus, memory = fields.pop("cpus", 1.0), fields.pop("memory", None)
        groups = tuple(RankGroup(node, rank, cpus, memory) for rank, node in enumerate(nodes))
        told: dict[str, Any] = {
            "attempt_id": f"{job}.{attempt}",
            "job_id": job,
            "job_name": "test",
            "project": "default",
            "user": "tester",
            "attempt": attempt,
            "run_dir": str(self.data / "jobs" / job / str(attempt)),
            "job_dir": str(self.data / "jobs" / job),
            "groups": groups,
            "procs": 1,
            "launcher": "none",
            "command": command,
            "unix_user": JOB_USER,
            "grace_s": 5.0,
        }
        return Launch(**(told | fields))

    def last(self, launch: Launch) -> Observation | None:
        return next((seen for seen in reversed(self.seen) if seen.attempt_id == launch.attempt_id), None)

    def over(self, launch: Launch) -> Observation | None:
        last = self.last(launch)
        return last if last is not None and last.stage in OVER else None

    async def run(self, *command: str, **fields: Any) -> Observation:
        """Submit and wait for the end."""
        return await self.end_of(await self.begin(*command, wait=False, **fields))

    async def begin(self, *command: str, wait: bool = True, **fields: Any) -> Launch:
        """Submit, and wait until it was seen running."""
        launch = self.launch(*command, **fields)
        await self.engine.submit(launch)
        if wait:
            await until(lambda: (last := self.last(launch)) and last.stage not in (Stage.QUEUED, Stage.STARTING))
        return launch

    async def end_of(self, launch: Launch) -> Observation:
        await until(lambda: self.over(launch))
        ended = self.over(launch)
        assert ended is not None
        return ended

    async def log(self, launch: Launch, **request: Any) -> str:
        reader = self.engine.logs(launch.run_dir)
        pieces = [piece async for piece in reader.read(LogRequest(**request), lambda: self.over(launch) is not None)]
        return b"".join(pieces).decode()


@asynccontextmanager
async def local_world(data: Path, **config: Any) -> AsyncIterator[World]:
    """A local engine with a spawner of its own."""
    spawner = Spawner.fork()
    engine = LocalEngine(
        spawner, LocalConfig({"PATH": os.environ["PATH"], "SECRET": "s"}, **config), machine=lambda: MACHINE
    )
    world = World(engine, data)
    await engine.start(world.seen.append)
    try:
        yield world
    finally:
        for seen in {seen.attempt_id: seen for seen in world.seen}.values():
            if seen.stage not in OVER:
                job, _, attempt = seen.attempt_id.rpartition(".")
                run_dir = str(data / "jobs" / job / attempt)
                await world.engine.stop(seen.attempt_id, run_dir, reason="Cancelled", grace_s=0.0)
                await until(partial(os.path.exists, f"{run_dir}/exit.json"))
        await world.engine.close()


LocalTest = Callable[[World], Awaitable[None]]


@pytest.fixture
def local(data: Path) -> Callable[..., None]:
    """Run an async test body with a local engine: ``local(body, local_nodes=2)``."""

    def run(body: LocalTest, **config: Any) -> None:
        async def main() -> None:
            async with local_world(data, **config) as world:
                await body(world)

        asyncio.run(main())

    return run


def engine_of(world: World) -> Engine:
    """For the type checker: what the world's engine must satisfy."""
    engine: Engine = world.engine
    return engine
