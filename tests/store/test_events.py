"""The chain: what was done to it is found, at its row. The log: pages and filters."""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, insert, select

from penstock.base.reasons import Reason
from penstock.base.resource import Ref
from penstock.store import events
from penstock.store.events import GENESIS, Chain, Head
from penstock.store.store import Store, Tx
from penstock.store.tables import events as table
from penstock.store.tables import heads, metadata
from tests.store.test_store import together
from tests.stores import Clock, emit, opened

Rows = list[tuple[Any, ...]]
COLUMNS = [column.name for column in table.columns]
TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)


def make_chain(messages: list[str]) -> Rows:
    rows: Rows = []
    previous = GENESIS
    for seq, message in enumerate(messages, start=1):
        plain = (seq, 1000.5 + seq, "ann", "Job", "default", f"job-{seq}", "01J", "Created", message, '{"a":1}')
        digest = events.chain_hash(previous, plain)
        rows.append((*plain, previous, digest))
        previous = digest
    return rows


def verify(rows: Rows, head: Head) -> tuple[int | None, str | None]:
    chain = Chain()
    for row in rows:
        chain.add(row)
    found = chain.end(head)
    return found.first_bad_seq, found.problem


def end_of(rows: Rows) -> Head:
    return Head(rows[-1][0], rows[-1][-1]) if rows else Head(0, GENESIS)


chains = st.lists(TEXT, min_size=1, max_size=12).map(make_chain)


@given(chains)
def test_an_honest_chain_verifies(rows: Rows) -> None:
    assert verify(rows, end_of(rows)) == (None, None)


@given(chains, st.data())
def test_one_altered_value_is_found_at_its_row(rows: Rows, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.integers(1, len(COLUMNS) - 1))
    old = rows[at][column]
    new = data.draw((st.floats(0, 2e9) if isinstance(old, float) else TEXT).filter(lambda value: value != old))
    altered = [*rows[:at], (*rows[at][:column], new, *rows[at][column + 1 :]), *rows[at + 1 :]]
    assert verify(altered, end_of(rows))[0] == at + 1


@given(chains, st.data())
def test_an_altered_row_with_a_fitting_hash_is_found(rows: Rows, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    plain = [*rows[at][:8], rows[at][8] + "!", *rows[at][9:11]]
    forged = [*rows[:at], (*plain, events.chain_hash(plain[-1], plain[:-1])), *rows[at + 1 :]]
    assert verify(forged, end_of(rows))[0] == at + 1


@given(chains, st.data())
def test_a_removed_row_is_found(rows: Rows, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    seq, problem = verify([*rows[:at], *rows[at + 1 :]], end_of(rows))
    assert seq == at + 1
    assert "missing" in str(problem)


@given(chains, st.data())
def test_a_removed_row_behind_which_all_were_renumbered_is_found(rows: Rows, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(rows) - 1))
    later = [(row[0] - 1, *row[1:]) for row in rows[at + 1 :]]
    assert verify([*rows[:at], *later], end_of(rows))[0] == at + 1


@given(chains, st.data())
def test_rows_cut_off_the_end_are_found(rows: Rows, data: st.DataObject) -> None:
    left = data.draw(st.integers(0, len(rows) - 1))
    seq, problem = verify(rows[:left], end_of(rows))
    assert seq == left + 1
    assert "missing from the end" in str(problem)


@given(st.lists(TEXT, min_size=2, max_size=12).map(make_chain), st.data())
def test_two_rows_that_changed_places_are_found_at_the_first(rows: Rows, data: st.DataObject) -> None:
    one, two = sorted(data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=2, max_size=2, unique=True)))
    swapped = list(rows)
    swapped[one], swapped[two] = (rows[one][0], *rows[two][1:]), (rows[two][0], *rows[one][1:])
    assert verify(swapped, end_of(rows))[0] == one + 1


@given(chains, TEXT)
def test_a_row_added_at_the_end_is_found(rows: Rows, message: str) -> None:
    longer = make_chain([row[8] for row in rows] + [message])
    assert verify(longer, end_of(rows))[0] == len(rows) + 1


@given(chains)
def test_a_forged_end_is_found(rows: Rows) -> None:
    assert verify(rows, Head(len(rows), "f" * 64))[0] == len(rows)


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["ok", "fails", "projection"])), max_size=5), max_size=4
    )
)
def test_any_interleaving_of_writes_and_failures_keeps_the_chain(groups: list[list[tuple[int, str]]]) -> None:
    def project(_tx: Tx, row: events.EventRow) -> None:
        if row.name == "projection":
            raise ZeroDivisionError

    def closure(count: int, what: str) -> Any:
        def fn(tx: Tx) -> None:
            emit(tx, "ok", count)
            if what != "ok":
                emit(tx, what)
                raise ZeroDivisionError

        return fn

    async def main(url: str) -> None:
        async with opened(url) as store:
            store.project(project)
            for group in groups:
                await together(store, *(closure(count, what) for count, what in group))
            found = await store.read(events.verify)
            assert found.problem is None
            assert found.rows == sum(count for group in groups for count, what in group if what == "ok")

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(f"sqlite:///{folder}/p.db"))


def alter(store: Store, statement: str) -> None:
    with store._writing.connect() as conn:
        conn.exec_driver_sql(statement)


