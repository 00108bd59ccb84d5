"""Envoy's messages to an external processor, made by hand."""

from __future__ import annotations

from penstock.serving.extproc import Kind, Part


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def header_map(pairs: tuple[tuple[str, bytes], ...]) -> bytes:
    return b"".join(field(1, field(1, key.encode()) + field(3, value)) for key, value in pairs)


def encoded(part: Part) -> bytes:
    if part.kind in (Kind.REQUEST_HEADERS, Kind.RESPONSE_HEADERS):
        inner = field(1, header_map(part.headers)) + (field(3, 1) if part.end else b"")
    elif part.kind in (Kind.REQUEST_BODY, Kind.RESPONSE_BODY):
        inner = field(1, part.body) + (field(2, 1) if part.end else b"")
    else:
        inner = field(1, header_map(part.headers))
    return field(part.kind, inner) + field(10, 1)  # observability_mode follows
