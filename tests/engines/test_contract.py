"""The contract of engines, clause by clause, on every engine that needs nothing installed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.simulated.line import QueueingEngine
from penstock.engines.simulated.shape import Fleet
from tests.engines.conftest import World, local_world
from tests.engines.contract import CONTRACT


def shell(script: str, *, ignore_term: bool = False) -> tuple[str, ...]:
    verb, _, rest = script.partition(" ")
    if verb == "echo":
        return ("echo", rest)
    if ignore_term:
        return ("sh", "-c", f"trap '' TERM; echo ready; while :; do {script}; done")
    return ("sleep", rest) if verb == "sleep" else ("sh", "-c", script)


def _simulated(script: str, *, ignore_term: bool = False) -> tuple[str, ...]:
    verb, _, rest = script.partition(" ")
    return (*(("ignore-term",) if ignore_term else ()), verb, rest)


@pytest.mark.parametrize("clause", CONTRACT)
def test_local(clause: str, data: Path) -> None:
    async def main() -> None:
        async with local_world(data, local_nodes=2) as world:
            await CONTRACT[clause](world, shell)

    asyncio.run(main())


@pytest.mark.parametrize("clause", CONTRACT)
def test_simulated(clause: str, data: Path) -> None:
    async def main() -> None:
        world = World(SimulatedEngine(Fleet(2)), data)
        await world.engine.start(world.seen.append)
        await CONTRACT[clause](world, _simulated)
        await world.engine.close()

    asyncio.run(main())


@pytest.mark.parametrize("clause", CONTRACT)
def test_one_that_schedules_itself(clause: str, data: Path) -> None:
    async def main() -> None:
        world = World(QueueingEngine(Fleet(2)), data)
        await world.engine.start(world.seen.append)
        await CONTRACT[clause](world, _simulated)
        await world.engine.close()

    asyncio.run(main())
