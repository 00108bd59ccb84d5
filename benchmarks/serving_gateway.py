"""The gateway under load: nothing is lost while weights change, replicas are killed and replaced; shares hold.

The real Envoy, told through the product's own publisher; replicas are processes of their own (benchmarks/serving_upstream.py)
that are killed with SIGKILL for real. What the reconciler would do (see that a replica is gone, start another, publish) is done
here, half a second late as the reconciler may be.
"""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.harness import Bar, alone, say, spread
from benchmarks.serving_upstream import FAILED
from penstock.serving.gateway.publish import Publisher
from penstock.serving.gateway.spec import Backend, Gateway, Match, ServiceRoute, VersionRoute
from penstock.serving.state import WHOLE

CONNECTIONS = 64
WEIGHTS, KILLS, REPLACEMENTS = 60, 20, 20
REQUESTS = 100_000
SHARE, CANARY = 1000, 20_000  # 10 %, and of how many requests it is measured
SWITCHES = 20
UPSTREAM = [sys.executable, "-m", "benchmarks.serving_upstream"]


@dataclass
class One:
    """A replica that runs."""

    process: subprocess.Popen[str]
    backend: Backend


@dataclass(frozen=True)
class Seen:
    """What the callers noted, a row a request."""

    sent: array[float]
    ended: array[float]
    version: bytes

    @classmethod
    def read(cls, file: Path) -> Seen:
        data = file.read_bytes()
        count = len(data) // 17
        return cls(array("d", data[: 8 * count]), array("d", data[8 * count : 16 * count]), data[16 * count :])

    @property
    def failed(self) -> int:
        return self.version.count(FAILED)


