"""The activator as a process: who waits, who goes, who is refused; and what becomes of them when something dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from penstock.serving.gateway.spec import Backend
from penstock.serving.orders import Orders
from penstock.serving.processes import ended
from penstock.serving.sidecars import ENV, Activator, Demand
from penstock.serving.wire import Broken, Header
from tests.serving.stand_in import Answer, Got, Replica, Seen, call, replica

Story = Callable[["World"], Awaitable[None]]
NAMED: tuple[Header, ...] = ((b"x-penstock-service", b"default/digits"), (b"x-penstock-version", b"1"))


@dataclass(slots=True)
class World:
    activator: Activator
    said: list[Demand] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.activator.address[1]

    @property
    def pid(self) -> int:
        found = self.activator.process.running()
        assert found is not None
        return found.pid

    def order(self, *replicas: Replica, **words: object) -> None:
        backends: tuple[Backend, ...] = tuple(one.backend for one in replicas)
        self.activator.orders.put(Orders("default", "digits", {1: backends}, **words))  # type: ignore[arg-type]

    async def call(self, target: str = "/v2/infer", **words: object) -> Got:
        return await call(self.port, target, NAMED, **words)  # type: ignore[arg-type]

    async def until_held(self, count: int) -> None:
        async with asyncio.timeout(60):
            while not self.said or self.said[-1].held != count:
                await asyncio.sleep(0.01)

    async def until_up(self) -> None:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.close()
                    return
                await asyncio.sleep(0.02)

    async def hear(self) -> None:
        async for demand in self.activator.demands():
            self.said.append(demand)


def run(folder: Path, story: Story) -> None:
    @contextlib.asynccontextmanager
    async def world() -> AsyncIterator[World]:
        activator = Activator(folder / "serving")
        found = World(activator)
        tasks = [asyncio.create_task(activator.keep()), asyncio.create_task(found.hear())]
        try:
            await found.until_up()
            yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await activator.stop(10)

    async def whole() -> None:
        async with world() as found:
            await story(found)

    asyncio.run(whole())


def test_a_grpc_call_is_held_and_then_told_to_come_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.order(hold_requests=1)
        named = (*NAMED, (b"content-type", b"application/grpc+proto"))
        asked = asyncio.create_task(call(world.port, "/inference.GRPCInferenceService/ModelInfer", named, body=b"x"))
        await world.until_held(1)
        full = await call(world.port, "/inference.GRPCInferenceService/ModelInfer", named, body=b"x")
        assert (full.status, full.body, full.headers[b"grpc-status"]) == (200, b"", b"14")
        assert full.headers[b"grpc-retry-pushback-ms"] == b"2000"
        async with replica() as one:
            world.order(one)
            got = await asked
            assert (got.status, got.headers[b"grpc-status"]) == (200, b"14")
            assert b"is%20ready" in got.headers[b"grpc-message"]
            assert got.headers[b"grpc-retry-pushback-ms"] == b"100"
            assert one.seen == []

    run(tmp_path, story)


def test_held_until_there_is_a_replica_then_answered_in_order(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.order()
        calls = []
        for number in range(5):
            calls.append(asyncio.create_task(world.call(f"/{number}", body=b"x" * 100_000)))
            await world.until_held(number + 1)
        assert world.said[0] == Demand("default", "digits", 1)
        async with replica() as one:
            world.order(one, concurrency=1)
            answers = await asyncio.gather(*calls)
            assert [got.status for got in answers] == [200] * 5
            assert [seen.target for seen in one.seen] == [b"/0", b"/1", b"/2", b"/3", b"/4"]
            assert [len(seen.body) for seen in one.seen] == [100_000] * 5
            assert one.most == 1
            await world.until_held(0)
            assert (await world.call()).status == 200  # there is a replica: nobody waits

    run(tmp_path, story)


def test_too_many_and_too_long(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.order(hold_requests=2, hold_time=3.0)
        calls = [asyncio.create_task(world.call()) for _ in range(2)]
        await world.until_held(2)
        refused = await world.call()
        assert (refused.status, refused.headers[b"retry-after"]) == (503, b"2")
        assert b"wait for a replica of default/digits already" in refused.body
        for late in await asyncio.gather(*calls):
            assert (late.status, late.headers[b"retry-after"]) == (503, b"2")
            assert b"was ready in time" in late.body
        world.order(hold_time=60.0)
        call = asyncio.create_task(world.call())
        await world.until_held(1)
        world.activator.orders.drop("default", "digits")  # the service is deleted
        assert (await call).status == 503
        assert (await world.call()).status == 404

    run(tmp_path, story)


def test_bodies_and_answers_are_streamed(tmp_path: Path) -> None:
    async def streaming(seen: Seen) -> Answer:
        assert seen.body == b"one,two"
        return Answer(
            headers=((b"content-type", b"text/event-stream"),), chunks=((0, b"data: 1\n\n"), (1.0, b"data: 2\n\n"))
        )

    async def chunks() -> AsyncIterator[bytes]:
        yield b"one,"
        await asyncio.sleep(0.05)
        yield b"two"

    async def story(world: World) -> None:
        world.order()
        call = asyncio.create_task(world.call(body=chunks()))
        await world.until_held(1)
        async with replica(streaming) as one:
            world.order(one)
            got = await call
            assert got.body == b"data: 1\n\ndata: 2\n\n"
            assert got.headers[b"content-type"] == b"text/event-stream"
            assert one.seen[0].headers[b"transfer-encoding"] == b"chunked"
            reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
            head = b"".join(b"%s: %s\r\n" % pair for pair in NAMED)
            writer.write(
                b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 7\r\nexpect: 100-continue\r\n" + head + b"\r\n"
            )
            assert (await reader.readline()).startswith(b"HTTP/1.1 100")
            writer.write(b"one,two")
            await reader.readuntil(b"data: 1")  # the second is a second away
            assert not reader.at_eof()
            writer.close()

    run(tmp_path, story)


def test_a_caller_who_goes_is_forgotten(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.order()
        stays = asyncio.create_task(world.call("/stays"))
        await world.until_held(1)
        goes = asyncio.create_task(world.call("/goes", body=b"x" * 1000))
        await world.until_held(2)
        goes.cancel()
        await world.until_held(1)
        async with replica() as one:
            world.order(one)
            assert (await stays).status == 200
            assert [seen.target for seen in one.seen] == [b"/stays"]

    run(tmp_path, story)


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.soak)])
def test_thousands_wait_in_bounded_memory(tmp_path: Path, count: int) -> None:
    head = b"".join(b"%s: %s\r\n" % pair for pair in NAMED)
    request = (
        b"POST /v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000\r\n" + head + b"\r\n" + b"x" * 1000
    )

    class Caller(asyncio.Protocol):
        status = b""

        def __init__(self) -> None:
            self.ended = asyncio.get_running_loop().create_future()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(request)

        def data_received(self, data: bytes) -> None:
            self.status = self.status or data[9:12]

        def connection_lost(self, exc: Exception | None) -> None:
            del exc
            self.ended.set_result(self.status)

    async def story(world: World) -> None:
        loop = asyncio.get_running_loop()
        world.order(hold_requests=count)
        before = resident(world.pid)
        callers = [(await loop.create_connection(Caller, "127.0.0.1", world.port))[1] for _ in range(count)]
        await world.until_held(count)
        assert resident(world.pid) - before < count * 40_000
        assert (await world.call()).status == 503
        now, most, seen = 0, 0, 0

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal now, most, seen
            now, seen = now + 1, seen + 1
            most = max(most, now)
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(1000)
            now -= 1
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        world.order(Replica(Backend("r1", "127.0.0.1", server.sockets[0].getsockname()[1])), hold_requests=count)
        statuses = await asyncio.gather(*(caller.ended for caller in callers))
        server.close()
        assert set(statuses) == {b"200"}
        assert seen == count
        assert most <= 32

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    run(tmp_path, story)


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_huge_bodies_stay_where_they_are(tmp_path: Path) -> None:
    """20 callers send 8 MiB each while nobody takes them."""

    async def story(world: World) -> None:
        world.order()
        before = resident(world.pid)
        calls = [asyncio.create_task(world.call(body=b"x" * (8 << 20))) for _ in range(20)]
        await world.until_held(20)
        await asyncio.sleep(0.3)
        assert resident(world.pid) - before < 64 << 20
        async with replica() as one:
            world.order(one)
            assert {got.status for got in await asyncio.gather(*calls)} == {200}
            assert {len(seen.body) for seen in one.seen} == {8 << 20}
            assert resident(world.pid) - before < 96 << 20

    run(tmp_path, story)


def test_replicas_that_refuse_break_off_or_hang(tmp_path: Path) -> None:
    async def cut(seen: Seen) -> Answer:
        if seen.target == b"/hang":
            await asyncio.sleep(60)
        if seen.target == b"/half":
            return Answer(chunks=((0, b"half"),), cut=True)
        raise Broken("no answer at all")

    async def story(world: World) -> None:
        async with replica() as gone:
            pass
        world.order(gone, hold_time=5.0)
        call = asyncio.create_task(world.call("/refused"))
        await world.until_held(1)
        async with replica(name="r2") as one:
            world.order(gone, one)
            assert (await call).status == 200  # nothing had been sent to the one that took no connection
        async with replica(cut) as bad:
            world.order(bad, timeout=0.5)
            assert (await world.call("/nothing")).status == 502
            assert (await world.call("/hang")).status == 504
            with pytest.raises(Broken):
                await world.call("/half")
            await asyncio.sleep(0)

    run(tmp_path, story)


def test_what_is_no_request_of_a_service(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    async def story(world: World) -> None:
        async with replica() as one:
            world.order(one, max_body=5000)
            version = (b"x-penstock-version", b"1")
            for service in (
                b"",
                b"digits",
                b"default/none",
                b"../../etc/passwd",
                b"default/../x",
                b"a/b/c",
                b"\xff/\xff",
            ):
                got = await call(world.port, "/", ((b"x-penstock-service", service), version))
                assert got.status == 404, service
            assert (await call(world.port, "/", NAMED[:1])).status == 404
            assert (await world.call(body=b"x" * 5001)).status == 413
            assert (await world.call(body=endless())).status == 413
            many = tuple((b"x-many-%d" % number, b"y") for number in range(100_000))
            assert await answered(world.port, b"".join(b"%s: %s\r\n" % pair for pair in many)) == b"431"
            assert await answered(world.port, b"content-length: nonsense\r\n\r\n") == b"400"
            assert (await world.call(body=b"x" * 5000)).status == 200

    run(tmp_path, story)


async def answered(port: int, rest: bytes) -> bytes:
    """The status of what begins like a request and goes on so."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"POST / HTTP/1.1\r\nhost: x\r\n" + rest)
        return (await reader.readline()).split()[1]
    finally:
        writer.transport.abort()


