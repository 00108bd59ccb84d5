"""The writer: what shares a commit, what a failure undoes, who is told when."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import SQLAlchemyError

from penstock.base.errors import Busy, InvalidInput, LedgerBroken, Unavailable
from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.store import connect, events
from penstock.store.events import EventRow
from penstock.store.store import Store, Tx
from tests.stores import NOON, Clock, emit, opened


def holding(started: threading.Event, gate: threading.Event) -> Callable[[Tx], None]:
    """A closure that keeps the writer until ``gate`` opens."""

    def hold(_tx: Tx) -> None:
        started.set()
        gate.wait(10)

    return hold


async def together(store: Store, *closures: Any) -> list[Any]:
    """Write all of these in one group: the writer is held until they all wait."""
    started, gate = threading.Event(), threading.Event()
    first = asyncio.ensure_future(store.write(holding(started, gate)))
    await asyncio.to_thread(started.wait, 10)
    others = asyncio.gather(*(store.write(fn) for fn in closures), return_exceptions=True)
    await asyncio.sleep(0)
    gate.set()
    await first
    return await others


def emit_value(value: object, tx: Tx) -> None:
    tx.emit(Ref("Job", "j"), Reason.Progressing, actor="a", data={"loss": value})


def fails(tx: Tx) -> None:
    emit(tx, "never")
    raise ZeroDivisionError


def test_write_answers_after_the_commit(url: str) -> None:
    async def main() -> None:
        async with opened(url) as store:

            def closure(tx: Tx) -> int:
                emit(tx)
                return 7

            assert await store.write(closure) == 7
            (row,) = await store.read(events.page)
            assert (row.seq, row.at, row.actor, row.kind, row.project, row.name) == (
                1,
                NOON,
                "ann",
                "Job",
                "default",
                "digits",
            )
            assert (row.reason, row.data) == ("Created", {"cpus": [1, 2.5]})
            assert (await store.read(events.verify)).ok

    asyncio.run(main())


def test_a_failing_closure_undoes_itself_alone(url: str) -> None:
    async def main() -> None:
        async with opened(url) as store:
            heard: list[list[str]] = []
            store.listen(lambda rows: heard.append([row.name for row in rows]))
            answers = await together(store, lambda tx: emit(tx, "a"), fails, lambda tx: emit(tx, "b"), fails)
            assert [type(answer) for answer in answers] == [
                type(None),
                ZeroDivisionError,
                type(None),
                ZeroDivisionError,
            ]
            assert heard == [["a", "b"]], "one group, one commit, one call"
            found = await store.read(events.verify)
            assert (found.ok, found.rows) == (True, 2)

    asyncio.run(main())


def test_an_error_that_no_future_takes_still_answers_everybody(sqlite_url: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url) as store:
            answers = await together(store, emit, lambda _tx: next(iter(())), emit)
            assert [type(answer) for answer in answers] == [type(None), RuntimeError, type(None)]
            assert (await store.read(events.verify)).rows == 2

    asyncio.run(main())


def test_a_broken_statement_fails_its_closure_alone(url: str) -> None:
    def broken(tx: Tx) -> None:
        emit(tx, "never")
        tx.conn.exec_driver_sql("INSERT INTO nowhere VALUES (1)")

    def swallows(tx: Tx) -> str:
        try:
            tx.conn.exec_driver_sql("INSERT INTO nowhere VALUES (1)")
        except SQLAlchemyError:
            pass
        return "went on"

    async def main() -> None:
        async with opened(url) as store:
            answers = await together(store, lambda tx: emit(tx, "a"), broken, lambda tx: emit(tx, "b"))
            assert isinstance(answers[1], SQLAlchemyError)
            assert [row.name for row in await store.read(events.page)] == ["a", "b"]
            await together(store, swallows)
            await store.write(emit)
            assert (await store.read(events.verify)).rows == 3

    asyncio.run(main())


def test_projections_share_the_transaction(url: str) -> None:
    seen: list[EventRow] = []

    def project(tx: Tx, row: EventRow) -> None:
        seen.append(row)
        if row.name == "refused":
            raise ZeroDivisionError
        if row.name == "first":
            tx.emit(Ref("Job", "second"), Reason.Updated, actor="projection")

    async def main() -> None:
        async with opened(url) as store:
            store.project(project)
            answers = await together(store, lambda tx: emit(tx, "first"), lambda tx: emit(tx, "refused"))
            assert isinstance(answers[1], ZeroDivisionError)
            assert [row.name for row in seen] == ["first", "second", "refused"]
            stored = await store.read(events.page)
            assert stored == seen[:2], "what a projection is given is what is stored"

    asyncio.run(main())


def test_listeners_hear_before_the_caller_goes_on_and_fail_alone(sqlite_url: str) -> None:
    async def main() -> None:
        complaints: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context["exception"]))
        async with opened(sqlite_url) as store:
            heard: list[int] = []

            def breaks(_rows: list[EventRow]) -> None:
                raise ZeroDivisionError

            store.listen(breaks)
            stop = store.listen(lambda rows: heard.extend(row.seq for row in rows))
            await store.write(emit)
            assert heard == [1]
            stop()
            stop()
            await store.write(emit)
            assert heard == [1]
            assert [type(error) for error in complaints] == [ZeroDivisionError] * 2

    asyncio.run(main())


def test_a_cancelled_caller_that_waits_is_not_run(sqlite_url: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url) as store:
            started, gate = threading.Event(), threading.Event()
            first = asyncio.ensure_future(store.write(holding(started, gate)))
            await asyncio.to_thread(started.wait, 10)
            waiting = asyncio.ensure_future(store.write(emit))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            gate.set()
            await first
            await store.write(lambda _tx: None)
            assert await store.read(events.page) == []

    asyncio.run(main())


def test_alone_has_a_commit_of_its_own(sqlite_url: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url) as store:
            heard: list[list[str]] = []
            store.listen(lambda rows: heard.append([row.name for row in rows]))
            started, gate = threading.Event(), threading.Event()
            first = asyncio.ensure_future(store.write(holding(started, gate)))
            await asyncio.to_thread(started.wait, 10)
            others = asyncio.gather(
                store.write(lambda tx: emit(tx, "a")),
                store.write(lambda tx: emit(tx, "b"), alone=True),
                store.write(lambda tx: emit(tx, "c")),
            )
            await asyncio.sleep(0)
            gate.set()
            await asyncio.gather(first, others)
            assert heard == [["a"], ["b"], ["c"]]

    asyncio.run(main())


def test_close_finishes_what_waits_and_then_refuses(url: str) -> None:
    async def main() -> None:
        store = Store.open(url, clock=Clock())
        writes = [asyncio.ensure_future(store.write(emit)) for _ in range(50)]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.gather(*writes)
        with pytest.raises(Unavailable):
            await store.write(emit)
        with pytest.raises(Unavailable):
            await store.read(events.verify)
        async with opened(url) as again:
            assert (await again.read(events.verify)).rows == 50

    asyncio.run(main())


@pytest.mark.parametrize(
    "text", ["a\x00b", "half \ud83d", "\U0001f600 \u202e", "'; DROP TABLE events; --", "x" * 100_000, ""]
)
def test_any_text_is_stored_and_verifies(url: str, text: str) -> None:
    async def main() -> None:
        async with opened(url) as store:
            ref = Ref("Job", text, text, text)
            await store.write(lambda tx: tx.emit(ref, Reason.Failed, text, actor=text, data={"said": text}))
            (row,) = await store.read(events.page)
            assert row.data == {"said": text}
            assert row.message == row.name == text.replace("\x00", "\ufffd").replace("\ud83d", "\ufffd")
            assert (await store.read(events.verify)).ok

    asyncio.run(main())


def test_data_that_json_cannot_carry_fails_its_closure(sqlite_url: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url) as store:
            for bad in (float("nan"), object()):
                with pytest.raises((ValueError, TypeError)):
                    await store.write(partial(emit_value, bad))
            await store.write(emit)
            assert (await store.read(events.verify)).rows == 1

    asyncio.run(main())


def test_reading_cannot_write(url: str) -> None:
    async def main() -> None:
        async with opened(url) as store:
            try:
                await store.read(lambda conn: conn.exec_driver_sql("DELETE FROM heads"))
            except (SQLAlchemyError, Unavailable):
                pass  # refused at once by SQLite; PostgreSQL's is rolled back
            await store.write(emit)
            assert (await store.read(events.verify)).ok

    asyncio.run(main())


def test_two_stores_on_one_file_keep_one_chain(url: str) -> None:
    async def main() -> None:
        async with opened(url) as one, opened(url) as two:
            for _ in range(5):
                await asyncio.gather(*(store.write(emit) for store in (one, two, one)))
            found = await one.read(events.verify)
            assert (found.ok, found.rows) == (True, 15)

    asyncio.run(main())


def test_a_locked_database_is_said_to_be_busy(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "BUSY_TIMEOUT_MS", 20)

    async def main() -> None:
        async with opened(sqlite_url) as store:
            other = sqlite3.connect(str(store.url.database), isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Busy, match="another process"):
                await store.write(emit)
            other.execute("ROLLBACK")
            other.close()
            await store.write(emit)
            assert (await store.read(events.verify)).rows == 1

    asyncio.run(main())


def test_a_damaged_file_is_named(sqlite_url: str, tmp_path: Path) -> None:
    async def fill() -> None:
        async with opened(sqlite_url) as store:
            await store.write(lambda tx: emit(tx, count=500))

    asyncio.run(fill())
    path = tmp_path / "penstock.db"
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xa5" * (len(whole) - 8192))

    async def use() -> None:
        async with opened(sqlite_url) as store:
            await store.read(events.verify)

    with pytest.raises(LedgerBroken, match="damaged"):
        asyncio.run(use())
    path.write_bytes(b"this is no database" * 500)
    with pytest.raises(LedgerBroken, match="not a database"):
        Store.open(sqlite_url, clock=Clock())


@pytest.mark.parametrize("wrong", ["", "nonsense", "mysql://x/y", "sqlite://", "sqlite:///:memory:", "http://x"])
def test_a_url_that_names_no_database_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidInput):
        Store.open(wrong, clock=Clock())


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    with pytest.raises(Unavailable):
        Store.open(f"sqlite:///{tmp_path}/file/penstock.db", clock=Clock())
    with pytest.raises(Unavailable):
        Store.open(f"sqlite:///{tmp_path}/taken", clock=Clock())
