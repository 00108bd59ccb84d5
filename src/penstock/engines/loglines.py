"""Lines of logs: cut from pieces of bytes as they are fetched, and laid out for whoever reads them. No file is opened here.

An engine hands a ``Cursor`` the pieces of one rank's output; ``Layout`` joins many ranks' lines into blocks of text.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, Protocol, TypeVar

from penstock.base.quantities import format_memory, format_time
from penstock.base.text import sanitize
from penstock.engines.spec import LogRequest

CHUNK = 1 << 16
MAX_LINE = 1 << 16  # a longer line is shown in pieces

Line = tuple[float, bytes]  # when its first byte was seen (0.0 when nobody asked), with its newline if it had one


class Pieces(Protocol):
    """One rank's kept bytes."""

    def read(self, offset: int) -> tuple[int, bytes]: ...  # (where it begins, bytes); empty at the end for now
    def look_up_times(self) -> None: ...
    def time_of(self, offset: int) -> float: ...


P = TypeVar("P", bound=Pieces)


class Cursor(Generic[P]):
    """Goes through one rank's lines."""

    def __init__(self, name: str, pieces: P, *, timed: bool, plain: bool) -> None:
        self.name = name
        self.pieces = pieces
        self.offset = 0
        self.lines: deque[Line] = deque()
        self._timed = timed
        self._plain = plain  # nothing is put before lines: whole blocks of them pass as one
        self._rest = b""
        self._rest_at = 0.0
        self._missing = 0  # bytes of a gap that is not shown yet
        self._missing_at = 0.0
        self._torn = b""  # what follows that gap, while its first line may have lost its beginning
        self._broken = False  # the last piece shown has no newline

    def fill(self) -> bool:
        """Read one piece. False when there is nothing new."""
        begin, data = self.pieces.read(self.offset)
        if not data:
            return False
        if self._timed:
            self.pieces.look_up_times()
        if begin > self.offset:
            self._leap(begin)
        self.offset = begin + len(data)
        if self._missing:
            begin, data = self._resume(begin, data)
        position = data.rfind(b"\n") + 1 if self._plain else 0
        if position:
            self._append(begin, data[:position])
        while (end := data.find(b"\n", position)) >= 0:
            self._append(begin + position, data[position : end + 1])
            position = end + 1
        if position < len(data):
            self._keep(begin + position, data[position:])
        return True

    def _leap(self, begin: int) -> None:
        """Over a gap: the line before it has lost its end, and is not shown (but for one that is shown in pieces)."""
        if self._broken and not self._missing:
            self.finish()
        self._missing += begin - self.offset + len(self._rest) + len(self._torn)
        self._missing_at = self._time(begin)
        self._rest = self._torn = b""

    def _resume(self, begin: int, data: bytes) -> tuple[int, bytes]:
        """After a gap: what is shown next, and where that begins. The rest of a torn line is not, if more follows it."""
        torn, self._torn = self._torn + data, b""
        begin += len(data) - len(torn)
        cut = torn.find(b"\n") + 1
        if cut in (0, len(torn)):
            if len(torn) < MAX_LINE:
                self._torn = torn
                return begin, b""
            cut = 0  # shown in pieces anyway
        self._name_gap(cut)
        return begin + cut, torn[cut:]

    def _name_gap(self, more: int) -> None:
        if self._broken and self._plain:
            self.lines.append((self._missing_at, b"\n"))
        self.lines.append((self._missing_at, _gap(self._missing + more)))
        self._missing = 0
        self._broken = False

    def _append(self, offset: int, line: bytes) -> None:
        at = self._rest_at if self._rest else self._time(offset)
        self.lines.append((at, self._rest + line))
        self._rest = b""
        self._broken = False

    def _keep(self, offset: int, part: bytes) -> None:
        if not self._rest:
            self._rest_at = self._time(offset)
        self._rest += part
        if len(self._rest) >= MAX_LINE:
            self.finish()

    def finish(self) -> None:
        """The last line may have no newline; a torn one that nothing follows is shown as it is."""
        if self._missing:
            self._name_gap(0)
            self._rest, self._torn, self._rest_at = self._torn, b"", self._missing_at
        if self._rest:
            self.lines.append((self._rest_at, self._rest))
            self._broken = not self._rest.endswith(b"\n")
            self._rest = b""

    def _time(self, offset: int) -> float:
        return self.pieces.time_of(offset) if self._timed else 0.0


def _gap(count: int) -> bytes:
    return f"[... {format_memory(count)}{'' if count >= 1024 else ' bytes'} of output not kept ...]\n".encode()


class Layout:
    """Lines on their way to a reader: prefixed, stamped, made harmless, joined into blocks of bounded size."""

    def __init__(self, request: LogRequest, *, prefixed: bool) -> None:
        self._request = request
        self._prefixed = prefixed
        self._block: list[bytes] = []
        self._size = 0

    def add(self, name: str, line: bytes, at: float) -> bytes | None:
        """A block, when it is full."""
        if self._prefixed or self._request.timestamps:
            stamp = f"{format_time(at)} " if self._request.timestamps else ""
            label = f"[rank {name}] " if name.isdigit() else f"[{name}] "
            self._block.append((stamp + (label if self._prefixed else "")).encode())
            self._block.append(line if line.endswith(b"\n") else line + b"\n")
        else:
            self._block.append(line)
        self._size += len(line)
        return self.flush() if self._size >= CHUNK else None

    def flush(self) -> bytes | None:
        if not self._block:
            return None
        block = b"".join(self._block)
        self._block, self._size = [], 0
        return block if self._request.raw else sanitize(block).encode()


def in_order(names: list[str]) -> list[str]:
    """Ranks in order, launchers last."""
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
