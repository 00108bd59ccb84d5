"""The comparator as a process, told of exchanges as Envoy would: what it asks, what it counts, what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import grpc.aio
import pytest

from penstock.serving.extproc import METHOD, Kind, Part
from penstock.serving.orders import Function, Orders, Shadow
from penstock.serving.shadowed import Shadowed
from penstock.serving.sidecars import Comparator
from tests.serving.messages import encoded
from tests.serving.stand_in import Answer, Replica, Seen, replica

JSON = ((b"content-type", b"application/json"),)
SECRET = "Bearer very-secret"


@dataclass(slots=True)
class World:
    comparator: Comparator
    channel: grpc.aio.Channel

    @property
    def pid(self) -> int:
        found = self.comparator.process.running()
        assert found is not None
        return found.pid

    def order(self, *candidates: Replica, shadow: Shadow | None = None, timeout: float = 5.0) -> None:
        backends = tuple(one.backend for one in candidates)
        told = shadow or Shadow(1, 2)
        self.comparator.orders.put(Orders("default", "digits", {1: (), 2: backends}, timeout=timeout, shadow=told))

    async def tell(self, answer: bytes = b'{"p": [0.1, 0.9]}', status: int = 200, **words: object) -> None:
        await told(self.channel, exchange(answer, status, **words))  # type: ignore[arg-type]

    def seen(self) -> Shadowed | None:
        return self.comparator.seen().get(("default", "digits"))

    async def until(self, done: Callable[[Shadowed], bool]) -> Shadowed:
        async with asyncio.timeout(60):
            while (found := self.seen()) is None or not done(found):
                await asyncio.sleep(0.02)
        return found


def exchange(
    answer: bytes,
    status: int = 200,
    body: bytes = b'{"inputs": []}',
    path: str = "/default/digits/v2/infer?key=hidden",
    headers: Sequence[tuple[str, bytes]] = (("content-type", b"application/json"),),
) -> list[Part]:
    asked = (
        (":method", b"POST"),
        (":path", path.encode()),
        (":authority", b"api.test"),
        ("authorization", SECRET.encode()),
    )
    more = (("content-type", b"application/json"), ("x-envoy-attempt-count", b"1"), ("x-tenant", b"acme"))
    return [
        Part(Kind.REQUEST_HEADERS, (*asked, *more)),
        Part(Kind.REQUEST_BODY, body=body),
        Part(Kind.REQUEST_BODY, end=True),
        Part(Kind.RESPONSE_HEADERS, ((":status", str(status).encode()), *headers)),
        Part(Kind.RESPONSE_BODY, body=answer),
        Part(Kind.RESPONSE_BODY, end=True),
    ]


async def told(channel: grpc.aio.Channel, parts: Sequence[Part], service: str = "default/digits") -> None:
    async def messages() -> AsyncIterator[bytes]:
        for part in parts:
            yield encoded(part)

    stream = channel.stream_stream(METHOD)(messages(), metadata=(("x-penstock-service", service),))
    async for _ in stream:
        raise AssertionError("it answers nothing")


@contextlib.asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    comparator = Comparator(folder / "serving")
    keeping = asyncio.create_task(comparator.keep())
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{comparator.address[1]}") as channel:
            async with asyncio.timeout(60):
                await channel.channel_ready()
            yield World(comparator, channel)
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await comparator.stop(10)


def run(folder: Path, story: Callable[[World], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with world(folder) as found:
            await story(found)

    asyncio.run(whole())


def saying(body: bytes, **words: object) -> Callable[[Seen], Awaitable[Answer]]:
    async def behave(_seen: Seen) -> Answer:
        return Answer(headers=JSON, body=body, **words)  # type: ignore[arg-type]

    return behave


def test_the_candidate_is_asked_the_same_and_answers_are_compared(tmp_path: Path) -> None:
    async def alternately(seen: Seen) -> Answer:
        return Answer(headers=JSON, body=b'{"p": [0.1, 0.9]}' if b"same" in seen.body else b'{"p": [0.9, 0.1]}')

    async def story(world: World) -> None:
        async with replica(alternately) as candidate:
            world.order(candidate)
            for number in range(40):
                await world.tell(body=b'{"inputs": "same"}' if number % 4 else b'{"inputs": "other"}')
            found = await world.until(lambda one: one.agreement.compared == 40)
            assert (found.received, found.agreement.agreed, found.agreement.failed, found.dropped) == (40, 30, 0, {})
            assert found.stable_counts.requests == found.candidate_counts.requests == 40
            seen = candidate.seen[0]
            assert (seen.method, seen.target, seen.headers[b"host"]) == (b"POST", b"/v2/infer?key=hidden", b"api.test")
            assert seen.headers[b"authorization"] == SECRET.encode()
            assert seen.headers[b"x-tenant"] == b"acme"
            assert not any(key.startswith(b"x-envoy") for key in seen.headers)
            assert len(found.agreement.examples) == 10
            example = found.agreement.examples[0]
            assert example["differs"] == "$.p[0]: 0.1 against 0.9 (and 1 more of 2)"
            assert (example["request"], example["path"]) == ('{"inputs": "other"}', "/v2/infer")
            kept = (world.comparator.folder / "seen/default/digits.json").read_text()
            assert "secret" not in kept
            assert "hidden" not in kept

    run(tmp_path, story)


def test_errors_hangs_and_no_replica(tmp_path: Path) -> None:
    async def hang(_seen: Seen) -> Answer:
        await asyncio.sleep(60)
        raise AssertionError

    async def story(world: World) -> None:
        world.order()
        await world.tell()
        await world.until(lambda one: one.dropped == {"no_replica": 1})
        await world.tell(status=503)  # the stable version failed: nothing to agree with
        async with replica(saying(b"oops", status=500)) as bad:
            world.order(bad)
            await world.tell()
            found = await world.until(lambda one: one.agreement.failed == 1)
            assert found.agreement.examples[0]["differs"] == "status 500"
        async with replica(saying(b"{}", cut=True)) as cut:
            world.order(cut)
            await world.tell()
            await world.until(lambda one: one.agreement.failed == 2)
        await world.tell()  # its port takes no connection any more
        await world.until(lambda one: one.agreement.failed == 3)
        async with replica(hang) as slow:
            world.order(slow, timeout=0.3)
            await world.tell()
            found = await world.until(lambda one: one.agreement.failed == 4)
            assert found.candidate_counts.errors == 4
            assert "no answer in 0.3 s" in str(found.agreement.examples[-1]["differs"])
            assert found.received == 6
            assert (found.agreement.compared, found.agreement.agreed) == (4, 0)

    run(tmp_path, story)


def test_what_is_too_much_is_dropped_and_counted(tmp_path: Path) -> None:
    async def hang(_seen: Seen) -> Answer:
        await asyncio.sleep(60)
        raise AssertionError

    async def story(world: World) -> None:
        async with replica(hang) as slow:
            world.order(slow, timeout=60)
            for _ in range(30):
                await asyncio.gather(*(world.tell() for _ in range(20)))
            found = await world.until(lambda one: one.received == 600)
            assert found.dropped == {"backlog": 600 - 256 - 8}
            large = [Part(Kind.RESPONSE_BODY, body=bytes(1 << 20))] * 9
            parts = exchange(b"")
            await told(world.channel, [*parts[:4], *large, parts[-1]])
            found = await world.until(lambda one: one.received == 601)
            assert found.dropped["too_large"] == 1

    run(tmp_path, story)


def test_gzip_binary_tensors_and_streams(tmp_path: Path) -> None:
    async def answer(seen: Seen) -> Answer:
        if seen.target == b"/chat":
            events = (b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % piece for piece in (b"Hel", b"lo"))
            return Answer(
                headers=((b"content-type", b"text/event-stream"),), chunks=tuple((0.01, one) for one in events)
            )
        return Answer(headers=JSON, body=b'{"p": 1}')

    async def story(world: World) -> None:
        async with replica(answer) as candidate:
            world.order(candidate)
            packed = (("content-type", b"application/json"), ("content-encoding", b"gzip"))
            await world.tell(gzip.compress(b'{"p": 1}'), headers=packed)
            stream = b'data: {"choices": [{"delta": {"content": "Hello"}}]}\n\ndata: [DONE]\n\n'
            sse = (("content-type", b"text/event-stream"),)
            await world.tell(stream, path="/default/digits/chat", headers=sse)
            await world.tell(b"\x1f\x8b broken", headers=packed)
            found = await world.until(lambda one: one.agreement.compared == 3)
            assert found.agreement.agreed == 2
            early = exchange(b'{"p": 1}')
            await told(world.channel, [early[0], *early[3:]])  # it was answered before all of it was asked
            found = await world.until(lambda one: one.agreement.agreed == 3)
            assert found.stable_counts.seconds < 10

    run(tmp_path, story)


def test_counts_outlive_it_and_a_new_candidate_begins_anew(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        async with replica(saying(b'{"p": [0.1, 0.9]}')) as candidate:
            world.order(candidate)
            for _ in range(5):
                await world.tell()
            await world.until(lambda one: one.agreement.agreed == 5)
            first = world.pid
            os.kill(first, signal.SIGKILL)
            async with asyncio.timeout(60):
                while (record := world.comparator.process.running()) is None or record.pid == first:
                    await asyncio.sleep(0.02)
                while True:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        await world.tell()
                        break
                    await asyncio.sleep(0.1)
            await world.until(lambda one: one.agreement.agreed == 6)
            told = Orders("default", "digits", {3: (candidate.backend,)}, shadow=Shadow(1, 3))
            world.comparator.orders.put(told)
            await world.tell()
            found = await world.until(lambda one: one.candidate == 3 and one.agreement.agreed == 1)
            assert found.received == 1
            world.order(candidate, shadow=Shadow(1, 2, share=2500))
            for _ in range(40):
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await world.tell()
            found = await world.until(lambda one: one.offered == 40)
            assert (found.received, found.candidate) == (10, 2)
            world.comparator.orders.put(replace(told, shadow=None))
            await told_in_vain(world)  # nobody is in shadow
            world.comparator.orders.drop("default", "digits")
            await told_in_vain(world)
            assert world.comparator.process.running() is not None

    async def told_in_vain(world: World) -> None:
        """It may end a stream before it has heard all of it."""
        for service in ("", "no-slash", "../x", "default/none", "default/digits"):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await told(world.channel, exchange(b"{}"), service)

        async def rubbish() -> AsyncIterator[bytes]:
            yield b"\xff" * 50

        with contextlib.suppress(grpc.aio.AioRpcError):
            named = (("x-penstock-service", "default/digits"),)
            async for _ in world.channel.stream_stream(METHOD)(rubbish(), metadata=named):
                pass

    run(tmp_path, story)


FUNCTIONS = """
import os, sys, time

