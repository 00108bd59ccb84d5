"""The activator and the comparator behind the real Envoy: what callers see while one of them works, stops and dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.serving.gateway.spec import VersionRoute
from penstock.serving.orders import Orders, Shadow
from penstock.serving.sidecars import Activator, Comparator
from penstock.serving.state import WHOLE
from tests.serving.gateway.world import World, looped, service, world
from tests.serving.stand_in import Answer, Seen, call, replica

pytestmark = pytest.mark.real


@contextlib.asynccontextmanager
async def kept(sidecar: Activator | Comparator) -> AsyncIterator[None]:
    keeping = asyncio.create_task(sidecar.keep())
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection(*sidecar.address)
                    writer.close()
                    break
                await asyncio.sleep(0.02)
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await sidecar.stop(10)


def pid(sidecar: Activator | Comparator) -> int:
    found = sidecar.process.running()
    assert found is not None
    return found.pid


async def traffic(here: World, seconds: float, callers: int = 8, pause: float = 0.0) -> tuple[int, list[object], float]:
    """How many calls there were, those that were not answered with 200, and how long the longest took."""
    bad: list[object] = []
    count, longest = 0, 0.0
    stop = time.monotonic() + seconds

    async def caller() -> None:
        nonlocal count, longest
        while time.monotonic() < stop:
            began = time.monotonic()
            try:
                got = await call(here.port, "/default/digits/v2/infer", body=b'{"inputs": []}')
                if got.status != 200:
                    bad.append(got)
            except Exception as error:  # noqa: BLE001 - whatever it is, a caller has seen it
                bad.append(error)
            count += 1
            longest = max(longest, time.monotonic() - began)
            await asyncio.sleep(pause)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return count, bad, longest


@looped
async def test_a_request_wakes_a_service_and_nobody_asks_the_activator_again(tmp_path: Path) -> None:
    activator = Activator(tmp_path / "serving")
    async with world(tmp_path) as here, kept(activator), replica() as one:
        away = service(activator=activator.address, timeout=10.0)
        activator.orders.put(Orders("default", "digits", {1: ()}))
        await here.publish(away)
        demands = activator.demands()
        calls = [asyncio.create_task(call(here.port, f"/default/digits/{number}", body=b"{}")) for number in range(20)]
        async with asyncio.timeout(10):
            demand = await anext(demands)
        assert (demand.project, demand.name) == ("default", "digits")
        activator.orders.put(Orders("default", "digits", {1: (one.backend,)}, concurrency=4))
        await here.publish(replace(away, versions=(VersionRoute(1, (one.backend,)),)))
        assert {got.status for got in await asyncio.gather(*calls)} == {200}
        assert sorted(int(seen.target[1:]) for seen in one.seen) == list(range(20))
        flood = asyncio.create_task(traffic(here, 3.0))
        for _ in range(5):
            await asyncio.sleep(0.3)
            with contextlib.suppress(AssertionError, ProcessLookupError):
                os.kill(pid(activator), signal.SIGKILL)
        count, bad, _ = await flood
        assert not bad, bad[:3]
        assert len(one.seen) == count + 20


@looped
async def test_callers_do_not_meet_the_comparator(tmp_path: Path) -> None:
    async def slow(_seen: Seen) -> Answer:
        await asyncio.sleep(0.02)
        return Answer(headers=((b"content-type", b"application/json"),), body=b'{"label": 1}')

    async def differs(seen: Seen) -> Answer:
        label = 2 if len(second.seen) % 10 == 0 else 1
        del seen
        return Answer(headers=((b"content-type", b"application/json"),), body=b'{"label": %d}' % label)

    comparator = Comparator(tmp_path / "serving")
    async with world(tmp_path) as here, kept(comparator), replica(slow) as first, replica(differs, "r2") as second:
        comparator.orders.put(
            Orders("default", "digits", {1: (first.backend,), 2: (second.backend,)}, shadow=Shadow(1, 2))
        )
        versions = (VersionRoute(1, (first.backend,)), VersionRoute(2, (second.backend,), weight=0, mirror=WHOLE))
        await here.publish(service(versions=versions, comparator=comparator.address))
        count, bad, _ = await traffic(here, 2.0)
        assert not bad, bad[:3]
        async with asyncio.timeout(20):
            while (found := comparator.seen().get(("default", "digits"))) is None or found.agreement.compared < count:
                await asyncio.sleep(0.05)
        assert (found.received, found.dropped, found.agreement.compared) == (count, {}, count)  # mirrored share: 100 %
        assert len(second.seen) == count
        assert second.seen[0].target == b"/v2/infer"
        assert found.agreement.agreed == count - count // 10
        assert found.agreement.examples[0]["differs"] == "$.label: 1 against 2"
        assert found.stable_counts.seconds / count > 0.015
        flood = asyncio.create_task(traffic(here, 6.0))
        await asyncio.sleep(0.5)
        for number in (signal.SIGKILL, signal.SIGKILL):
            os.kill(pid(comparator), number)
            await asyncio.sleep(1.0)
        os.kill(stopped := pid(comparator), signal.SIGSTOP)
        count, bad, longest = await flood
        os.kill(stopped, signal.SIGCONT)
        assert not bad, bad[:3]
        assert count > 100
        assert longest < 5
