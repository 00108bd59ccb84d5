"""Logs and progress of an attempt on a cluster: one rank or all merged by time, followed live, in bounded memory.

A rank's output is its file, written by nobody but the rank: there is no size at which it is cut, so all of it is shown.
When a byte was written is told by ``logs/<rank>.idx``, lines of "epoch seconds, size", where there is one. The batch script
writes none: then a file's last change stands for all of it, and ranks that are read afterwards come one after another.
"""

from __future__ import annotations

import asyncio
import bisect
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from penstock.engines.loglines import CHUNK, Cursor, Layout, in_order
from penstock.engines.reports import EVENT, own_time, parse, share
from penstock.engines.slurm.errors import Unreachable
from penstock.engines.slurm.files import File, Files, Want
from penstock.engines.spec import LogRequest

BATCH = "batch"  # what the batch script and Slurm itself said
_POLL_FIRST_S, _POLL_ACTIVE_S, _POLL_IDLE_S = 0.05, 0.1, 1.0
_LOST_S = 2.0  # between tries to reach a site that is lost
_ROUND_BYTES = 4 << 20  # of all ranks together, asked for at once
_INDEX_BYTES = 8 << 20
_PROGRESS_BYTES = 2 << 20  # the newest of each rank's reports
_POINTS = 4000  # of each rank; more are thinned out evenly


