"""A bad canary is taken back within ten seconds of its traffic, and twenty that are no different are not: with the real Envoy.

Counts come from Envoy's own counters through the product's publisher, answers are compared by the product's comparator, the
planner is asked each second and what it says is published. Replicas are processes that can be made bad. Several services
take requests through one gateway at a time, and so share the machine's noise.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Bar, alone, say
from benchmarks.serving_gateway import free_port
from penstock.serving import rollout
from penstock.serving.gateway.publish import Publisher
from penstock.serving.gateway.spec import Backend, Gateway, Match, ServiceRoute, VersionRoute
from penstock.serving.orders import Orders, Shadow
from penstock.serving.sidecars import Comparator
from penstock.serving.spec import Rollout, Step
from penstock.serving.state import WHOLE, RolloutPhase, RolloutSeen, Want

STABLE = 1
SERVICES = 3
PER_S = 300  # requests of each service
WATCHED_S = 4.0  # before a rollout: what the stable version is like
ALIKE = 20
ROUNDS = 3
MEDIAN = 50.0  # milliseconds
CANARY = Rollout(strategy="canary", steps=(Step(weight=10, time=6), Step(weight=50, time=4)))
SHADOW = Rollout(strategy="shadow", shadow_time=6, steps=(Step(weight=10, time=4),))
GOOD = (MEDIAN, 0.0, 0.0)
BAD = {
    "10% errors": (CANARY, (MEDIAN, 0.1, 0.0)),
    "+50% latency": (CANARY, (1.5 * MEDIAN, 0.0, 0.0)),
    "10% wrong answers": (SHADOW, (MEDIAN, 0.0, 0.1)),
}
WIRES = [sys.executable, "-m", "benchmarks.serving_rollout_wires"]


@dataclass
class Service:
    name: str
    versions: dict[int, Backend] = field(default_factory=dict)
    wants: Mapping[int, Want] = field(default_factory=dict)
    candidate: int = STABLE
    process: subprocess.Popen[str] | None = None


@dataclass(frozen=True)
class End:
    """``seconds``: from the first request (or copy) that the candidate could get, until none is sent to it any more."""

    phase: RolloutPhase
    seconds: float
    message: str


class Live:
    """One gateway with its services."""

    def __init__(self, folder: Path, count: int = SERVICES) -> None:
        self.publisher = Publisher(folder / "gateway", concurrency=1)
        self.comparator = Comparator(folder / "sidecars")
        self.gateway = Gateway("127.0.0.1", free_port())
        self.services = [Service(f"s{n}") for n in range(count)]
        self.all: list[subprocess.Popen[str]] = []
        self.keeping: asyncio.Task[None] | None = None
        self.turn = asyncio.Lock()

    def spawn(self, *words: object) -> subprocess.Popen[str]:
        self.all.append(subprocess.Popen([*WIRES, *map(str, words)], stdout=subprocess.PIPE, text=True))
        return self.all[-1]

    async def replica(self, way: Sequence[float]) -> tuple[subprocess.Popen[str], Backend]:
        process = self.spawn("replica", *way)
        assert process.stdout is not None
        port = int(await asyncio.to_thread(process.stdout.readline))
        return process, Backend(f"r{port}", "127.0.0.1", port)

    async def start(self, per_s: int = PER_S) -> None:
        await self.publisher.start()
        self.keeping = asyncio.create_task(self.comparator.keep())
        for one in self.services:
            _, one.versions[STABLE] = await self.replica(GOOD)
            one.wants = {STABLE: Want(1, WHOLE)}
        await self.publish()
        load = self.spawn("load", self.gateway.port, per_s, *(f"/default/{one.name}/infer" for one in self.services))
        assert load.stdout is not None
        await asyncio.to_thread(load.stdout.readline)

    async def publish(self) -> None:
        async with self.turn:
            await self.publisher.publish(replace(self.gateway, services=tuple(map(self.route, self.services))))

    def route(self, one: Service) -> ServiceRoute:
        routes = tuple(
            VersionRoute(number, (one.versions[number],), want.weight, want.mirror)
            for number, want in sorted(one.wants.items())
        )
        mirrored = any(want.mirror for want in one.wants.values())
        comparator = self.comparator.address if mirrored else None
        return ServiceRoute(
            "default", one.name, (Match("", f"/default/{one.name}/"),), routes, comparator=comparator, retries=0
        )

    def order(self, one: Service) -> None:
        """What the comparator is told."""
        share = one.wants[one.candidate].mirror if one.candidate in one.wants else 0
        shadow = Shadow(STABLE, one.candidate, share) if share else None
        backends: dict[int, tuple[Backend, ...]] = {number: (backend,) for number, backend in one.versions.items()}
        self.comparator.orders.put(Orders("default", one.name, backends, shadow=shadow))

    async def roll(self, one: Service, spec: Rollout, way: Sequence[float]) -> End:
        """A rollout, from the first look to its end."""
        one.candidate += 1
        process, one.versions[one.candidate] = await self.replica(way)
        asked: dict[str, Any] = {"phase": RolloutPhase.PREPARING, "step": 0, "since": time.time(), "memory": {}}
        began, first = time.time(), None
        while True:
            now = time.time()
            ready = {STABLE: 1, one.candidate: int(now - began >= WATCHED_S)}
            decision = rollout.decide(spec, await self.seen(one, ready, asked), now)
            asked = {name: getattr(decision, name) for name in ("phase", "step", "since", "memory")}
            ended = decision.phase in rollout.OVER
            if decision.wants != one.wants:
                one.wants = {STABLE: Want(1, WHOLE)} if ended else decision.wants
                self.order(one)
                await self.publish()
            mine = decision.wants.get(one.candidate)
            if first is None and mine is not None and (mine.weight or mine.mirror):
                first = now
            if ended or now - began > 120:
                break
            await asyncio.sleep(max(0.0, 1.0 - (time.time() - now)))
        await asyncio.sleep(0.3)  # what it was asked is answered
        process.terminate()
        del one.versions[one.candidate]
        return End(decision.phase, time.time() - 0.3 - (first or began), decision.message)

    async def seen(self, one: Service, ready: Mapping[int, int], asked: Mapping[str, Any]) -> RolloutSeen:
        counted = await self.publisher.counts()
        both = (STABLE, one.candidate)
        counts = {number: counted[key] for number in both if (key := ("default", one.name, number)) in counted}
        shadowed = self.comparator.seen().get(("default", one.name))
        mine = shadowed.agreement if shadowed is not None and shadowed.candidate == one.candidate else None
        return RolloutSeen(*both, wanted=1, ready=ready, counts=counts, agreement=mine, **asked)

    async def rolls(self, spec: Rollout, way: Sequence[float], count: int) -> list[End]:
        """So many, one at a time for each service."""
        ends: list[End] = []
        for at in range(0, count, len(self.services)):
            ends += await asyncio.gather(*(self.roll(one, spec, way) for one in self.services[: count - at]))
        return ends

    async def close(self) -> None:
        await self.publisher.stop(grace=1.0)
        await self.publisher.close()
        if self.keeping is not None:
            self.keeping.cancel()
            await asyncio.gather(self.keeping, return_exceptions=True)
            await self.comparator.stop(1.0)
        for process in self.all:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


async def measured(folder: Path) -> list[Bar]:
    live = Live(folder)
    try:
        await live.start()
        bars = []
        for what, (spec, way) in BAD.items():
            ends = await live.rolls(spec, way, ROUNDS)
            taken = [end.seconds if end.phase is RolloutPhase.ROLLED_BACK else float("inf") for end in ends]
            say(f"   {what}: {', '.join(f'{value:.1f} s' for value in taken)}; {ends[0].message}")
            note = (
                f"the slowest of {ROUNDS}, through Envoy, {PER_S} requests/s: {', '.join(f'{v:.1f}' for v in taken)} s"
            )
            bars.append(Bar(f"{what}: rolled back after", max(taken), 10, "s", note=note))
        ends = await live.rolls(CANARY, GOOD, ALIKE)
        for end in ends:
            say(f"   A/A: {end.phase} after {end.seconds:.1f} s: {end.message}")
    finally:
        await live.close()
    back = sum(end.phase is RolloutPhase.ROLLED_BACK for end in ends)
    promoted = sum(end.phase is RolloutPhase.PROMOTED for end in ends)
    note = f"of {ALIKE} A/A rollouts through Envoy, {SERVICES} at a time; {promoted} were promoted"
    return [*bars, Bar("false rollbacks", back, 0, "", note=note)]


def measure() -> list[Bar]:
    with tempfile.TemporaryDirectory(prefix="rollouts-") as folder:
        return asyncio.run(measured(Path(folder)))


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
