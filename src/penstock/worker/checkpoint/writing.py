"""Write one shard file: chunk by chunk, each hashed on its way, past the page cache where the file system allows.

Copies into the page cache, not the disk, are what makes large writes slow and disturbs the loop beside them. What is
written is a row of segments (the staging buffer, or the tensors themselves when there is no memory to stage). A chunk
that lies in one aligned segment goes to the disk from where it is; others are gathered in a small buffer first.
"""

from __future__ import annotations

import errno
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from queue import SimpleQueue
from typing import Final

from xxhash import xxh3_128

from penstock.worker.checkpoint.layout import PAGE
from penstock.worker.checkpoint.manifest import File
from penstock.worker.checkpoint.memory import Bytes, aligned, stand_back
from penstock.worker.checkpoint.pacing import Throttle

CHUNK: Final = 4 << 20
_AT_ONCE: Final = 4  # chunks in one write: each return from the disk waits for its turn on a busy processor
_DIRECT: Final = getattr(os, "O_DIRECT", 0)


@dataclass(frozen=True, slots=True)
class Segment:
    """``size`` bytes of the file, which ``get`` yields when it is their turn."""

    size: int
    get: Callable[[], Bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """A file's bytes in order. ``room`` is how much of the last segment's memory may be read beyond ``size``."""

    segments: tuple[Segment, ...]
    twice: bool = True  # whether its bytes can be had a second time, at no cost, to be hashed beside the write

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)


def whole(buffer: Bytes, size: int) -> Source:
    """The first ``size`` bytes of an aligned buffer."""
    return Source((Segment(size, lambda: buffer),))


def spoilt(size: int, error: BaseException) -> Source:
    """Of a copy that failed: writing it fails too, so that the other ranks hear of it as of any other failure."""

    def get() -> Bytes:
        raise RuntimeError("the copy into the staging buffer failed") from error

    return Source((Segment(size, get),))


@dataclass(frozen=True, slots=True)
class Pace:
    niceness: int = 10
    bytes_per_s: float | None = None
    throttle: Throttle | None = None


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
    """One thread writes block after block, as fast as the disk takes them; another hashes what is being written.

    Two that did both would have both processors of a small host at work, where the disk's own side needs one of them.
    """

    def __init__(self, fd: int, source: Source, chunk: int, direct: bool) -> None:
        self.fd = fd
        self.source = source
        self.chunk = chunk
        self.direct = direct
        self.size = source.size
        self.ends = list(accumulate(segment.size for segment in source.segments))
        self.block = chunk * _AT_ONCE
        self.hashes = [""] * -(-self.size // chunk)

    def run(self, pace: Pace) -> list[str]:
        if not self.source.twice:
            self._write_all(pace, self._hash)
            return self.hashes
        blocks: SimpleQueue[int | None] = SimpleQueue()
        with ThreadPoolExecutor(1, "penstock-checkpoint-hash", stand_back, (pace.niceness,)) as pool:
            hashed = pool.submit(self._hash_all, blocks)
            try:
                self._write_all(pace, blocks.put)
            finally:
                blocks.put(None)
            hashed.result()
        return self.hashes

    def _write_all(self, pace: Pace, hash_: Callable[[int], None]) -> None:
        scratch = aligned(min(self.block, self.size))
        began = taken = time.monotonic()
        worked = 0.0
        for start in range(0, self.size, self.block):
            end = min(start + self.block, self.size)
            if pace.throttle is not None:
                pace.throttle.pause(taken, worked, -(-(self.size - start) // self.block))
            if pace.bytes_per_s:
                time.sleep(max(0.0, start / pace.bytes_per_s - (time.monotonic() - began)))
            taken = time.monotonic()
            hash_(start)
            self._write(self._bytes(start, end, scratch), start, end - start)
            worked = time.monotonic() - taken

    def _hash_all(self, blocks: SimpleQueue[int | None]) -> None:
        while (start := blocks.get()) is not None:
            self._hash(start)

    def _hash(self, start: int) -> None:
        for at in range(start, min(start + self.block, self.size), self.chunk):
            made = xxh3_128()
            for piece in self._pieces(at, min(at + self.chunk, self.size)):
                made.update(piece.data)
            self.hashes[at // self.chunk] = made.hexdigest()

    def _pieces(self, start: int, end: int) -> Iterator[Bytes]:
        """These bytes as they lie."""
        index = bisect_right(self.ends, start)
        while start < end:
            segment = self.source.segments[index]
            begin = start - (self.ends[index] - segment.size)
            count = min(segment.size - begin, end - start)
            yield segment.get()[begin : begin + count]
            start, index = start + count, index + 1

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
        for piece in self._pieces(start, end):
            scratch[at : at + len(piece)] = piece
            at += len(piece)
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


def gathered(pieces: Sequence[Bytes]) -> Source:
    """A file made of arrays as they lie in memory."""
    return Source(tuple(Segment(len(piece), lambda piece=piece: piece) for piece in pieces))  # type: ignore[misc]  # mypy does not infer a lambda's default