def test_an_upgrade_answers_who_waits_and_its_successor_takes_the_others(tmp_path: Path) -> None:
    """Started with other arguments, as by a newer Penstock: the old one is asked to end, and does once nobody waits in it."""

    async def story() -> None:
        activator = Activator(tmp_path / "serving")
        world = World(activator)
        port = str(world.port)
        module = ("-m", "penstock.serving.activator", "--port", port, "--folder", str(activator.folder))
        old = activator.process.start((sys.executable, *module), ENV)
        await world.until_up()
        hearing = asyncio.create_task(world.hear())
        world.order()
        held = asyncio.create_task(world.call("/held"))
        await world.until_held(1)
        keeping = asyncio.create_task(activator.keep())
        async with asyncio.timeout(60):
            while world.pid == old.pid or not listens_alone(world.pid, world.port):
                await asyncio.sleep(0.02)
        world.said.clear()
        new = asyncio.create_task(world.call("/new"))
        await world.until_held(1)
        assert old.alive
        async with replica() as one:
            world.order(one)
            assert [(await held).status, (await new).status] == [200, 200]
        async with asyncio.timeout(30):
            await ended(old)
        for task in (keeping, hearing):
            task.cancel()
        await asyncio.gather(keeping, hearing, return_exceptions=True)
        await activator.stop(10)

    asyncio.run(story())


