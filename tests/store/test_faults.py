"""Killed at any moment, out of space, the database server gone: nothing half applied, and it goes on afterwards."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.base.errors import OutOfSpace, Unavailable
from penstock.store import connect, events, writer
from penstock.store.store import Store, Tx
from tests.postgres import Cluster
from tests.store.test_store import together
from tests.stores import Clock, emit, opened

_WRITES = """
import asyncio, sys, time
from penstock.store.store import Store
from tests.stores import emit
async def one(store, name):
    while True:
        seq = await store.write(lambda tx: (emit(tx, name, 2), tx._group.head.seq)[1])
        sys.stdout.write(f"{seq}\\n"); sys.stdout.flush()
async def main():
    store = Store.open(sys.argv[1], clock=time.time)
    await asyncio.gather(*(one(store, f"w{n}") for n in range(5)))
asyncio.run(main())
"""


def killed_while_writing(url: str, after: float) -> int:
    """The highest event whose commit the killed process had told of."""
    child = subprocess.Popen([sys.executable, "-c", _WRITES, url], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(after)  # the random moment
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate()
    told = [int(line) for line in (first + rest).splitlines(keepends=True) if line.endswith("\n") and line.strip()]
    return max(told, default=0)


def survives_kills(url: str, rounds: int) -> None:
    chance = random.Random(7)
    for _ in range(rounds):
        told = killed_while_writing(url, chance.uniform(0, 0.15))

        async def check(told: int = told) -> None:
            async with opened(url) as store:
                found = await store.read(events.verify)
                assert found.problem is None
                assert told > 0
                assert found.rows >= told, "what was answered is there"
                assert found.rows % 2 == 0, "no closure was half applied"

        asyncio.run(check())


def test_a_kill_loses_nothing_that_was_answered(sqlite_url: str) -> None:
    survives_kills(sqlite_url, 4)


@pytest.mark.soak
def test_a_hundred_kills_lose_nothing_that_was_answered(sqlite_url: str) -> None:
    survives_kills(sqlite_url, 100)


@pytest.mark.real
@pytest.mark.needs("postgresql")
def test_a_kill_loses_nothing_on_postgresql(postgres_url: str) -> None:
    survives_kills(postgres_url, 3)


def test_a_full_database_fails_clearly_and_recovers(sqlite_url: str) -> None:
    def limit(pages: int, tx: Tx) -> None:
        used = tx.conn.exec_driver_sql("PRAGMA page_count").scalar_one()
        tx.conn.exec_driver_sql(f"PRAGMA max_page_count={used + pages}")

    async def main() -> None:
        async with opened(sqlite_url) as store:
            await store.write(lambda tx: emit(tx, count=10))
            await store.write(lambda tx: limit(2, tx))
            answers = await together(store, lambda tx: emit(tx, "x" * 500, 200), emit)
            assert {type(answer) for answer in answers} == {OutOfSpace}, "one commit: all of it or nothing"
            found = await store.read(events.verify)
            assert (found.ok, found.rows) == (True, 10)
            await store.write(lambda tx: limit(10_000, tx))
            await store.write(lambda tx: emit(tx, count=500))
            assert (await store.read(events.verify)).rows == 510

    asyncio.run(main())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    assert os.geteuid() == 0, "mounting a small file system takes root"
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.real
def test_a_full_disk_fails_clearly_and_recovers(small_disk: Path) -> None:
    async def main() -> None:
        async with opened(f"sqlite:///{small_disk}/p.db") as store:
            done = 0
            await store.write(emit)
            ballast = small_disk / "ballast"
            for _round in range(3):
                failed = 0
                ballast.write_bytes(b"")
                with pytest.raises(OSError, match="No space"):
                    ballast.write_bytes(b"\0" * (2 << 20))
                while failed < 3:  # until the space already taken by the log is used up, and a few more
                    answers = await asyncio.gather(*(store.write(emit) for _ in range(4)), return_exceptions=True)
                    failures = [answer for answer in answers if answer is not None]
                    assert all(isinstance(answer, OutOfSpace) for answer in failures), failures
                    failed += bool(failures)
                    done += len(answers) - len(failures)
                assert (await store.read(events.verify)).rows == done + 1
                ballast.unlink()
                await store.write(emit)
                done += 1
            found = await store.read(events.verify)
            assert (found.ok, found.rows) == (True, done + 1)

    asyncio.run(main())


@pytest.mark.real
def test_a_disk_that_is_full_from_the_start_is_named(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (small_disk / "ballast").write_bytes(b"\0" * (2 << 20))
    with pytest.raises(OutOfSpace):
        Store.open(f"sqlite:///{small_disk}/new/p.db", clock=Clock())


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    made = Cluster()
    made.start()
    try:
        yield made
    finally:
        made.remove()


@pytest.mark.real
@pytest.mark.needs("postgresql")
def test_a_database_server_that_goes_and_comes_back(own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PATIENCE_S", 0.3)
    url = own_cluster.create_database()

    async def main() -> None:
        async with opened(url) as store:
            heard: list[int] = []
            store.listen(lambda rows: heard.extend(row.seq for row in rows))
            await store.write(emit)
            await asyncio.to_thread(own_cluster.stop, immediate=True)
            with pytest.raises(Unavailable, match="cannot be reached"):
                await store.write(emit)
            with pytest.raises(Unavailable):
                await store.read(events.verify)
            await asyncio.to_thread(own_cluster.start)
            await store.write(emit)
            found = await store.read(events.verify)
            assert (found.ok, found.rows, heard) == (True, 2, [1, 2])
            monkeypatch.setattr(writer, "PATIENCE_S", 30.0)
            await asyncio.to_thread(own_cluster.stop)
            waiting = asyncio.ensure_future(store.write(emit))
            await asyncio.to_thread(own_cluster.start)
            await waiting
            assert (await store.read(events.verify)).rows == 3

    asyncio.run(main())


@pytest.mark.real
@pytest.mark.needs("postgresql")
def test_a_server_that_dies_under_load_loses_and_doubles_nothing(own_cluster: Cluster) -> None:
    url = own_cluster.create_database()

    async def main() -> None:
        async with opened(url) as store:
            answered, unknown = 0, 0
            stop = asyncio.Event()

            async def write(name: str) -> None:
                nonlocal answered, unknown
                while not stop.is_set():
                    try:
                        await store.write(lambda tx: emit(tx, name))
                        answered += 1
                    except Unavailable:
                        unknown += 1

            writing = [asyncio.ensure_future(write(f"w{n}")) for n in range(8)]
            for _ in range(3):
                await asyncio.sleep(0.2)
                await asyncio.to_thread(own_cluster.stop, immediate=True)
                await asyncio.to_thread(own_cluster.start)
            stop.set()
            await asyncio.gather(*writing)
            found = await store.read(events.verify)
            assert found.problem is None
            assert found.rows >= answered > 0
            assert found.rows <= answered + unknown

    asyncio.run(main())


@pytest.mark.real
@pytest.mark.needs("postgresql")
def test_no_server_at_all_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "CONNECT_TIMEOUT_S", 1)
    with pytest.raises(Unavailable, match="cannot be reached"):
        Store.open("postgresql://nobody@127.0.0.1:1/none", clock=Clock())


@pytest.mark.real
@pytest.mark.needs("postgresql")
def test_servers_on_one_database_hear_each_other_in_order(postgres_url: str) -> None:
    async def main() -> None:
        async with opened(postgres_url) as one, opened(postgres_url) as two:
            heard_one: list[int] = []
            heard_two: list[int] = []
            one.listen(lambda rows: heard_one.extend(row.seq for row in rows))
            two.listen(lambda rows: heard_two.extend(row.seq for row in rows))
            for _ in range(10):
                await asyncio.gather(*(store.write(lambda tx: emit(tx, count=3)) for store in (one, two, one, two)))
            deadline = time.monotonic() + 10
            while len(heard_one) < 120 or len(heard_two) < 120:
                assert time.monotonic() < deadline, (len(heard_one), len(heard_two))
                await asyncio.sleep(0.02)
            assert heard_one == heard_two == list(range(1, 121))

    asyncio.run(main())
