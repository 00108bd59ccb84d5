"""Reading a run folder's logs: one rank or all merged by time, from any point, followed live, in bounded memory.

Files are read in pieces of 64 KiB at the consumer's pace, so a slow consumer of a flood costs no memory; what the
writer has dropped meanwhile is shown as a line.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from penstock.engines.local.folder import LAUNCH, LOGS, PROGRESS, WATCH
from penstock.engines.local.logwriter import ROW
from penstock.engines.loglines import CHUNK, Cursor, Layout, in_order
from penstock.engines.reports import EVENT, share
from penstock.engines.spec import LogRequest

_POLL_FIRST_S, _POLL_ACTIVE_S, _POLL_IDLE_S = 0.02, 0.05, 0.5
_PROGRESS_BYTES = 8 << 20
_POINTS, _NEWEST, _GOLDEN = 4000, 100, 0.6180339887498949


class Segments:
    """One rank's files: where the kept bytes are, and when they were written."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._open: tuple[int, int] | None = None  # (start, descriptor)
        self._times: list[float] = []
        self._offsets: list[int] = []

    def starts(self) -> list[int]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return sorted(int(name[:-4]) for name in names if name.endswith(".log"))

    def read(self, offset: int) -> tuple[int, bytes]:
        """(where it begins, bytes): from ``offset``, or from after the gap that lies there. Empty at the end for now."""
        if self._open is None and not self._enter(offset):
            return offset, b""
        while self._open is not None:
            start, fd = self._open
            data = os.pread(fd, CHUNK, max(0, offset - start))
            following = None if data else self._following(start, offset)
            if following is not None:
                # The writer leaves a segment before it begins the next: what the old one holds now is all of it.
                data = os.pread(fd, CHUNK, max(0, offset - start))
            if data:
                return max(offset, start), data
            if following is None:
                break
            self._switch(following)  # False when it was removed just now: then the one after it is looked for
        return offset, b""

    def _following(self, start: int, offset: int) -> int | None:
        if offset > start and os.path.exists(self._path(offset)):
            return offset
        return next((other for other in self.starts() if other > start), None)

    def _enter(self, offset: int) -> bool:
        """Open the segment that holds ``offset``, or the first one behind it. False when there is none (yet)."""
        for _ in range(8):  # the writer may remove what was just listed
            starts = self.starts()
            if not starts:
                return False
            if self._switch(starts[max(0, bisect.bisect_right(starts, offset) - 1)]):
                return True
        return False

    def _switch(self, start: int) -> bool:
        try:
            fd = os.open(self._path(start), os.O_RDONLY)
        except FileNotFoundError:
            return False
        self.close()
        self._open = (start, fd)
        return True

    def _path(self, start: int, suffix: str = ".log") -> str:
        return f"{self._folder}/{start:020d}{suffix}"

    def look_up_times(self) -> None:
        """Read the open segment's index; ``time_of`` answers from it."""
        if self._open is not None:
            self._times, self._offsets = self.rows(self._open[0])

    def time_of(self, offset: int) -> float:
        """When the byte at ``offset`` was seen (to 10 ms)."""
        position = bisect.bisect_right(self._offsets, offset) - 1
        return self._times[max(0, position)] if self._times else 0.0

    def rows(self, start: int) -> tuple[list[float], list[int]]:
        try:
            with open(self._path(start, ".idx"), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return [], []
        rows = list(ROW.iter_unpack(data[: len(data) // ROW.size * ROW.size]))
        return [at for at, _ in rows], [offset for _, offset in rows]

    def since(self, moment: float) -> int:
        """The offset of the first byte seen at ``moment`` or later; the end when there is none."""
        for start in self.starts():
            times, offsets = self.rows(start)
            for at, offset in zip(times, offsets, strict=True):
                if at >= moment:
                    return offset
        return self.end()

    def end(self) -> int:
        starts = self.starts()
        if not starts:
            return 0
        with contextlib.suppress(FileNotFoundError):
            return starts[-1] + os.stat(self._path(starts[-1])).st_size
        return starts[-1]

    def tail(self, lines: int) -> int:
        """The offset at which the last ``lines`` lines begin, read from the end."""
        end = self.end()
        wanted = lines
        for start in reversed(self.starts()):
            try:
                fd = os.open(self._path(start), os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                stop = min(end, start + os.fstat(fd).st_size)
                while stop > start:
                    begin = max(start, stop - CHUNK)
                    data = os.pread(fd, stop - begin, begin - start)
                    position = len(data) - 1 if stop == end else len(data)
                    while (position := data.rfind(b"\n", 0, max(0, position))) >= 0:
                        wanted -= 1
                        if wanted == 0:
                            return begin + position + 1
                    stop = begin
            finally:
                os.close(fd)
        starts = self.starts()
        return starts[0] if starts else 0

    def close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None


def points(path: str) -> list[Mapping[str, Any]]:
    """A file's reports; of very many an even choice, the newest always, and every event."""
    found: list[Mapping[str, Any]] = []
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        lines = file.read(_PROGRESS_BYTES).splitlines()
        part = _POINTS / max(len(lines), 1)
        for n, line in enumerate(lines):
            # Multiples of the golden ratio are spread evenly and keep step with no number of ranks that take turns.
            if n * _GOLDEN % 1 < part or n >= len(lines) - _NEWEST or EVENT in line:
                with contextlib.suppress(ValueError):
                    found.append(json.loads(line))
    return found


def events(folder: str) -> list[Mapping[str, Any]]:
    """All ranks' folders of one kind of log whose lines are reports."""
    try:
        names = [name for name in in_order(os.listdir(folder)) if name.isdigit()]
    except FileNotFoundError:
        return []
    found: list[Mapping[str, Any]] = []
    for name in names:
        segments = Segments(f"{folder}/{name}")
        offset = max(0, segments.end() - share(len(names))) if len(names) > 1 else 0
        pieces = []
        while (piece := segments.read(offset))[1]:
            pieces.append(b"\n" if piece[0] != offset else b"")  # a gap: what it cut is no line
            pieces.append(piece[1])
            offset = piece[0] + len(piece[1])
        segments.close()
        for line in b"".join(pieces).splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
    return found


class LocalLogReader:
    """The logs and the progress of one attempt."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir

    def ranks(self) -> list[str]:
        """Ranks in order, launchers last."""
        try:
            names = os.listdir(f"{self.run_dir}/{LOGS}")
        except FileNotFoundError:
            return []
        return in_order(names)

    async def progress(self) -> list[Mapping[str, Any]]:
        """The reports, oldest first; of very many an even choice."""
        return await asyncio.to_thread(points, f"{self.run_dir}/{PROGRESS}")

    async def watched(self) -> list[Mapping[str, Any]]:
        """Events of ``penstock.watch``, by rank and then as they came; of many ranks each one's newest."""
        return await asyncio.to_thread(events, f"{self.run_dir}/{WATCH}")

    async def read(self, request: LogRequest, finished: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Pieces of text. ``finished`` says whether the attempt is over: what was written by then is shown to the end."""
        reading = _Reading(self, request)
        try:
            pause = _POLL_FIRST_S
            while True:
                over = not request.follow or finished()
                reading.look()
                shown = False
                for piece in reading.pieces(last=over):
                    shown = True
                    yield piece
                    await asyncio.sleep(0)
                if over:
                    return
                pause = _POLL_FIRST_S if shown else min(_POLL_IDLE_S, max(pause * 1.25, _POLL_FIRST_S))
                await asyncio.sleep(min(pause, _POLL_ACTIVE_S) if shown else pause)
        finally:
            reading.close()


class _Reading:
    """One consumer's walk through the ranks it asked for."""

    def __init__(self, reader: LocalLogReader, request: LogRequest) -> None:
        self._reader = reader
        self._request = request
        self._cursors: dict[str, Cursor[Segments]] = {}
        self._first = True
        self._many = False  # more than one rank is shown

    def look(self) -> None:
        """Find ranks that have begun to write."""
        request = self._request
        names = self._reader.ranks()
        if not self._many and names:
            self._many = request.rank is None and (len(names) > 1 or self._world() > 1)
        for name in names:
            if name in self._cursors or (request.rank is not None and request.rank != name):
                continue
            plain = not (request.timestamps or self._prefixed() or self._many)
            path = f"{self._reader.run_dir}/{LOGS}/{name}"
            cursor = Cursor(name, Segments(path), timed=self._many or request.timestamps, plain=plain)
            if self._first and request.tail is not None:
                cursor.offset = cursor.pieces.tail(request.tail) if request.tail > 0 else cursor.pieces.end()
            elif request.since is not None:
                cursor.offset = cursor.pieces.since(request.since)
            self._cursors[name] = cursor

    def pieces(self, *, last: bool) -> Iterator[bytes]:
        """Everything that is there now, in pieces of bounded size; of the first round only the tail that was asked for."""
        if self._first and self._request.tail is not None and len(self._cursors) > 1:
            yield from self._merged_tail(self._request.tail, last=last)
        else:
            yield from self._blocks(self._lines(last=last))
        self._first = False

    def _merged_tail(self, count: int, *, last: bool) -> Iterator[bytes]:
        newest: deque[tuple[str, bytes, float]] = deque(maxlen=max(0, count))
        newest.extend(self._lines(last=last))
        yield from self._blocks(iter(newest))

    def _lines(self, *, last: bool) -> Iterator[tuple[str, bytes, float]]:
        """(rank, line, time), merged by time over all ranks."""
        live = list(self._cursors.values())
        while True:
            for cursor in list(live):
                while not cursor.lines:
                    if cursor.fill():
                        continue
                    if last:
                        cursor.finish()
                    if not cursor.lines:
                        live.remove(cursor)
                    break
            if not live:
                return
            first = min(live, key=lambda cursor: cursor.lines[0][0]) if len(live) > 1 else live[0]
            at, line = first.lines.popleft()
            yield first.name, line, at

    def _blocks(self, lines: Iterator[tuple[str, bytes, float]]) -> Iterator[bytes]:
        layout = Layout(self._request, prefixed=self._prefixed())
        for name, line, at in lines:
            if (block := layout.add(name, line, at)) is not None:
                yield block
        if (block := layout.flush()) is not None:
            yield block

    def _prefixed(self) -> bool:
        return self._many if self._request.prefix is None else self._request.prefix

    def _world(self) -> int:
        """How many ranks there will be: prefixes are shown also while only one has written anything."""
        with contextlib.suppress(OSError, ValueError, KeyError), open(f"{self._reader.run_dir}/{LAUNCH}", "rb") as file:
            launch = json.load(file)
            return int(launch["procs"]) * len(launch["groups"])
        return 1

    def close(self) -> None:
        for cursor in self._cursors.values():
            cursor.pieces.close()