def same_label(stable, candidate):
    print("a line that is no answer")
    return stable["label"] == candidate["label"], f"{stable['label']} is not {candidate['label']}"

def crashes(stable, candidate):
    os.abort()

def hangs(stable, candidate):
    time.sleep(60)

def raises(stable, candidate):
    raise KeyError("nothing")

def eats(stable, candidate):
    return bytearray(8 << 30) and True
"""


@pytest.fixture
def reached() -> Iterator[Path]:
    """A folder that others may enter: pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="penstock-judges-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_a_function_of_the_services_own(tmp_path: Path, reached: Path) -> None:
    """It runs as nobody where these tests are root's."""
    code = reached
    (code / "judges.py").write_text(FUNCTIONS)
    user = (65534, 65534) if os.geteuid() == 0 else None
    python = "/usr/bin/python3" if os.geteuid() == 0 else sys.executable

    def shadow(name: str, who: tuple[int, int] | None = user) -> Shadow:
        return Shadow(1, 2, how="function", function=Function(f"judges:{name}", str(code), python, who))

    async def story(world: World) -> None:
        async with replica(saying(b'{"label": "cat"}')) as candidate:
            world.order(candidate, shadow=shadow("same_label"))
            await world.tell(b'{"label": "cat"}')
            await world.tell(b'{"label": "dog"}')
            found = await world.until(lambda one: one.agreement.compared + one.unjudged == 2)
            assert (found.agreement.compared, found.agreement.agreed) == (2, 1), found.problem
            assert found.agreement.examples[0]["differs"] == "dog is not cat"
            count = 0
            for name, problem in (
                ("crashes", "signal 6"),
                ("raises", "status 1"),
                ("eats", "status 1"),
                ("absent", "status 1"),
            ):
                world.order(candidate, shadow=shadow(name))
                await world.tell()
                count += 1
                found = await world.until(lambda one, least=count: one.unjudged == least)  # type: ignore[misc]
                assert problem in found.problem
            world.order(candidate, shadow=shadow("same_label"))
            await world.tell(b'{"label": "cat"}')
            await world.until(lambda one: one.agreement.agreed == 2)
            if os.geteuid() == 0:
                world.order(candidate, shadow=shadow("same_label", (0, 0)))
                await world.tell(b'{"label": "cat"}')
                found = await world.until(lambda one: one.unjudged == count + 1)
                assert "not run as root" in found.problem

    run(tmp_path, story)


def test_a_file_of_counts_that_is_none(tmp_path: Path) -> None:
    comparator = Comparator(tmp_path)
    (tmp_path / "seen/default").mkdir(parents=True)
    for text in ("", "{", "[]", '{"format": 1}', json.dumps({"format": 2})):
        (tmp_path / "seen/default/digits.json").write_text(text)
        assert comparator.seen() == {}
