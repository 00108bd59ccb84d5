"""An answer as it came, and what of it may be kept as an example. Pure, and light: the server imports it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

MOST = 64 << 20  # bytes of a body once it is unpacked
SHOWN = 2000  # characters of one body in an example
HEADER_LENGTH = "inference-header-content-length"


class Unreadable(ValueError):
    """It is not what it says it is."""


@dataclass(frozen=True, slots=True)
class Reply:
    """``headers`` in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def unpacked(reply: Reply) -> bytes:
    """The body without its content encoding. Raises Unreadable, also for one that would grow too large."""
    encoding = reply.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return reply.body
    if encoding not in ("gzip", "deflate"):
        raise Unreadable(f"its encoding is {encoding:.40}")
    stream = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        data = stream.decompress(reply.body, MOST)
    except zlib.error as error:
        raise Unreadable(f"it is no {encoding}: {error}") from error
    if stream.unconsumed_tail:
        raise Unreadable(f"unpacked it has more than {MOST} bytes")
    if not stream.eof:
        raise Unreadable(f"its {encoding} is cut off")
    return data


def shown(reply: Reply) -> str:
    """The beginning of a body, as text. Headers are never kept: keys and cookies are among them."""
    body = reply.body
    length = reply.headers.get(HEADER_LENGTH, "")
    tail = ""
    if length.isdigit() and int(length) <= len(body):
        tail = f" and {len(body) - int(length)} bytes of tensors"
        body = body[: int(length)]
    text = body[: SHOWN * 4].decode("utf-8", "replace")
    if text.count("\ufffd") > len(text) // 10:
        return f"{len(reply.body)} bytes: {body[:64].hex()}"
    more = f" ... ({len(reply.body)} bytes)" if len(text) > SHOWN else ""
    return text[:SHOWN] + more + tail
