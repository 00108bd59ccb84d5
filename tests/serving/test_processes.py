"""A program that outlives its server: started, adopted, started again, replaced, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from penstock.serving.processes import Detached, Record, ended

SLEEPER = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
)
ENV = {"PATH": "/usr/bin:/bin"}


async def until_up(process: Detached) -> None:
    async with asyncio.timeout(20):
        while not process.log.exists() or "up" not in process.log.read_text():
            await asyncio.sleep(0.01)


def test_another_object_adopts_what_the_first_started(tmp_path: Path) -> None:
    async def story() -> None:
        first = Detached(tmp_path, "sleeper")
        started = first.start(SLEEPER, ENV)
        adopted = Detached(tmp_path, "sleeper").running()
        assert adopted == started
        assert adopted.alive
        assert os.getsid(started.pid) == started.pid != os.getsid(0)
        await first.stop(5)
        assert not started.alive
        assert Detached(tmp_path, "sleeper").running() is None

    asyncio.run(story())


def test_a_pid_that_is_somebody_elses_is_not_adopted(tmp_path: Path) -> None:
    async def story() -> None:
        process = Detached(tmp_path, "sleeper")
        started = process.start(SLEEPER, ENV)
        kept = tmp_path / "sleeper.json"
        true = kept.read_text()
        kept.write_text(true.replace(str(started.start_time), str(started.start_time + 1)))
        assert process.running() is None
        kept.write_text("{half a rec")
        assert process.running() is None
        kept.write_text(true)
        await process.stop(5)

    asyncio.run(story())


@contextlib.asynccontextmanager
async def kept(process: Detached, argv: tuple[str, ...]) -> AsyncIterator[asyncio.Queue[Record]]:
    told: asyncio.Queue[Record] = asyncio.Queue()
    task = asyncio.create_task(process.keep(argv, ENV, told.put_nowait))
    try:
        yield told
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_it_starts_again_when_killed_and_lives_on_when_nobody_keeps_it(tmp_path: Path) -> None:
    async def story() -> None:
        process = Detached(tmp_path, "sleeper")
        async with kept(process, SLEEPER) as told:
            first = await asyncio.wait_for(told.get(), 20)
            os.kill(first.pid, signal.SIGKILL)
            second = await asyncio.wait_for(told.get(), 20)
            assert second.pid != first.pid
        assert second.alive
        async with kept(Detached(tmp_path, "sleeper"), SLEEPER) as told:
            assert await asyncio.wait_for(told.get(), 20) == second
            await process.stop(5)
            await asyncio.wait_for(told.get(), 20)
        await process.stop(5)

    asyncio.run(story())


def test_other_arguments_replace_it(tmp_path: Path) -> None:
    async def story() -> None:
        process = Detached(tmp_path, "sleeper")
        first = process.start(SLEEPER, ENV)
        async with kept(process, (*SLEEPER, "newer")) as told:
            second = await asyncio.wait_for(told.get(), 20)
            assert second.argv[-1] == "newer"
            await asyncio.wait_for(ended(first), 20)
        await process.stop(5)

    asyncio.run(story())


def test_one_that_does_not_hear_is_killed(tmp_path: Path) -> None:
    async def story() -> None:
        process = Detached(tmp_path, "stubborn")
        started = process.start(STUBBORN, ENV)
        await until_up(process)
        await process.stop(0.2)
        assert not started.alive

    asyncio.run(story())


def test_its_port_stays(tmp_path: Path) -> None:
    process = Detached(tmp_path, "sleeper")
    assert process.port("127.0.0.1") == process.port("127.0.0.1") == Detached(tmp_path, "sleeper").port("127.0.0.1")


def test_a_port_that_somebody_took_is_given_up_unless_it_runs(tmp_path: Path) -> None:
    async def story() -> None:
        process = Detached(tmp_path, "sleeper")
        port = process.port("127.0.0.1")
        process.give_up_port("127.0.0.1")
        assert process.port("127.0.0.1") == port
        with socket.create_server(("127.0.0.1", port)):
            process.start(SLEEPER, ENV)
            process.give_up_port("127.0.0.1")
            assert process.port("127.0.0.1") == port
            await process.stop(5)
            process.give_up_port("127.0.0.1")
            assert process.port("127.0.0.1") != port

    asyncio.run(story())


def test_a_long_log_is_put_aside(tmp_path: Path) -> None:
    async def story() -> None:
        process = Detached(tmp_path, "sleeper")
        process.log.touch()
        os.truncate(process.log, (8 << 20) + 1)
        process.start(SLEEPER, ENV)
        await until_up(process)
        assert (tmp_path / "sleeper.log.1").stat().st_size == (8 << 20) + 1
        await process.stop(5)

    asyncio.run(story())
