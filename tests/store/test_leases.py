from __future__ import annotations

import asyncio

import pytest

from penstock.base.errors import Conflict
from penstock.store import events
from penstock.store.leases import Lease
from tests.stores import Clock, opened


def test_one_holds_at_a_time_and_epochs_grow(sqlite_url: str) -> None:
    async def main() -> None:
        clock = Clock()
        async with opened(sqlite_url, clock) as store:
            one, two = Lease(store, "leader", "one", 10), Lease(store, "leader", "two", 10)
            assert await one.acquire() == 1
            assert await two.acquire() is None
            clock.now += 9
            assert await one.renew()
            clock.now += 9
            assert await two.acquire() is None
            assert await one.acquire() == 1, "ours already: the same epoch"
            clock.now += 10
            assert await two.acquire() == 2
            assert not await one.renew()
            assert one.epoch is None
            await two.release()
            assert await one.acquire() == 3
            rows = await store.read(events.page)
            assert [(row.kind, row.reason, row.data["epoch"]) for row in rows] == [
                ("Lease", "LeaseTaken", epoch) for epoch in (1, 2, 3)
            ]

    asyncio.run(main())


def test_a_stale_epoch_can_write_nothing(url: str) -> None:
    async def main() -> None:
        async with opened(url) as store:
            one, two = Lease(store, "leader", "one", 60), Lease(store, "leader", "two", 60)
            first = await one.acquire()
            assert first == 1
            await store.write(lambda tx: one.check(tx, 1))
            assert await two.acquire(sole=True) == 2
            with pytest.raises(Conflict, match=r"held by two \(epoch 2\)"):
                await store.write(lambda tx: one.check(tx, 1))
            with pytest.raises(Conflict):
                await store.write(lambda tx: one.check(tx, 2))
            with pytest.raises(Conflict, match="nobody"):
                await store.write(lambda tx: Lease(store, "other", "one", 60).check(tx, 1))
            assert not await one.renew()
            await store.write(lambda tx: two.check(tx, 2))

    asyncio.run(main())


def test_a_new_start_of_the_same_holder_takes_a_new_epoch(sqlite_url: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url) as store:
            assert await Lease(store, "leader", "one", 60).acquire() == 1
            again = Lease(store, "leader", "one", 60)
            assert await again.acquire() is None, "what the old start still does must be fenced off"
            assert await again.acquire(sole=True) == 2

    asyncio.run(main())


@pytest.mark.parametrize("step", [-3600.0, 3600.0, -0.5, -9.0])
def test_a_stepped_clock_neither_blocks_nor_doubles(sqlite_url: str, step: float) -> None:
    async def main() -> None:
        clock = Clock()
        async with opened(sqlite_url, clock) as store:
            one, two = Lease(store, "leader", "one", 10), Lease(store, "leader", "two", 10)
            assert await one.acquire() == 1
            clock.now += step
            assert await one.renew(), "the holder goes on over a step"
            assert await two.acquire() is None
            clock.now += step  # and now the holder is gone
            waited = 0
            while await two.acquire() is None:
                clock.now += 1
                waited += 1
                assert waited <= 20, "a lease left by a clock that ran ahead is waited for an hour"
            with pytest.raises(Conflict):
                await store.write(lambda tx: one.check(tx, 1))

    asyncio.run(main())


@pytest.mark.real
@pytest.mark.needs("postgresql")
def test_postgresql_takes_the_time_from_its_server(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url, Clock(0)) as early, opened(postgres_url, Clock(4e9)) as late:
            one, two = Lease(early, "leader", "one", 30), Lease(late, "leader", "two", 30)
            assert await one.acquire() == 1
            assert await two.acquire() is None, "a server whose clock is decades ahead takes nothing over"
            short = Lease(early, "short", "one", 0.05)
            assert await short.acquire() == 1
            deadline = asyncio.get_running_loop().time() + 10
            other = Lease(late, "short", "two", 30)
            while await other.acquire() is None:
                assert asyncio.get_running_loop().time() < deadline
            assert other.epoch == 2

    asyncio.run(main())
