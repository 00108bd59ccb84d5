"""Entering a job on a real Slurm: what is found inside, how it ends, and who is turned away."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.measure import free_ports, until
from penstock.base.errors import Conflict, InvalidInput, NotFound
from penstock.engines.slurm.sessions import Place, SlurmSession, open_session
from penstock.engines.slurm.ssh import SSHTransport
from penstock.engines.spec import SessionRequest
from tests.engines.here import Here
from tests.engines.sshd import Sshd, sshd
from tests.slurm_cluster import Cluster

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "sshd", "root")]
JOB = r"""#!/bin/sh
export PENSTOCK_JOB_ID=%s PENSTOCK_CKPT_DIR=/tmp/checkpoints RANK=0 WORLD_SIZE=1
export MINE="it's 'one'
and two \ \$(x) " PATH=/opt/venv/bin:/usr/bin:/bin
cd /usr/share
exec sh -c 'sleep 600'
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with sshd() as running:
        yield running


@pytest.fixture(params=["here", "ssh"])
def enter(slurm_cluster: Cluster, server: Sshd, request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Run a body with a running job of two GPUs: ``body(Inside)``."""
    name = f"JOB{time.monotonic_ns()}"
    words = ("sbatch", "--parsable", "-n1", "--gres=gpu:2", "--mem=500", "--output=/dev/null", "--export=NONE")
    job = slurm_cluster.run(*words, user="nobody", stdin=JOB % name).strip()
    until(lambda: slurm_cluster.state(job) == "RUNNING", "the job runs", timeout=60, every=0.05)
    node = slurm_cluster.run("squeue", "-h", "-o", "%N", "-j", job).strip()
    place = Place(int(job), name, "nobody", (node,))

    def run(body: Callable[[Inside], Awaitable[None]]) -> None:
        async def main() -> None:
            conf = {"SLURM_CONF": slurm_cluster.environment["SLURM_CONF"]}
            far = SSHTransport(server.target(), str(server.folder / "mux"), config=server.config, environment=conf)
            transport = Here(conf | {"PATH": os.environ["PATH"]}) if request.param == "here" else far
            inside = Inside(slurm_cluster, transport, place)
            while (await inside.output("sh", "-c", "echo $MINE"))[0] == b"\n":
                await asyncio.sleep(0.05)
            await body(inside)
            await far.close()

        asyncio.run(main())

    yield run
    slurm_cluster.clear()


class Inside:
    def __init__(self, slurm: Cluster, transport: Any, place: Place) -> None:
        self.slurm, self.transport, self.place = slurm, transport, place

    @asynccontextmanager
    async def session(self, *command: str, **request: Any) -> AsyncIterator[SlurmSession]:
        session = await open_session(self.transport, self.place, SessionRequest(command, **request))
        try:
            yield session
        finally:
            await session.close()

    async def output(self, *command: str, **request: Any) -> tuple[bytes, int | None]:
        async with self.session(*command, **request) as session:
            return await everything(session), await session.wait()

    def steps(self) -> int:
        return len(self.slurm.run("squeue", "-s", "-h", "-j", str(self.place.slurm_job)).splitlines())


async def everything(session: SlurmSession) -> bytes:
    parts = []
    while (data := await session.receive()) is not None:
        parts.append(data)
    return b"".join(parts)


def test_exec_is_inside_the_job(enter: Callable[..., None]) -> None:
    async def body(inside: Inside) -> None:
        script = r'printf "%s|" "$MINE" "$PENSTOCK_CKPT_DIR" "$RANK" "$PATH"; pwd; id -un; exit 5'
        said, code = await inside.output("sh", "-c", script)
        mine = "it's 'one'\nand two \\ $(x) "
        assert said.decode() == f"{mine}|/tmp/checkpoints||/opt/venv/bin:/usr/bin:/bin|/usr/share\nnobody\n"
        assert code == 5
        said, code = await inside.output("sh", "-c", "echo $CUDA_VISIBLE_DEVICES; env | grep -c AWS_SECRET; kill -9 $$")
        assert (said, code) == (b"0,1\n0\n", 128 + 9)
        assert await inside.output("sh", "-c", "echo wrong >&2; exit 255") == (b"wrong\n", 255)

    enter(body)


def test_input_flows_and_ends(enter: Callable[..., None]) -> None:
    async def body(inside: Inside) -> None:
        data = os.urandom(300_000)
        async with inside.session("cat") as session:

            async def feed() -> None:
                await session.send(data)
                await session.close_input()

            feeding = asyncio.create_task(feed())
            assert await everything(session) == data
            await feeding
            assert await session.wait() == 0

    enter(body)


def test_a_terminal_is_one(enter: Callable[..., None]) -> None:
    async def body(inside: Inside) -> None:
        async with inside.session("sh", tty=True, cols=91, rows=33) as session:
            await session.send(b"tty && stty size; echo $TERM\n")
            text = ""
            while "xterm-256color" not in text:
                text += (await session.receive() or b"").decode()
            assert "33 91" in text
            await session.resize(100, 40)
            while "40 100" not in text:
                await session.send(b"stty size\n")
                text += (await session.receive() or b"").decode()
            await session.send(b"exit 3\n")
            text += (await everything(session)).decode()
            assert "/dev/pts/" in text
            assert "srun:" not in text
            assert await session.wait() == 3

    enter(body)


@pytest.mark.parametrize("tty", [True, False])
def test_closing_ends_the_step_and_nothing_else(enter: Callable[..., None], tty: bool) -> None:
    async def body(inside: Inside) -> None:
        until(lambda: inside.steps() == 1, "the batch script alone", timeout=60, every=0.05)
        async with inside.session("sleep", "234", tty=tty):
            assert inside.steps() == 2
        until(lambda: inside.steps() == 1, "the step is gone", timeout=60, every=0.05)
        assert inside.slurm.state(str(inside.place.slurm_job)) == "RUNNING"

    enter(body)


def test_a_session_ends_with_its_job(enter: Callable[..., None]) -> None:
    async def body(inside: Inside) -> None:
        async with inside.session("sleep", "300") as session:
            inside.slurm.run("scancel", str(inside.place.slurm_job))
            assert await everything(session) == b""
            assert await session.wait() in (128 + 15, 128 + 9)
        with pytest.raises(NotFound, match="not running"):
            await inside.output("true")

    enter(body)


def test_what_cannot_be_started_is_said(enter: Callable[..., None]) -> None:
    async def body(inside: Inside) -> None:
        with pytest.raises(NotFound) as unknown:
            await inside.output("no-such-command")
        assert unknown.value.message == "'no-such-command' was not found in the job's environment"
        for tty in (True, False):
            with pytest.raises(Conflict, match="/etc/passwd"):
                await inside.output("/etc/passwd", tty=tty)
        with pytest.raises(Conflict, match="gpu77"):
            await inside.output("true", node="gpu77")
        with pytest.raises(InvalidInput):
            await inside.output()
        inside.place = replace(inside.place, slurm_job=987654)
        with pytest.raises(NotFound):
            await inside.output("true")

    enter(body)


SERVE = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True:
    link, _ = server.accept()
    data = b""
    while part := link.recv(65536):
        data += part
    link.sendall(data[::-1])
    link.close()
"""


@pytest.mark.parametrize("without", ["", "socat", "socat python3"])
def test_a_port_is_reached_whatever_the_node_has(enter: Callable[..., None], without: str) -> None:
    """bash cannot tell that an input ended: then the other side must end the connection."""

    async def body(inside: Inside) -> None:
        [port] = free_ports(1)
        with pytest.raises(Conflict, match=f"listens on port {port}"):
            await inside.output(port=port)
        serve = ECHO_ONCE if "python3" in without else SERVE
        async with inside.session("/usr/bin/python3", "-c", serve, str(port)) as serving:
            assert b"listening" in (await serving.receive() or b"")
            for size in (3, 400_000):
                data = os.urandom(size)
                await passes(inside, port, data, half="python3" not in without)

    hidden = without.split()
    enter(body) if not hidden else enter(hiding(body, hidden))


ECHO_ONCE = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True:
    link, _ = server.accept()
    size = int(link.recv(7))
    data = b""
    while len(data) < size:
        data += link.recv(65536)
    link.sendall(data[::-1])
    link.close()
"""


async def passes(inside: Inside, port: int, data: bytes, *, half: bool) -> None:
    async with inside.session(port=port) as session:

        async def feed() -> None:
            if half:
                await session.send(data)
                await session.close_input()
            else:
                await session.send(b"%07d" % len(data))
                await session.send(data)

        feeding = asyncio.create_task(feed())
        assert await everything(session) == data[::-1]
        await feeding
        assert await session.wait() is None


def hiding(body: Callable[[Inside], Awaitable[None]], programs: list[str]) -> Callable[[Inside], Awaitable[None]]:
    """As on a node that lacks these: the step's script looks for others by these names."""

    async def without(inside: Inside) -> None:
        inside.transport = Lacking(inside.transport, programs)
        await body(inside)

    return without


class Lacking:
    def __init__(self, inner: Any, programs: list[str]) -> None:
        self.inner, self.programs = inner, programs

    async def open(self, argv: Any, **more: Any) -> Any:
        words = list(argv)
        for program in self.programs:
            words = [word.replace(f"command -v {program} ", f"command -v no-{program} ") for word in words]
        return await self.inner.open(words, **more)
