"""Write one shard file: chunk by chunk, each hashed on its way, past the page cache where the file system allows.

Copies into the page cache, not the disk, are what makes large writes slow and disturbs the loop beside them. What is
written is a row of segments (the staging buffer, or the tensors themselves when there is no memory to stage). A chunk
that lies in one aligned segment goes to the disk from where it is; others are gathered in a small buffer first.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from xxhash import xxh3_128_hexdigest

from penstock.worker.checkpoint.layout import PAGE
from penstock.worker.checkpoint.manifest import File
from penstock.worker.checkpoint.memory import Bytes, aligned, stand_back

CHUNK: Final = 4 << 20
_AT_ONCE: Final = 4  # chunks in one write: each return from the disk waits for its turn on a busy processor
_DIRECT: Final = getattr(os, "O_DIRECT", 0)


class Staged:
    """How many bytes of a buffer are in place. The copy moves it on, the writer follows it."""

    def __init__(self) -> None:
        self._reached = 0
        self._wanted = 0  # by who waits for the least: the copy wakes nobody before it is there
        self._error: BaseException | None = None
        self._change = threading.Condition()
        self.complete = False

    def reach(self, size: int, *, complete: bool = False) -> None:
        self._reached = size
        self.complete = complete
        if size >= self._wanted:
            with self._change:
                self._change.notify_all()

    def fail(self, error: BaseException) -> None:
        with self._change:
            self._error = error
            self._change.notify_all()

    def wait(self, size: int) -> None:
        with self._change:
            while self._reached < size and self._error is None:
                self._wanted = min(self._wanted, size) if self._wanted > self._reached else size
                self._change.wait(0.02)  # the copy may have passed by while this was written down
            if self._error is not None:
                raise RuntimeError("the copy into the staging buffer failed") from self._error


@dataclass(frozen=True, slots=True)
class Segment:
    """``size`` bytes of the file, which ``get`` yields when it is their turn."""

    size: int
    get: Callable[[], Bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """A file's bytes in order. ``room`` is how much of the last segment's memory may be read beyond ``size``."""

    segments: tuple[Segment, ...]
    staged: Staged | None = None
    lanes: int = 2  # chunks in flight: one is hashed while another is on its way to the disk

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)


def whole(buffer: Bytes, size: int, staged: Staged | None = None) -> Source:
    """The first ``size`` bytes of an aligned buffer."""
    return Source((Segment(size, lambda: buffer),), staged)


@dataclass(frozen=True, slots=True)
class Pace:
    niceness: int = 10
    bytes_per_s: float | None = None


def write_shard(path: str, source: Source, chunk: int = CHUNK, pace: Pace = Pace()) -> File:
    """Write, and make durable, the file ``path``; answers its size and hashes. Raises OSError."""
    size = source.size
    _check_space(os.path.dirname(path), size)
    fd, direct = _open(path)
    try:
        job = _Job(fd, source, chunk, direct)
        hashes = job.run(pace)
        if direct:
            os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)
    return File(os.path.basename(path), size, chunk, "".join(hashes))


class _Job:
    def __init__(self, fd: int, source: Source, chunk: int, direct: bool) -> None:
        self.fd = fd
        self.source = source
        self.chunk = chunk
        self.direct = direct
        self.size = source.size
        self.ends = list(accumulate(segment.size for segment in source.segments))
        self.block = chunk * _AT_ONCE
        self.hashes = [""] * -(-self.size // chunk)
        self.next = 0
        self.began = time.monotonic()
        self.turn = threading.Lock()
        self.failed = False

    def run(self, pace: Pace) -> list[str]:
        lanes = max(1, min(self.source.lanes, -(-self.size // self.block)))
        if lanes == 1:
            self._lane(pace, own_thread=False)
            return self.hashes
        with ThreadPoolExecutor(lanes - 1, thread_name_prefix="penstock-checkpoint") as pool:
            others = [pool.submit(self._lane, pace, True) for _ in range(lanes - 1)]
            self._lane(pace, own_thread=False)
            for other in others:
                other.result()
        return self.hashes

    def _lane(self, pace: Pace, own_thread: bool) -> None:
        if own_thread:
            stand_back(pace.niceness)
        scratch = aligned(min(self.block, self.size))
        staged, later = self.source.staged, []
        try:
            while (start := self._take(pace)) is not None:
                end = min(start + self.block, self.size)
                if staged is not None:
                    staged.wait(end)
                data = self._bytes(start, end, scratch)
                # While the loop still waits for its copy, the processor is the copy's: these are hashed after it.
                if staged is not None and not staged.complete:
                    later.append(start)
                else:
                    self._hash(data, start, end)
                self._write(data, start, end - start)
            for start in later:
                end = min(start + self.block, self.size)
                self._hash(self._bytes(start, end, scratch), start, end)
        except BaseException:
            self.failed = True
            raise

    def _hash(self, data: Bytes, start: int, end: int) -> None:
        for at in range(start, end, self.chunk):
            chunk = data[at - start : min(at + self.chunk, end) - start]
            self.hashes[at // self.chunk] = xxh3_128_hexdigest(chunk.data)

    def _take(self, pace: Pace) -> int | None:
        with self.turn:
            if self.failed or self.next >= self.size:
                return None
            start, self.next = self.next, self.next + self.block
            if pace.bytes_per_s:
                ahead = start / pace.bytes_per_s - (time.monotonic() - self.began)
                if ahead > 0:
                    time.sleep(ahead)
            return start

    def _bytes(self, start: int, end: int, scratch: Bytes) -> Bytes:
        """These bytes, followed by enough memory to fill its last page."""
        first = bisect_right(self.ends, start)
        segment = self.source.segments[first]
        begin = start - (self.ends[first] - segment.size)
        padded = -(-(end - start) // PAGE) * PAGE
        if end <= self.ends[first]:
            data = segment.get()
            if (data.ctypes.data + begin) % PAGE == 0 and begin + padded <= len(data):
                return data[begin : begin + padded]
        at = 0
        while start + at < end:
            segment = self.source.segments[first]
            begin = start + at - (self.ends[first] - segment.size)
            count = min(segment.size - begin, end - start - at)
            scratch[at : at + count] = segment.get()[begin : begin + count]
            at += count
            first += 1
        return scratch[:padded]

    def _write(self, data: Bytes, start: int, size: int) -> None:
        view = data.data[: len(data) if self.direct else size]
        while view:
            try:
                written = os.pwrite(self.fd, view, start)
            except OSError as error:
                if error.errno != errno.EINVAL or not self.direct:
                    raise
                self._leave_direct()
                view = view[: len(view) - (len(data) - size)]
                continue
            view, start = view[written:], start + written

    def _leave_direct(self) -> None:
        """The file system took O_DIRECT when it opened the file, but does not write so."""
        other = os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(other, self.fd)
        os.close(other)
        self.direct = False


def _open(path: str) -> tuple[int, bool]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    if _DIRECT:
        try:
            return os.open(path, flags | _DIRECT, 0o644), True
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                raise
            try:
                os.unlink(path)  # some file systems create the file, and then refuse the flag
            except FileNotFoundError:
                pass
    return os.open(path, flags, 0o644), False


def _check_space(folder: str, size: int) -> None:
    """Fail before anything is written where the file system says that it will not fit."""
    there = os.statvfs(folder)
    if there.f_blocks and there.f_bavail * there.f_frsize < size:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} ({size} bytes are needed)", folder)


def write_small(path: str, data: bytes) -> None:
    """A small file, whole and durable, or not there."""
    beside = f"{path}.new"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(beside, path)


def sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def gathered(pieces: Sequence[Bytes], lanes: int = 2) -> Source:
    """A file made of arrays as they lie in memory."""
    return Source(tuple(Segment(len(piece), lambda piece=piece: piece) for piece in pieces), None, lanes)  # type: ignore[misc]  # mypy does not infer a lambda's default