@pytest.mark.parametrize(
    ("statement", "bad"),
    [
        ("UPDATE events SET message = 'x' WHERE seq = 3", 3),
        ("UPDATE events SET at = at + 1 WHERE seq = 1", 1),
        ("DELETE FROM events WHERE seq = 4", 4),
        ("DELETE FROM events WHERE seq >= 9", 9),
        ("DELETE FROM events", 1),
        ("UPDATE events SET seq = -seq WHERE seq IN (5)", 1),
        ("UPDATE heads SET seq = 8", 9),
        ("DELETE FROM heads", 1),
    ],
)
def test_what_was_done_to_the_database_is_found(url: str, statement: str, bad: int) -> None:
    async def main() -> None:
        async with opened(url) as store:
            await store.write(lambda tx: emit(tx, count=10))
            alter(store, statement)
            found = await store.read(events.verify)
            assert (found.ok, found.first_bad_seq) == (False, bad)

    asyncio.run(main())


@pytest.mark.parametrize("value", ["CAST(x'ff' AS TEXT)", "x'00'", "7", "9e999", "'\\x'"])
@pytest.mark.parametrize("column", ["message", "at", "prev_hash", "hash", "data"])
def test_values_that_penstock_never_writes_are_found(sqlite_url: str, column: str, value: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url) as store:
            await store.write(lambda tx: emit(tx, count=3))
            alter(store, f"UPDATE events SET {column} = {value} WHERE seq = 2")
            found = await store.read(events.verify)
            assert (found.ok, found.first_bad_seq) == (False, 2)

    asyncio.run(main())


def test_pages_and_filters(url: str) -> None:
    async def main() -> None:
        async with opened(url) as store:

            def fill(tx: Tx) -> None:
                for n in range(60):
                    ref = Ref("Job" if n % 2 else "Node", f"n{n % 5}", ("", "a", "b")[n % 3])
                    tx.emit(ref, (Reason.Created, Reason.Failed)[n % 4 == 0], actor=f"u{n % 7}")

            await store.write(fill)
            everything = await store.read(lambda conn: events.page(conn, limit=500))
            assert [row.seq for row in everything] == list(range(1, 61))
            cases: list[dict[str, Any]] = [
                {"kind": "Job"},
                {"project": ""},
                {"project": "a", "name": "n1"},
                {"project": {"a", "b"}, "kind": "Node"},
                {"project": []},
                {"reason": "Failed", "actor": "u4"},
                {"kind": None, "name": None},
            ]
            for case in cases:

                def fits(row: events.EventRow, case: dict[str, Any] = case) -> bool:
                    pairs = ((getattr(row, name), wanted) for name, wanted in case.items() if wanted is not None)
                    return all(has == wanted if isinstance(wanted, str) else has in wanted for has, wanted in pairs)

                expected = [row for row in everything if fits(row)]
                assert await walk(store, newest=False, **case) == expected
                assert await walk(store, newest=True, **case) == expected[::-1]

    asyncio.run(main())


async def walk(store: Store, *, newest: bool, **case: Any) -> list[events.EventRow]:
    found: list[events.EventRow] = []
    while True:
        after = found[-1].seq if found else None
        rows = await store.read(partial(events.page, after=after, limit=7, newest_first=newest, **case))
        found += rows
        if len(rows) < 7:
            return found


@contextmanager
def long_log(folder: str, count: int) -> Iterator[Connection]:
    engine = create_engine(f"sqlite:///{folder}/long.db")
    metadata.create_all(engine)
    with engine.begin() as conn:
        rows: list[dict[str, Any]] = []
        previous = GENESIS
        for seq in range(1, count + 1):
            plain = (seq, 1e9, f"u{seq % 50}", "Job", f"p{seq % 20}", f"j{seq // 8}", "x", f"R{seq % 9}", "made", "{}")
            digest = events.chain_hash(previous, plain)
            rows.append(dict(zip(COLUMNS, (*plain, previous, digest), strict=True)))
            previous = digest
        conn.execute(insert(table), rows)
        conn.execute(insert(heads).values(chain=events.CHAIN, seq=count, hash=previous))
    with engine.connect() as conn:
        yield conn
    engine.dispose()


def test_a_long_log_is_read_by_index_and_verified_in_bounded_memory(tmp_path: Any) -> None:
    count = 100_000
    with long_log(str(tmp_path), count) as conn:
        cases: list[dict[str, Any]] = [
            {},
            {"after": count // 2},
            {"after": count // 2, "newest_first": True},
            {"project": "p7", "name": "j12000", "kind": "Job"},
            {"reason": "R3", "newest_first": True},
            {"actor": "u49", "after": count - 60},
            {"kind": "Node"},
        ]
        for case in cases:
            started = time.process_time()
            events.page(conn, limit=100, **case)
            assert time.process_time() - started < 0.05, case
        tracemalloc.start()
        found = events.verify(conn)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (found.ok, found.rows) == (True, count)
        assert peak < 16 << 20


def test_the_hash_is_what_the_documentation_says(sqlite_url: str) -> None:
    """Recomputed here from the words of docs/internals.md alone, with nothing of Penstock's."""

    async def main() -> None:
        async with opened(sqlite_url, Clock(1234.5)) as store:
            await store.write(
                lambda tx: tx.emit(Ref("Job", "é", "p", "i"), Reason.Created, "m", actor="a", data={"b": 1, "a": 2})
            )
            row = tuple((await store.read(lambda conn: conn.execute(select(table)).all()))[0])
            assert row[9] == '{"a":2,"b":1}'
            text = "0" * 64 + json.dumps(list(row[:10]), separators=(",", ":"))
            assert row[11] == hashlib.sha256(text.encode()).hexdigest()

    asyncio.run(main())
