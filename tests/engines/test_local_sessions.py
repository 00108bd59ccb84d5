"""Entering a running job: terminals, commands, ports; and who is turned away."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from penstock.base.errors import Conflict, NotFound
from penstock.engines.local import procs
from penstock.engines.spec import Launch, Session, SessionRequest
from tests.engines.conftest import World, until

Local = Callable[..., None]
SERVE = """
import socket
server = socket.create_server(("127.0.0.1", 0))
print(server.getsockname()[1], flush=True)
while True:
    link, _ = server.accept()
    data = link.recv(100)
    link.sendall(data.upper())
    link.close()
"""


@asynccontextmanager
async def entered(world: World, launch: Launch, *command: str, **request: Any) -> AsyncIterator[Session]:
    asked = SessionRequest(command, **request)
    session: Session = await world.engine.session(launch.attempt_id, launch.run_dir, asked)
    try:
        yield session
    finally:
        await session.close()


async def everything(session: Session) -> bytes:
    parts = []
    while (data := await session.receive()) is not None:
        parts.append(data)
    return b"".join(parts)


async def ready(world: World, *command: str, **fields: Any) -> Launch:
    """A job whose control socket is there."""
    launch = await world.begin(*command, **fields)
    await until(lambda: os.path.exists(f"{launch.run_dir}/control.sock"))
    return launch


def test_exec_is_inside_the_job(local: Local) -> None:
    async def body(world: World) -> None:
        launch = await ready(world, "sleep", "300", env={"MINE": "1"}, memory=256 << 20)
        async with entered(world, launch, "sh", "-c", "echo $MINE $PENSTOCK_JOB_ID; pwd; id -u; exit 5") as session:
            lines = (await everything(session)).decode().split()
            assert lines[:3] == ["1", launch.job_id, f"{launch.job_dir}/work"]
            assert lines[3] != "0" or os.geteuid() != 0
            assert await session.wait() == 5
        async with entered(world, launch, "cat", "/proc/self/cgroup") as session:
            inside = await everything(session)
        async with entered(world, launch, "sh", "-c", "cat /proc/$PPID/cgroup; true") as session:
            await everything(session)
        if b"penstock" in inside:
            assert launch.attempt_id.encode() in inside

    local(body)


def test_input_flows_and_ends(local: Local) -> None:
    async def body(world: World) -> None:
        launch = await ready(world, "sleep", "300")
        async with entered(world, launch, "wc", "-c") as session:
            await session.send(b"x" * 300_000)
            await session.close_input()
            assert (await everything(session)).split() == [b"300000"]
            assert await session.wait() == 0

    local(body)


def test_a_terminal_is_one(local: Local) -> None:
    async def body(world: World) -> None:
        launch = await ready(world, "sleep", "300")
        async with entered(world, launch, "sh", tty=True, cols=91, rows=33) as session:
            await session.send(b"tty && stty size; echo $TERM\n")
            text = ""
            while "33 91" not in text:
                text += (await session.receive() or b"").decode()
            await session.resize(100, 40)
            await session.send(b"stty size; exit 3\n")
            text += (await everything(session)).decode()
            assert "/dev/pts/" in text
            assert "40 100" in text
            assert "xterm" in text
            assert await session.wait() == 3

    local(body)


def test_closing_hangs_up(local: Local) -> None:
    async def body(world: World) -> None:
        launch = await ready(world, "sleep", "300")
        before = len(procs.marked(launch.attempt_id))
        async with entered(world, launch, "sh", tty=True) as session:
            await session.send(b"sleep 234\n")
            await until(lambda: len(procs.marked(launch.attempt_id)) >= before + 2)
        await until(lambda: len(procs.marked(launch.attempt_id)) == before)
        assert world.over(launch) is None

    local(body)


def test_a_session_ends_with_its_job(local: Local) -> None:
    async def body(world: World) -> None:
        launch = await ready(world, "sleep", "300")
        async with entered(world, launch, "sleep", "300") as session:
            await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Cancelled", grace_s=0.1)
            await world.end_of(launch)
            assert await everything(session) == b""
            assert await session.wait() in (128 + 15, 128 + 9)
        with pytest.raises(NotFound):
            async with entered(world, launch, "true"):
                pass

    local(body)


def test_what_cannot_be_started_is_said(local: Local) -> None:
    async def body(world: World) -> None:
        launch = await ready(world, "sleep", "300")
        with pytest.raises(NotFound) as unknown:
            async with entered(world, launch, "no-such-command"):
                pass
        assert unknown.value.message == "'no-such-command' was not found in the job's environment"
        with pytest.raises(Conflict, match="/etc/passwd"):
            async with entered(world, launch, "/etc/passwd", tty=True):
                pass
        with pytest.raises(Conflict, match="node-7"):
            async with entered(world, launch, "true", node="node-7"):
                pass

    local(body)


def test_only_the_jobs_own_ports_are_reached(local: Local) -> None:
    async def body(world: World) -> None:
        launch = await ready(world, "/usr/bin/python3", "-c", SERVE)
        text = ""
        while not text.strip():
            text = await world.log(launch)
        port = int(text)
        for word in (b"abc", b"def"):
            async with entered(world, launch, port=port) as session:
                await session.send(word)
                await session.close_input()
                assert await everything(session) == word.upper()
        with socket.create_server(("127.0.0.1", 0)) as foreign:
            told = rf"nothing in the job listens on port {foreign.getsockname()[1]} \(yet\); another program"
            with pytest.raises(Conflict, match=told):
                async with entered(world, launch, port=foreign.getsockname()[1]):
                    pass
            free = foreign.getsockname()[1]
        with pytest.raises(Conflict, match=r"nothing in the job listens on port \d+ \(yet\)$"):
            async with entered(world, launch, port=free):
                pass

    local(body)


def test_interactive_jobs_end_when_nobody_uses_them(local: Local) -> None:
    async def body(world: World) -> None:
        ended = await world.run("sleep", "300", interactive=True, idle_timeout_s=0.3)
        assert ended.reason == "IdleTimeout"
        busy = await world.begin("sh", "-c", "while :; do :; done", interactive=True, idle_timeout_s=2.0)
        talks = await world.begin(
            "sh", "-c", "while :; do echo x; sleep 0.05; done", interactive=True, idle_timeout_s=0.5
        )
        while len(await world.log(talks)) < 120:  # 60 lines: longer than either time-out
            await asyncio.sleep(0.05)
        assert world.over(busy) is None
        assert world.over(talks) is None

    local(body)


def test_a_supervisor_answers_only_sense(local: Local) -> None:
    async def body(world: World) -> None:
        launch = await ready(world, "sleep", "300")
        for line in (
            b"nonsense\n",
            b'{"op":"fly"}\n',
            b'{"op":"exec"}\n',
            b'{"op":"stop","grace_s":"x","reason":1}\n',
            b"[]\n",
        ):
            link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            link.connect(f"{launch.run_dir}/control.sock")
            link.settimeout(10)
            link.sendall(line)
            assert b"error" in link.recv(1000)
            link.close()
        assert world.over(launch) is None

    local(body)