class Fetched:
    """One rank's piece that was fetched last, and the index of times."""

    def __init__(self) -> None:
        self.size = 0  # when it was looked at last
        self.piece = (0, b"")
        self._times: list[float] = []
        self._sizes: list[int] = []
        self._changed_at = 0.0
        self._torn = b""
        self.indexed = 0  # bytes of the index that were read

    def look(self, file: File) -> None:
        self.size, self._changed_at = file.size, file.changed_at

    def take_rows(self, data: bytes) -> None:
        self.indexed += len(data)
        *lines, self._torn = (self._torn + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                at, size = line.split()
                if not self._sizes or int(size) > self._sizes[-1]:
                    self._times.append(float(at))
                    self._sizes.append(int(size))

    def read(self, offset: int) -> tuple[int, bytes]:
        begin, data = self.piece
        return (offset, data) if begin == offset else (offset, b"")

    def look_up_times(self) -> None:
        return

    def time_of(self, offset: int) -> float:
        """When the byte at ``offset`` was there for sure; of the newest, when the file changed last."""
        row = bisect.bisect_right(self._sizes, offset)
        return self._times[row] if row < len(self._times) else self._changed_at

    def since(self, moment: float) -> int:
        """The offset of the first byte that came at ``moment`` or later; the end when there is none."""
        row = bisect.bisect_left(self._times, moment)
        if row < len(self._times):
            return self._sizes[row - 1] if row else 0
        return self.size if self._changed_at < moment else (self._sizes[-1] if self._sizes else 0)


class SlurmLogReader:
    """``files`` is called for every reading: they are its own, and closed with it. ``world``: how many ranks there will be."""

    def __init__(self, files: Callable[[], Awaitable[Files]], world: int) -> None:
        self._files = files
        self._world = world

    async def read(self, request: LogRequest, finished: Callable[[], bool]) -> AsyncIterator[bytes]:
        """Pieces of text. ``finished`` says whether the attempt is over: what was written by then is shown to the end."""
        reading = _Reading(await self._files(), request, self._world)
        try:
            pause = _POLL_FIRST_S
            while True:
                over = not request.follow or finished()
                shown = False
                try:
                    async for piece in reading.pieces(last=over):
                        shown = True
                        yield piece
                except Unreachable:
                    if not request.follow:
                        raise
                    await asyncio.sleep(_LOST_S)  # it is read on from where it was, also after the end
                    continue
                if over:
                    return
                pause = _POLL_ACTIVE_S if shown else min(_POLL_IDLE_S, max(pause * 1.25, _POLL_FIRST_S))
                await asyncio.sleep(pause)
        finally:
            await reading.close()

    async def progress(self) -> list[Mapping[str, Any]]:
        """Reports of all ranks, oldest first; of very many an even choice."""
        files = await self._files()
        try:
            found = await files.look()
            wants = [
                Want(name, max(0, file.size - _PROGRESS_BYTES), _PROGRESS_BYTES)
                for name, file in found.items()
                if name.startswith("progress/")
            ]
            points: list[dict[str, Any]] = []
            for want in wants:
                [data] = await files.read([want])
                rank = int(want.name.rpartition("/")[2])
                points += reports(data, rank, found[want.name].changed_at, whole=want.offset == 0)
            return sorted(points, key=lambda point: (point["at"], point["rank"]))
        finally:
            await files.close()

    async def watched(self) -> list[Mapping[str, Any]]:
        """Events of ``penstock.watch``, by rank and then as they came; of many ranks each one's newest."""
        files = await self._files()
        try:
            found = await files.look()
            names = sorted((name for name in found if name.startswith("watch/")), key=_by_rank)
            each = share(len(names))
            events: list[Mapping[str, Any]] = []
            for name in names:
                size = found[name].size
                [data] = await files.read([Want(name, max(0, size - each), each)])
                events += reports(data, _by_rank(name)[0], found[name].changed_at, whole=size <= each)
            return events
        finally:
            await files.close()


def _by_rank(name: str) -> tuple[int, bool]:
    """``watch/3.old`` before ``watch/3``."""
    rank = name[6:].removesuffix(".old")
    return int(rank), not name.endswith(".old")


class _Reading:
    """One consumer's walk through the ranks it asked for."""

    def __init__(self, files: Files, request: LogRequest, world: int) -> None:
        self._files = files
        self._request = request
        self._world = world
        self._cursors: dict[str, Cursor[Fetched]] = {}
        self._first = True
        self._many = False  # more than one rank is shown

    async def pieces(self, *, last: bool) -> AsyncIterator[bytes]:
        """Everything that is there now, in pieces of bounded size; of the first round only the tail that was asked for."""
        await self._look(last=last)
        layout = Layout(self._request, prefixed=self._prefixed())
        if self._first and self._request.tail is not None and len(self._cursors) > 1:
            newest: deque[tuple[str, bytes, float]] = deque(maxlen=self._request.tail)
            async for line in self._lines(last=last):
                newest.append(line)
            for line in newest:
                if (block := layout.add(*line)) is not None:
                    yield block
        else:
            async for line in self._lines(last=last):
                if (block := layout.add(*line)) is not None:
                    yield block
        if (block := layout.flush()) is not None:
            yield block
        self._first = False

    async def _look(self, *, last: bool) -> None:
        """Measure the files, and meet ranks that have begun to write."""
        found = await self._files.look()
        names = in_order([name[5:-4] for name in found if name.startswith("logs/") and name.endswith(".out")])
        wanted = self._wanted([name for name in names if name != BATCH], last=last)
        self._many = self._many or (self._request.rank is None and (len(wanted) > 1 or self._world > 1))
        met = []
        for name in wanted:
            if name not in self._cursors and f"logs/{name}.out" in found:
                plain = not (self._request.timestamps or self._prefixed() or self._many)
                self._cursors[name] = Cursor(name, Fetched(), timed=self._timed(), plain=plain)
                met.append(self._cursors[name])
        for name, cursor in self._cursors.items():
            if (file := found.get(f"logs/{name}.out")) is not None:
                cursor.pieces.look(file)
        if self._timed() or (met and self._request.since is not None):
            await self._read_indexes(found)
        await self._place(met)

    def _wanted(self, ranks: list[str], *, last: bool) -> list[str]:
        """What Slurm said is shown where no rank ever wrote, and to who asks for the launcher."""
        if self._request.rank == "launcher":
            return [*(name for name in ranks if not name.isdigit()), BATCH]
        if self._request.rank is not None:
            return [name for name in ranks if name == self._request.rank]
        if not ranks and last:
            return [BATCH]
        return ranks

    async def _read_indexes(self, found: Mapping[str, File]) -> None:
        for name, cursor in self._cursors.items():
            index = f"logs/{name}.idx"
            size = min(found[index].size, _INDEX_BYTES) if index in found else 0
            while cursor.pieces.indexed < size:
                [data] = await self._files.read([Want(index, cursor.pieces.indexed, 1 << 20)])
                if not data:
                    break
                cursor.pieces.take_rows(data)

    async def _place(self, met: Sequence[Cursor[Fetched]]) -> None:
        """Where ranks that were met just now begin to be shown."""
        request = self._request
        if self._first and request.tail is not None:
            for cursor in met:
                cursor.offset = await self._tail(cursor, request.tail)
        elif request.since is not None:
            for cursor in met:
                cursor.offset = cursor.pieces.since(request.since)

    async def _tail(self, cursor: Cursor[Fetched], lines: int) -> int:
        """The offset at which the last ``lines`` lines begin, read from the end."""
        end = stop = cursor.pieces.size
        while stop > 0 and lines > 0:
            begin = max(0, stop - CHUNK)
            [data] = await self._files.read([Want(f"logs/{cursor.name}.out", begin, stop - begin)])
            position = len(data) - 1 if stop == end else len(data)
            while (position := data.rfind(b"\n", 0, max(0, position))) >= 0:
                lines -= 1
                if lines == 0:
                    return begin + position + 1
            stop = begin
        return stop

    async def _lines(self, *, last: bool) -> AsyncIterator[tuple[str, bytes, float]]:
        """(rank, line, time), merged by time over all ranks."""
        live = list(self._cursors.values())
        while live:
            if needy := [cursor for cursor in live if not cursor.lines]:
                for cursor in await self._fill(needy):
                    if last:
                        cursor.finish()
                    if not cursor.lines:
                        live.remove(cursor)
                if not live:
                    return
            first = min(live, key=lambda cursor: cursor.lines[0][0]) if len(live) > 1 else live[0]
            at, line = first.lines.popleft()
            yield first.name, line, at

    async def _fill(self, needy: list[Cursor[Fetched]]) -> list[Cursor[Fetched]]:
        """Fetch for each until it has a line; those that have none as far as was looked are returned."""
        ended = []
        while needy:
            behind = [cursor for cursor in needy if cursor.offset < cursor.pieces.size]
            ended += [cursor for cursor in needy if cursor.offset >= cursor.pieces.size]
            count = max(1 << 12, min(4 * CHUNK, _ROUND_BYTES // max(1, len(behind))))
            wants = [
                Want(f"logs/{cursor.name}.out", cursor.offset, min(count, cursor.pieces.size - cursor.offset))
                for cursor in behind
            ]
            pieces = await self._files.read(wants) if wants else []
            needy = []
            for cursor, data in zip(behind, pieces, strict=True):
                cursor.pieces.piece = (cursor.offset, data)
                if not cursor.fill():  # cut short by whoever wrote it
                    ended.append(cursor)
                elif not cursor.lines:
                    needy.append(cursor)
                cursor.pieces.piece = (0, b"")
        return ended

    def _timed(self) -> bool:
        return self._many or self._request.timestamps

    def _prefixed(self) -> bool:
        return self._many if self._request.prefix is None else self._request.prefix

    async def close(self) -> None:
        await self._files.close()


def reports(data: bytes, rank: int, changed_at: float, *, whole: bool = True) -> Iterator[dict[str, Any]]:
    """A rank's reports from the text of its file. Their own times count, as far as they are sane."""
    lines = data.splitlines()[0 if whole else 1 :]
    stride = max(1, -(-len(lines) // _POINTS))
    first = (len(lines) - 1) % stride
    for line in (line for n, line in enumerate(lines) if n % stride == first or EVENT in line):
        if (report := parse(line, rank, changed_at)) is not None:
            report["at"] = own_time(line, changed_at)
            yield report
