"""Retention's promise, under every order of events: the last k whole checkpoints are never removed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.worker.checkpoint.folder import Entry
from penstock.worker.checkpoint.retention import to_remove, undecided

ENTRIES = st.integers(0, 12).map(lambda n: [Entry(f"/c/{i}", i * 10, f"{i:012x}") for i in range(n)])


@given(ENTRIES, st.data(), st.integers(1, 5), st.sampled_from([None, 20, 30]))
def test_the_last_k_whole_ones_stay(entries: list[Entry], data: st.DataObject, keep: int, every: int | None) -> None:
    verified = data.draw(st.sets(st.sampled_from([e.id for e in entries]) if entries else st.nothing()))
    gone = {entry.id for entry in to_remove(entries, verified, keep, every)}
    whole = [entry for entry in entries if entry.id in verified]
    assert not gone & {entry.id for entry in whole[-keep:]}
    if len(whole) < keep:
        assert not gone
    else:
        newer = {entry.id for entry in entries if entry.id >= whole[-keep].id}
        assert not gone & newer
        assert all(
            entry.id in gone for entry in entries if entry.id not in newer and not (every and entry.step % every == 0)
        )
    if every:
        assert not any(entry.step % every == 0 for entry in entries if entry.id in gone)


@given(ENTRIES, st.data(), st.integers(1, 5))
def test_reading_comes_to_an_end_and_knows_enough(entries: list[Entry], data: st.DataObject, keep: int) -> None:
    truth = data.draw(st.sets(st.sampled_from([e.id for e in entries]) if entries else st.nothing()))
    verified: set[str] = set()
    damaged: set[str] = set()
    for _ in range(len(entries) + 1):
        entry = undecided(entries, verified, damaged, keep)
        if entry is None:
            break
        (verified if entry.id in truth else damaged).add(entry.id)
    else:
        raise AssertionError("it never ends")
    whole = [entry.id for entry in entries if entry.id in truth]
    assert not {entry.id for entry in to_remove(entries, verified, keep)} & set(whole[-keep:])
