"""What Envoy's external processing filter tells of an exchange: its messages, read from their bytes. Pure.

Of ``envoy.service.ext_proc.v3.ProcessingRequest`` six fields are read; in observability mode Envoy waits for no answer and
sends copies. Reading them by hand takes a page and no generated code; fields that are not known are passed over, as protobuf
wants it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

METHOD = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"


class Kind(IntEnum):
    """The field's number in ProcessingRequest."""

    REQUEST_HEADERS = 2
    RESPONSE_HEADERS = 3
    REQUEST_BODY = 4
    RESPONSE_BODY = 5
    REQUEST_TRAILERS = 6
    RESPONSE_TRAILERS = 7


HEADERS = frozenset({Kind.REQUEST_HEADERS, Kind.RESPONSE_HEADERS})
BODIES = frozenset({Kind.REQUEST_BODY, Kind.RESPONSE_BODY})
_KINDS = {int(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Part:
    """``headers`` in lower case, pseudo headers (``:path``) among them. ``end``: nothing follows on this side."""

    kind: Kind
    headers: tuple[tuple[str, bytes], ...] = ()
    body: bytes = b""
    end: bool = False


def decoded(message: bytes) -> Part | None:
    """None: nothing that is read here. Raises ValueError for what is no protobuf."""
    for number, value in _fields(message):
        kind = _KINDS.get(number)
        if kind is None or isinstance(value, int):
            continue
        if kind in HEADERS:
            return _headers(kind, value)
        if kind in BODIES:
            return _body(kind, value)
        return Part(kind, _pairs(value), end=True)
    return None


def _headers(kind: Kind, data: bytes) -> Part:
    pairs: tuple[tuple[str, bytes], ...] = ()
    end = False
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            pairs = _header_map(value)
        elif number == 3 and isinstance(value, int):
            end = bool(value)
    return Part(kind, pairs, end=end)


def _body(kind: Kind, data: bytes) -> Part:
    body, end = b"", False
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            body = value
        elif number == 2 and isinstance(value, int):
            end = bool(value)
    return Part(kind, body=body, end=end)


def _pairs(data: bytes) -> tuple[tuple[str, bytes], ...]:
    return next((_header_map(value) for number, value in _fields(data) if number == 1 and isinstance(value, bytes)), ())


def _header_map(data: bytes) -> tuple[tuple[str, bytes], ...]:
    found = []
    for number, value in _fields(data):
        if number != 1 or not isinstance(value, bytes):
            continue
        one = {key: text for key, text in _fields(value) if isinstance(text, bytes)}
        found.append((one.get(1, b"").decode("latin-1").lower(), one.get(3) or one.get(2, b"")))
    return tuple(found)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of one message: integers, or what is length-delimited as bytes; others are passed over."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
        elif wire == 2:
            size, at = _varint(data, at)
            if at + size > end:
                raise ValueError("a field is longer than its message")
            yield number, data[at : at + size]
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > end:
                raise ValueError("a field is longer than its message")
        else:
            raise ValueError(f"wire type {wire} is not read")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("a number has no end")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
