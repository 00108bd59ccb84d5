"""What a rank writes, on disk: the first bytes and the newest, each in segments named by their offset in the whole.

``logs/<rank>/<start offset>.log`` holds bytes, the ``.idx`` beside it rows of (epoch seconds, offset): the byte at that
offset was seen at that time. What lies between two segments was dropped; a reader shows the gap. Bytes go from pipe
to page cache by splice(2) where the file system can, so that a flood costs no Python.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from collections import deque
from collections.abc import Callable

ROW = struct.Struct("<dQ")
CHUNK = 1 << 16  # a pipe's default capacity
_SEGMENTS = 8  # the newest part is kept in this many pieces, so that at least 7/8 of it is there
_ROW_EVERY_S = 0.01
_RETRY_DISK_S = 1.0


class LogWriter:
    """Writes one rank's stream. ``offset`` counts every byte seen, ``dropped`` those lost to a full disk."""

    def __init__(
        self, folder: str, first_bytes: int, newest_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self.folder = folder
        self.offset = 0
        self.dropped = 0
        self._first = max(1, first_bytes)
        self._newest = max(_SEGMENTS, newest_bytes)
        self._clock = clock
        self._log = self._idx = -1
        self._end = 0  # where the open segment is full
        self._kept: deque[tuple[int, int]] = deque()  # (start, capacity) of the newest part's segments
        self._row_at = 0.0
        self._blocked_until = 0.0
        self._splice = True

    def pump(self, pipe: int, limit: int = 16 * CHUNK) -> int | None:
        """Move what is in the (non-blocking) pipe, up to ``limit`` bytes. None at its end, else the bytes moved."""
        moved = 0
        while moved < limit:
            try:
                count = self._move(pipe)
            except BlockingIOError:
                return moved
            if count == 0:
                return None
            moved += count
        return moved

    def write(self, data: bytes) -> None:
        """Append bytes that are already here."""
        view = memoryview(data)
        while view:
            room = self._room()
            if room <= 0:
                self._lose(len(view))
                return
            try:
                count = os.write(self._log, view[:room])
            except OSError as error:
                self._refuse(error)
                continue
            self._advance(count)
            view = view[count:]

    def close(self) -> None:
        for fd in (self._log, self._idx):
            if fd >= 0:
                os.close(fd)
        self._log = self._idx = -1

    def _move(self, pipe: int) -> int:
        if self.offset == 0:  # a rank that never writes anything gets no file
            data = os.read(pipe, CHUNK)
            self.write(data)
            return len(data)
        room = self._room()
        if room > 0 and self._splice:
            try:
                count = os.splice(pipe, self._log, min(room, CHUNK))
            except BlockingIOError:
                raise
            except OSError as error:
                if error.errno != errno.EINVAL:
                    self._refuse(error)
                    return self._move(pipe)
                self._splice = False  # this file system cannot
            else:
                self._advance(count)
                return count
        data = os.read(pipe, CHUNK)
        self.write(data)
        return len(data)

    def _advance(self, count: int) -> None:
        if not count:
            return
        now = self._clock()
        if not 0 <= now - self._row_at < _ROW_EVERY_S:
            self._row_at = now
            with contextlib.suppress(OSError):
                os.write(self._idx, ROW.pack(now, self.offset))
        self.offset += count

    def _lose(self, count: int) -> None:
        self.offset += count
        self.dropped += count

    def _refuse(self, error: OSError) -> None:
        """The disk is full (or worse): drop for a while, so that the job goes on, and then try a new segment."""
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EIO,
            errno.EFBIG,
            errno.EMFILE,
            errno.ENFILE,
            errno.EROFS,
        ):
            raise error
        self.close()
        self._end = 0
        self._blocked_until = time.monotonic() + _RETRY_DISK_S

    def _room(self) -> int:
        """Bytes that the open segment still takes; opens the next one when it is full. 0 while the disk is full."""
        if self.offset < self._end:
            return self._end - self.offset
        if self._blocked_until and time.monotonic() < self._blocked_until:
            return 0
        self.close()
        try:
            self._open_segment()
        except FileNotFoundError:  # somebody removed the job's folder
            self._blocked_until = time.monotonic() + _RETRY_DISK_S
            return 0
        except OSError as error:
            self._refuse(error)
            return 0
        self._blocked_until = 0.0
        return self._end - self.offset

    def _open_segment(self) -> None:
        if self.offset == 0:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
        if self.offset < self._first:
            capacity = self._first - self.offset
        else:
            capacity = self._newest // _SEGMENTS
            while self._kept and sum(size for _, size in self._kept) + capacity > self._newest:
                self._forget(self._kept.popleft()[0])
            self._kept.append((self.offset, capacity))
        self._log = self._create(".log")
        self._idx = self._create(".idx")
        self._end = self.offset + capacity
        self._row_at = 0.0

    def _create(self, suffix: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        return os.open(f"{self.folder}/{self.offset:020d}{suffix}", flags, 0o600)

    def _forget(self, start: int) -> None:
        for suffix in (".log", ".idx"):
            with contextlib.suppress(OSError):
                os.unlink(f"{self.folder}/{start:020d}{suffix}")