def listens_alone(pid: int, port: int) -> bool:
    """One socket listens on ``port``, and it is this process'."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    found = [row[9] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]
    held = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
    return len(found) == 1 and f"socket:[{found[0]}]" in held


def test_killed_it_is_back_on_its_port_and_is_heard_again(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        world.order()
        lost = asyncio.create_task(world.call())
        await world.until_held(1)
        first = world.pid
        os.kill(first, signal.SIGKILL)
        with pytest.raises(Broken):
            await lost
        async with asyncio.timeout(60):
            while (found := world.activator.process.running()) is None or found.pid == first:
                await asyncio.sleep(0.01)
        await world.until_up()
        world.said.clear()
        again = asyncio.create_task(world.call())
        await world.until_held(1)
        async with replica() as one:
            world.order(one)
            assert (await again).status == 200

    run(tmp_path, story)


def test_it_goes_on_without_a_server(tmp_path: Path) -> None:
    """Nobody keeps it, nobody hears it; the next server is told at once who waits."""

    async def story() -> None:
        activator = Activator(tmp_path / "serving")
        keeping = asyncio.create_task(activator.keep())
        world = World(activator)
        await world.until_up()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        pid = world.pid
        world.order()
        held = asyncio.create_task(world.call())
        await asyncio.sleep(0.2)
        began = time.monotonic()
        hearing = asyncio.create_task(world.hear())
        await world.until_held(1)
        assert time.monotonic() - began < 30
        assert world.pid == pid
        async with replica() as one:
            world.order(one)
            assert (await held).status == 200
        hearing.cancel()
        await asyncio.gather(hearing, return_exceptions=True)
        await activator.stop(10)

    asyncio.run(story())
