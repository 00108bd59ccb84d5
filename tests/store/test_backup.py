"""Dumps: taken while in use, verified before anything is touched, the same for both databases."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select

from penstock.base.errors import Conflict, InvalidInput, LedgerBroken, PenstockError
from penstock.store import backup, events
from penstock.store.leases import Lease
from penstock.store.store import Store
from penstock.store.tables import events as events_table
from penstock.store.tables import leases, metadata
from tests.postgres import Cluster
from tests.stores import Clock, emit, opened
from tools.make_migration import import_tables

import_tables()


def everything(conn: Connection) -> dict[str, list[tuple[Any, ...]]]:
    tables = [table for table in metadata.sorted_tables if table is not leases]
    return {t.name: [tuple(r) for r in conn.execute(select(t).order_by(*t.primary_key.columns))] for t in tables}


async def filled(store: Store, count: int = 700) -> None:
    await store.write(lambda tx: emit(tx, "digits", count))
    usage = metadata.tables["usage"]
    row = {
        "job_id": "01J",
        "attempt": 1,
        "node": "n",
        "resource": "cpus",
        "project": "p",
        "user": "ann",
        "job": "digits",
    }
    values = {**row, "quantity": 0.1 + 0.2, "started_at": 1e9 + 1 / 3, "ended_at": None}
    await store.write(lambda tx: tx.conn.execute(insert(usage).values(**values)))


async def round_trip(source: str, target: str) -> None:
    async with opened(source) as one, opened(target) as two:
        await filled(one)
        before = await one.read(everything)
        file = io.BytesIO()
        manifest = await backup.dump(one, file, actor="ann")
        assert manifest.head.seq == 700
        await two.write(lambda tx: emit(tx, "swept away", 5))
        assert await Lease(two, "leader", "me", 60).acquire() == 1
        heard: list[events.EventRow] = []
        two.listen(heard.extend)
        await backup.restore(two, file, actor="bob")
        after = await two.read(everything)
        *restored, last = after.pop("events")
        assert restored == before.pop("events")
        before.pop("heads")
        after.pop("heads")
        assert after == before
        assert [(row.seq, row.reason, row.actor) for row in heard] == [(701, "BackupRestored", "bob")]
        assert last[0] == 701
        await two.write(lambda tx: emit(tx, "after"))
        assert (await two.read(events.verify)).rows == 702
        assert (await one.read(lambda conn: events.page(conn, newest_first=True, limit=1)))[0].reason == "BackupTaken"
        assert await two.read(lambda conn: conn.execute(select(leases.c.epoch)).scalar()) == 1


def test_round_trip(tmp_path: Any) -> None:
    asyncio.run(round_trip(f"sqlite:///{tmp_path}/one.db", f"sqlite:///{tmp_path}/two.db"))


@pytest.mark.real
@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("way", ["there", "back", "across"])
def test_round_trip_between_databases(cluster: Cluster, sqlite_url: str, way: str) -> None:
    postgres = cluster.create_database()
    pairs = {
        "there": (sqlite_url, postgres),
        "back": (postgres, sqlite_url),
        "across": (postgres, cluster.create_database()),
    }
    asyncio.run(round_trip(*pairs[way]))


@pytest.mark.real
@pytest.mark.needs("postgresql")
def test_numbers_that_postgresql_gives_go_on_after_a_restore(cluster: Cluster) -> None:
    async def main() -> None:
        jobs = metadata.tables["jobs"]
        fill = {c.name: 0 if c.type.python_type in (int, float) else "" for c in jobs.columns if not c.nullable}
        async with opened(cluster.create_database()) as one, opened(cluster.create_database()) as two:
            fill.pop("seq")
            rows = [{**fill, "id": f"id{n}", "name": f"j{n}"} for n in range(4)]
            await one.write(lambda tx: tx.conn.execute(insert(jobs), rows[:3]))
            file = io.BytesIO()
            await backup.dump(one, file, actor="ann")
            await backup.restore(two, file, actor="ann")
            await two.write(lambda tx: tx.conn.execute(insert(jobs), rows[3:]))
            assert await two.read(
                lambda conn: conn.execute(select(jobs.c.seq).order_by(jobs.c.seq)).scalars().all()
            ) == [1, 2, 3, 4]

    asyncio.run(main())


def test_a_dump_is_of_one_moment_while_writes_go_on(sqlite_url: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url) as store:
            await filled(store, 3000)
            stop = asyncio.Event()

            async def write() -> int:
                count = 0
                while not stop.is_set():
                    await store.write(emit)
                    count += 1
                return count

            writing = asyncio.ensure_future(write())
            file = io.BytesIO()
            manifest = await backup.dump(store, file, actor="ann")
            stop.set()
            assert await writing > 0, "writes went on meanwhile"
            assert backup.check_dump(file) == manifest
            assert manifest.tables["events"].rows == manifest.head.seq

    asyncio.run(main())


def rewrite(file: io.BytesIO, change: Callable[[str, bytes], bytes | None]) -> io.BytesIO:
    out = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = change(name, old.read(name))
            if data is not None:
                new.writestr(name, data)
    return out


def in_table(old: bytes, new: bytes) -> Callable[[str, bytes], bytes | None]:
    return lambda name, data: data.replace(old, new, 1) if name == "tables/events.jsonl" else data


def in_manifest(**changes: Any) -> Callable[[str, bytes], bytes | None]:
    def change(name: str, data: bytes) -> bytes:
        return json.dumps({**json.loads(data), **changes}).encode() if name == "manifest.json" else data

    return change


def forged_chain(name: str, data: bytes) -> bytes:
    """A row altered, and the manifest made to fit it: only the chain itself tells."""
    if name == "tables/events.jsonl":
        forged_chain.altered = data.replace(b'"made"', b'"fake"', 1)  # type: ignore[attr-defined]
        return bytes(forged_chain.altered)  # type: ignore[attr-defined]
    if name == "manifest.json":
        said = json.loads(data)
        said["tables"]["events"]["sha256"] = hashlib.sha256(forged_chain.altered).hexdigest()  # type: ignore[attr-defined]
        return json.dumps(said).encode()
    return data


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (in_table(b'"made"', b'"fake"'), InvalidInput),
        (in_table(b"\n", b""), InvalidInput),
        (forged_chain, LedgerBroken),
        (in_manifest(schema="9999"), Conflict),
        (in_manifest(format=2), InvalidInput),
        (in_manifest(tables={}), InvalidInput),
        (in_manifest(head={"seq": 3, "hash": "0" * 64}), PenstockError),
        (lambda name, data: None if name == "manifest.json" else data, InvalidInput),
        (lambda name, data: None if name == "tables/usage.jsonl" else data, InvalidInput),
        (lambda name, data: b"[" * 100_000 if name == "manifest.json" else data, InvalidInput),
    ],
)
def test_a_damaged_dump_changes_nothing(sqlite_url: str, change: Any, error: type[PenstockError]) -> None:
    async def main() -> None:
        async with opened(sqlite_url, Clock()) as store:
            await filled(store, 10)
            file = io.BytesIO()
            await backup.dump(store, file, actor="ann")
            before = await store.read(everything)
            with pytest.raises(error):
                await backup.restore(store, rewrite(file, change), actor="ann")
            assert await store.read(everything) == before
            await store.write(emit)
            assert (await store.read(events.verify)).ok

    asyncio.run(main())


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-100], lambda _d: b"", lambda d: b"PK" + d[5:], lambda d: d[:300] + b"\0" * 80 + d[380:]]
)
def test_a_damaged_file_changes_nothing(sqlite_url: str, damage: Callable[[bytes], bytes]) -> None:
    async def main() -> None:
        async with opened(sqlite_url, Clock()) as store:
            await filled(store, 10)
            file = io.BytesIO()
            await backup.dump(store, file, actor="ann")
            before = await store.read(everything)
            with pytest.raises(InvalidInput):
                await backup.restore(store, io.BytesIO(damage(file.getvalue())), actor="ann")
            assert await store.read(everything) == before

    asyncio.run(main())


def test_a_restore_that_fails_halfway_is_undone(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(sqlite_url, Clock()) as store:
            await filled(store, 10)
            file = io.BytesIO()
            await backup.dump(store, file, actor="ann")
            before = await store.read(everything)

            def breaks(_conn: Connection, table: object) -> None:
                if table is events_table:
                    raise ZeroDivisionError

            monkeypatch.setattr(backup, "_advance_sequence", breaks)
            with pytest.raises(ZeroDivisionError):
                await backup.restore(store, file, actor="ann")
            assert await store.read(everything) == before
            await store.write(emit)
            assert (await store.read(events.verify)).ok

    asyncio.run(main())
