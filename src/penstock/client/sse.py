"""Server-sent events (WHATWG HTML, section 9.2) from the chunks of a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from penstock.base.errors import Unavailable

MAX_EVENT = 16 << 20  # bytes of one event: a server that never ends one does not fill the client's memory


class Message(NamedTuple):
    """One event; ``id`` is what ``Last-Event-ID`` resumes after ("" until the stream has named one)."""

    event: str
    data: str
    id: str

    def json(self) -> Any:
        """Raises Unavailable where the data is no JSON."""
        try:
            return json.loads(self.data)
        except ValueError as error:
            raise Unavailable("the server sent an event that is not JSON") from error


class Parser:
    """Feed it bytes; it answers the events that they complete. Comments, ``retry`` and unknown fields are passed over."""

    def __init__(self) -> None:
        self._rest = b""
        self._after_cr = False
        self._data: list[str] = []
        self._held = 0  # bytes of the event so far
        self._event = ""
        self._id = ""

    def feed(self, chunk: bytes) -> list[Message]:
        """Raises Unavailable where one event is longer than ``MAX_EVENT``."""
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        lines = (self._rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop()
        told = [message for line in lines if (message := self._line(line)) is not None]
        if self._held + len(self._rest) > MAX_EVENT:
            raise Unavailable(f"the server sent an event longer than {MAX_EVENT} bytes")
        return told

    def _line(self, line: bytes) -> Message | None:
        if not line:
            self._held = 0
            data, event, self._data, self._event = "\n".join(self._data), self._event, [], ""
            return Message(event or "message", data, self._id) if data else None
        self._held += len(line)
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        return None


def messages(chunks: Iterable[bytes]) -> Iterator[Message]:
    """The events of a whole stream."""
    parser = Parser()
    for chunk in chunks:
        yield from parser.feed(chunk)
