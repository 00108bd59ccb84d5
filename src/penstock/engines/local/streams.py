"""The supervisor's reading ends: output pipes into log files, report pipes into progress."""

from __future__ import annotations

import os
import time

from penstock.engines.local.logwriter import LogWriter
from penstock.engines.local.loop import Loop
from penstock.engines.local.reports import Progress

# More than any training prints, less than what would keep a disk from committing: beyond it the job waits.
RATE_BYTES_S = 64 << 20
_PAUSE_S = 0.05
_REPORT_PAUSE_S = 0.02
_REPORT_READ = 1 << 16
_PIPE_READS = 4  # take all that was in a pipe of the usual size


class Output:
    """One rank's (or launcher's) stdout and stderr on their way to its log."""

    def __init__(self, loop: Loop, fd: int, writer: LogWriter) -> None:
        self.writer = writer
        self.last_at = time.monotonic()
        self._loop = loop
        self._fd = fd
        self._budget = float(RATE_BYTES_S)
        loop.watch(fd, self._ready)

    def _ready(self) -> None:
        now = time.monotonic()
        self._budget = min(RATE_BYTES_S, self._budget + (now - self.last_at) * RATE_BYTES_S)
        self.last_at = now
        moved = self.writer.pump(self._fd)
        if moved is None:
            self._loop.forget(self._fd)
            return
        self._budget -= moved
        if self._budget <= 0:
            self._loop.forget(self._fd)
            self._loop.at(f"log {self._fd}", _PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._loop.watch(self._fd, self._ready)

    def drain(self) -> None:
        """Take what is in the pipe now: of a rank that is dead, all of it, since a pipe holds less than a pump moves."""
        self.writer.pump(self._fd)

    def finish(self) -> None:
        """Take what is still in the pipe; the writers are dead. Bounded by the pipe's capacity."""
        while self.writer.pump(self._fd):
            pass
        self._loop.forget(self._fd)
        os.close(self._fd)
        self.writer.close()


class Reports:
    """One rank's report pipe: lines of JSON, read in batches so that a flood of them costs little."""

    def __init__(self, loop: Loop, fd: int, rank: int, progress: Progress) -> None:
        self._loop = loop
        self._fd = fd
        self._rank = rank
        self._progress = progress
        self._rest = b""
        loop.watch(fd, self._ready)

    def _ready(self) -> None:
        self._loop.forget(self._fd)
        if self._take():
            self._loop.at(f"report {self._fd}", _REPORT_PAUSE_S, self._resume)

    def _resume(self) -> None:
        self._loop.watch(self._fd, self._ready)

    def _take(self) -> bool:
        """One read; False at the end of the pipe."""
        try:
            data = os.read(self._fd, _REPORT_READ)
        except BlockingIOError:
            return True
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest if len(rest) <= _REPORT_READ else b""
        self._progress.take(self._rank, lines)
        return bool(data)

    def drain(self) -> None:
        """Take what is in the pipe now; of a rank that lives and floods it, no more than that."""
        for _ in range(_PIPE_READS):
            before = self._progress.seen
            if not self._take() or before == self._progress.seen:
                return

    def finish(self) -> None:
        os.set_blocking(self._fd, False)
        before = -1
        while before != (before := self._progress.seen) and self._take():
            pass
        self._loop.forget(self._fd)
        os.close(self._fd)