@dataclass
class World:
    folder: Path
    publisher: Publisher
    gateway: Gateway
    versions: dict[int, list[One]] = field(default_factory=dict)
    weights: dict[int, int] = field(default_factory=dict)
    mirrors: dict[int, int] = field(default_factory=dict)
    all: list[subprocess.Popen[str]] = field(default_factory=list)

    def spawn(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([*UPSTREAM, *words], stdout=subprocess.PIPE, text=True)
        self.all.append(process)
        return process

    async def start(self, version: int, delay_ms: float = 2.0) -> One:
        process = self.spawn("replica", str(version), str(delay_ms))
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        return One(process, Backend(f"r{port}", "127.0.0.1", port))

    async def publish(self) -> None:
        routes = tuple(
            VersionRoute(
                version, tuple(one.backend for one in there), self.weights[version], self.mirrors.get(version, 0)
            )
            for version, there in sorted(self.versions.items())
        )
        service = ServiceRoute("default", "digits", (Match("", "/default/digits/"),), routes)
        await self.publisher.publish(replace(self.gateway, services=(service,)))

    async def load(self) -> tuple[subprocess.Popen[str], Path]:
        file = self.folder / f"load-{len(self.all)}"
        path = "/default/digits/v2/models/digits/infer"
        process = self.spawn("load", str(self.gateway.port), path, str(CONNECTIONS), str(file))
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        return process, file

    async def asked(self) -> float:
        return sum(counts.requests for counts in (await self.publisher.counts()).values())


async def finish(load: tuple[subprocess.Popen[str], Path]) -> Seen:
    load[0].send_signal(signal.SIGTERM)
    await asyncio.to_thread(load[0].wait, 20)
    return Seen.read(load[1])


# ------------------------------------------------------------------------------------------------- what is done to it


async def weigh(world: World) -> None:
    world.weights[1] = random.randrange(1000, 9001)
    world.weights[2] = WHOLE - world.weights[1]
    await world.publish()
    await asyncio.sleep(0.05)


async def kill(world: World) -> None:
    there = world.versions[random.choice((1, 2))]
    one = there[random.randrange(len(there))]
    one.process.kill()
    await asyncio.sleep(0.5)
    version = 1 if one in world.versions[1] else 2
    there.remove(one)
    there.append(await world.start(version))
    await world.publish()
    await asyncio.sleep(0.1)


async def renew(world: World) -> None:
    version = random.choice((1, 2))
    there = world.versions[version]
    there.append(await world.start(version))
    await world.publish()
    one = there.pop(0)
    await world.publish()
    one.process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(one.process.wait, 10)


async def turmoil(world: World) -> tuple[Seen, float]:
    """60 + 20 + 20 in any order, until there were 100,000 requests too."""
    random.seed(6)
    steps = [weigh] * WEIGHTS + [kill] * KILLS + [renew] * REPLACEMENTS
    random.shuffle(steps)
    load = await world.load()
    before = await world.asked()
    for step in steps:
        await step(world)
    while await world.asked() - before < 1.02 * REQUESTS:
        await asyncio.sleep(0.2)
    counts = (await world.publisher.counts()).values()
    return await finish(load), sum(one.errors for one in counts)


async def switches(world: World) -> list[float]:
    """All traffic goes to the other version: from the publisher's call to the last request that was sent and answered by
    the old one.
    """
    load = await world.load()
    told: list[tuple[float, int]] = []
    for number in range(SWITCHES):
        version = 1 + number % 2
        world.weights = {version: WHOLE, 3 - version: 0}
        told.append((time.monotonic(), version))
        await world.publish()
        await asyncio.sleep(0.25)
    seen = await finish(load)
    ends = [at for at, _ in told[1:]] + [time.monotonic()]
    late = []
    for (at, version), end in list(zip(told, ends, strict=True))[1:]:
        rows = zip(
            seen.sent, seen.ended, seen.version, strict=True
        )  # answered before the next change, which is another's
        old = [sent for sent, ended, by in rows if at < sent and ended < end and by != version]
        late.append(max(old, default=at) - at)
    return late


async def shares(world: World) -> tuple[float, int, float]:
    """The canary's share in percent, of how many requests, and what of them the mirror got, in percent."""
    world.versions[3] = [await world.start(3)]
    world.weights = {1: WHOLE - SHARE, 2: SHARE, 3: 0}
    world.mirrors = {3: WHOLE}
    await world.publish()
    await asyncio.sleep(0.2)
    load = await world.load()
    while (counted := await asked_of(world.versions[3][0])) < CANARY:
        await asyncio.sleep(0.2)
    seen = await finish(load)
    await asyncio.sleep(0.3)
    counted = await asked_of(world.versions[3][0])
    by = Counter(seen.version)
    return 100 * by[2] / len(seen.version), len(seen.version), 100 * counted / len(seen.version)


async def asked_of(one: One) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", one.backend.port)
    writer.write(b"GET /count HTTP/1.1\r\n\r\n")
    body = await reader.readuntil(b"\r\n\r\n")
    number = await reader.readexactly(int(body.lower().partition(b"content-length: ")[2].split()[0]))
    writer.close()
    return int(number)


# ------------------------------------------------------------------------------------------------------------- bars


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def measured(folder: Path) -> list[Bar]:
    publisher = Publisher(folder / "gateway", concurrency=1)
    await publisher.start()
    world = World(folder, publisher, Gateway("127.0.0.1", free_port()))
    try:
        world.versions = {1: [await world.start(1) for _ in range(3)], 2: [await world.start(2) for _ in range(2)]}
        world.weights = {1: 9000, 2: 1000}
        await world.publish()
        began = time.monotonic()
        async with asyncio.timeout(150):
            seen, made_good = await turmoil(world)
        took = time.monotonic() - began
        say(
            f"turmoil: {len(seen.version)} requests in {took:.0f} s, {seen.failed} failed, {made_good:.0f} tries made good"
        )
        late = await switches(world)
        share, of, mirrored = await shares(world)
    finally:
        await publisher.stop(grace=1.0)
        await publisher.close()
        for process in world.all:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    what = f"{WEIGHTS} weight changes, {KILLS} SIGKILLs, {REPLACEMENTS} replacements; {CONNECTIONS} connections"
    tries = f"{len(seen.version)} requests in {took:.0f} s; {made_good:.0f} tries failed and were made good by another replica"
    return [
        Bar("requests failed in the turmoil", seen.failed, 0, "", note=f"{what}; {tries}"),
        Bar("requests in the turmoil", len(seen.version), REQUESTS, "", "at least"),
        Bar(
            "a change seen by all traffic",
            max(late) * 1000,
            100,
            "ms",
            note=spread([1000 * one for one in late], " ms"),
        ),
        Bar("canary's share less 10 points", abs(share - SHARE / 100), 1, "points", note=f"{share:.2f} % of {of}"),
        Bar("mirrored share", mirrored, 100, "%", "at least", note=f"of {of} requests"),
    ]


def measure() -> list[Bar]:
    with tempfile.TemporaryDirectory(prefix="gateway-") as folder:
        return asyncio.run(measured(Path(folder)))


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
