"""The kernel's log, record by record (/dev/kmsg): each is read once, over restarts of the agent too.

A record is known by its number, which the kernel counts from its start on; the last that was read is kept on disk with the
boot's id. What the kernel wrote over before it was read (EPIPE) is told of as lost.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable

from penstock.base.text import sanitize
from penstock.telemetry.sources.tree import counter
from penstock.telemetry.spec import Line, Point, Reading

BUFFER = 16384  # a record is at most 8 KiB (PRINTKRB_RECORD_MAX and what stands before it); a smaller one is refused (EINVAL)
MAX_LINES = 2000  # in one reading; the rest comes with the next
MAX_TEXT = 2048
_FACILITIES = ("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp")
_RECORD = re.compile(r"(\d+),(\d+),(\d+),[^;]*;(.*)", re.DOTALL)


class Kmsg:
    """``fileno`` becomes readable when the kernel has written: whoever waits on it need not ask every second."""

    name = "kmsg"

    def __init__(
        self,
        cursor: str | None = None,
        path: str = "/dev/kmsg",
        boot_id: str = "",
        every_s: float = 1.0,
        monotonic: Callable[[], float] = time.monotonic,
        read: Callable[[int, int], bytes] = os.read,
    ) -> None:
        self._read = read
        self.every_s = every_s
        self._path = path
        self._cursor = cursor
        self._boot_id = boot_id
        self._monotonic = monotonic
        self._fd = -1
        self._carry = b""
        self._last, self._problem = self._kept()
        self._written = self._last
        self._lost = 0

    def fileno(self) -> int:
        """-1 while it cannot be opened."""
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                self._problem = f"{self._path}: {error.strerror}"
        return self._fd

    def read(self, now: float) -> Reading:
        problem, self._problem = self._problem, ""
        started = now - self._monotonic()
        lines: list[Line] = []
        if self.fileno() < 0:
            return Reading(self.name, now, problem=self._problem)
        while len(lines) < MAX_LINES:
            try:
                chunk = self._read(self._fd, BUFFER)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EPIPE:  # the next read begins with the oldest record that there still is
                    self._lost += 1
                    problem = "the kernel's log was written faster than it was read: records are lost"
                    continue
                problem = f"{self._path}: {error.strerror}"
                break
            if not chunk:
                break
            lines += [line for record in self._records(chunk) if (line := self._line(record, started)) is not None]
        self._keep()
        return Reading(self.name, now, self._points(), tuple(lines), problem)

    def close(self) -> None:
        self._keep()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _points(self) -> tuple[Point, ...]:
        return tuple(counter("penstock_kmsg_overruns_total", float(self._lost)))

    def _records(self, chunk: bytes) -> list[str]:
        """Whole records; of a file's, also those that lie across two chunks. Lines that begin with a blank belong to the one before."""
        text = self._carry + chunk
        whole, end, self._carry = text.rpartition(b"\n")
        if not end and len(self._carry) > BUFFER:
            self._carry = b""
        records: list[str] = []
        for line in whole.decode("utf-8", "replace").split("\n"):
            if line.startswith(" ") and records:
                continue  # SUBSYSTEM=pci, DEVICE=+pci:0000:1b:00.0: the text names its device itself
            records.append(line)
        return records

    def _line(self, record: str, started: float) -> Line | None:
        match = _RECORD.fullmatch(record)
        if match is None:
            return None
        priority, sequence, micros = int(match[1]), int(match[2]), int(match[3])
        if sequence <= self._last:
            return None
        self._last = sequence
        facility = priority >> 3
        return Line(
            at=started + micros / 1e6,
            text=sanitize(_unescaped(match[4])).replace("\n", " ")[:MAX_TEXT],
            key=f"{self._boot_id}/{sequence}",
            facility=_FACILITIES[facility] if facility < len(_FACILITIES) else str(facility),
            severity=priority & 7,
        )

    def _kept(self) -> tuple[int, str]:
        """The number of the last record that was read in this boot; -1 where none was."""
        if self._cursor is None:
            return -1, ""
        try:
            with open(self._cursor, encoding="utf-8") as file:
                kept = json.load(file)
            return (int(kept["sequence"]) if kept["boot_id"] == self._boot_id else -1), ""
        except FileNotFoundError:
            return -1, ""
        except (OSError, ValueError, TypeError, KeyError) as error:
            return -1, f"{self._cursor} cannot be read ({error}): the log is read from its beginning"

    def _keep(self) -> None:
        if self._cursor is None or self._last == self._written:
            return
        new = f"{self._cursor}.new"
        try:
            with open(new, "w", encoding="utf-8") as file:
                json.dump({"boot_id": self._boot_id, "sequence": self._last}, file)
            os.replace(new, self._cursor)
            self._written = self._last
        except OSError as error:
            self._problem = f"{self._cursor}: {error.strerror}"


def _unescaped(text: str) -> str:
    r"""The kernel writes what is not printable as ``\x1b``."""
    return re.sub(r"\\x([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), text)
