from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import Unavailable
from penstock.client import sse
from penstock.client.sse import Message, messages

STREAM = (
    b"\xef\xbb\xbfretry: 10\n\n"  # a first line of a mark and `retry`: nothing to tell
    b": a comment\n"
    b'event: job\nid: 7\ndata: {"a":\ndata: 1}\n\n'
    b"data\n\n"  # an empty field: no event
    b"data:two\r\nid: 8\r\n\r\n"
    b"event: last\rdata:  three\r\r"
    b"data: cut off"
)
TOLD = [Message("job", '{"a":\n1}', "7"), Message("message", "two", "8"), Message("last", " three", "8")]


def test_events() -> None:
    assert list(messages([STREAM])) == TOLD
    assert TOLD[0].json() == {"a": 1}


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_where_the_chunks_are_cut_does_not_matter(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in pairwise(edges)]
    assert list(messages(chunks)) == TOLD


@given(st.binary())
def test_no_bytes_surprise_it(data: bytes) -> None:
    list(messages([data]))


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 1000)
    for chunk in (b"x" * 100, b"data: " + b"x" * 100 + b"\n"):
        with pytest.raises(Unavailable, match="longer than"):
            list(messages([chunk] * 100))


def test_data_that_is_not_json() -> None:
    with pytest.raises(Unavailable, match="not JSON"):
        Message("job", "{", "1").json()
