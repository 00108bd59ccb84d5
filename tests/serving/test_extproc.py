"""Envoy's messages, read by hand: made ones, and bytes that are none."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.extproc import Kind, Part, decoded
from tests.serving.messages import encoded, field, varint

keys = st.text("abcdefghijklmnopqrstuvwxyz-:", min_size=1, max_size=20)
pairs = st.lists(st.tuples(keys, st.binary(max_size=300)), max_size=5).map(tuple)
parts = st.one_of(
    st.builds(Part, st.sampled_from([Kind.REQUEST_HEADERS, Kind.RESPONSE_HEADERS]), pairs, end=st.booleans()),
    st.builds(
        Part,
        st.sampled_from([Kind.REQUEST_BODY, Kind.RESPONSE_BODY]),
        body=st.binary(max_size=70_000),
        end=st.booleans(),
    ),
    st.builds(Part, st.sampled_from([Kind.REQUEST_TRAILERS, Kind.RESPONSE_TRAILERS]), pairs, end=st.just(value=True)),
)


@given(parts)
def test_a_message_is_read_as_it_was_made(part: Part) -> None:
    assert decoded(encoded(part)) == part


@given(parts, st.data())
def test_a_cut_or_changed_message_raises_nothing_else(part: Part, data: st.DataObject) -> None:
    message = bytearray(encoded(part))
    if message:
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        decoded(bytes(message[: data.draw(st.integers(0, len(message)))]))


def test_a_plain_value_and_unknown_fields() -> None:
    """``value`` (2) where a header has no ``raw_value``; a string, 32- and 64-bit numbers that nobody asked for."""
    one = field(1, b"x-a") + field(2, b"plain")
    extra = field(99, b"later") + varint(98 << 3 | 5) + b"1234" + varint(97 << 3 | 1) + b"12345678"
    message = extra + field(2, field(1, field(1, one)) + field(2, b"reserved"))
    assert decoded(message) == Part(Kind.REQUEST_HEADERS, (("x-a", b"plain"),))
    assert decoded(b"") is None


@pytest.mark.parametrize("message", [b"\xff" * 12, b"\x12\x05ab", b"\x13", b"\x0d12"])
def test_no_protobuf(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"no end|longer than its message|is not read"):
        decoded(message)
