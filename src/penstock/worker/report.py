"""One line of progress from a training script to whoever watches the job.

``report`` costs some microseconds, never waits and never raises: when nobody reads, or the pipe is full, the line is
dropped. Outside a job it does nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import stat
import threading
import time
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, SupportsFloat

from penstock.worker.contract import current

WATCH: Final = ("steps", "counters", "watched")  # events of watch.py: many, and kept apart from the others
LINE_LIMIT: Final = 4096  # bytes: PIPE_BUF on Linux (pipe(7)); writes up to it are never mixed with other ranks' lines
BESIDE_BYTES: Final = 1 << 19
_PR_SET_PTRACER: Final = 0x59616D61  # prctl(2); of the kernel's Yama
_METRICS_LIMIT: Final = 64
_NAME_LIMIT: Final = 64  # characters
_TEXT_LIMIT: Final = 512  # characters of an event's texts


def report(step: SupportsFloat | None = None, total_steps: SupportsFloat | None = None, **metrics: Any) -> None:
    """Say how far the training is: ``report(step=30, total_steps=100, loss=0.31)``.

    Values may be numbers or anything with ``.item()`` (NumPy and torch scalars); others are left out. A value that is
    not finite is sent as null, since JSON has no NaN.
    """
    found = channel()
    if found is not None:
        found.send(step, total_steps, metrics)


def tell(event: str, data: Mapping[str, Any]) -> None:
    """Say that something happened, beside the steps: a checkpoint was saved. ``data`` is plain; what is too long is cut."""
    found = channel()
    if found is not None:
        line = event_line(time.time(), found.rank, event, data)
        if event in WATCH and found.beside is not None:
            found.beside.write(line)
        else:
            found.write(line)


class Channel:
    """The writing end of the job's report pipe."""

    def __init__(self, fd: int, rank: int) -> None:
        self.fd = fd
        self.rank = rank
        self.dropped = 0
        self.beside = _beside(fd, rank)
        self.last: tuple[Any, float | None] = (None, None)  # the step and the loss that the script reported last

    def send(self, step: Any, total_steps: Any, metrics: dict[str, Any]) -> None:
        self.last = (step, _number(metrics["loss"]) if "loss" in metrics else None)
        self.write(_line(time.time(), self.rank, step, total_steps, metrics))

    def write(self, line: bytes) -> None:
        try:
            # Asked first, so that a reader's end raises no SIGPIPE in scripts that have restored its default action. Each
            # time anew: one such object is of one thread, and a lock might be held while a loader's worker is forked.
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            if poll.poll(0) == [(self.fd, select.POLLOUT)]:
                os.write(self.fd, line)
                return
        except (OSError, ValueError):  # closed, or filled by another thread in between
            pass
        self.dropped += 1


class Beside:
    """Where reports are a file that nobody shortens: the newest that ``watch`` says, in ``watch/<rank>`` beside ``progress/``
    and what was there before in ``watch/<rank>.old``.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._size = 0
        self._fd = -1
        self._lock = threading.Lock()

    def write(self, line: bytes) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._fd < 0:
                os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                self._size = os.fstat(self._fd).st_size
            self._size += os.write(self._fd, line)
            if self._size > BESIDE_BYTES:
                os.close(self._fd)
                self._fd = -1
                os.replace(self._path, self._path + ".old")


def _beside(fd: int, rank: int) -> Beside | None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return None
    folder = os.path.dirname(os.path.dirname(_path(fd)))
    return Beside(f"{folder}/watch/{rank}")


def open_channel(fd: int | None, rank: int) -> Channel | None:
    """A non-blocking writer to ``fd``; None where that is neither a pipe nor a file of this rank's reports.

    A number can outlive its pipe: launchers close what they do not know, and the number may then be anything.
    """
    if fd is None or fd < 0:
        return None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISFIFO(mode) and not (stat.S_ISREG(mode) and _path(fd).endswith(f"/progress/{rank}")):
            return None
    except OSError:
        return None
    try:
        # Opened anew: O_NONBLOCK belongs to the open pipe, which others (`echo ... >&$PENSTOCK_REPORT_FD`) share.
        return Channel(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC), rank)
    except OSError:
        pass
    try:
        os.set_blocking(fd, False)
    except OSError:
        return None
    return Channel(fd, rank)


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _let_look(scope: str = "/proc/sys/kernel/yama/ptrace_scope") -> bool:
    """Where a process is shown to its ancestors alone: allow its user's others to see it, so that py-spy can say where it hangs."""
    try:
        with open(scope, "rb") as file:
            if file.read(1) != b"1":
                return False
        import ctypes  # noqa: PLC0415 - 10 ms that most do not need

        return bool(ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0) == 0)
    except (OSError, ImportError, AttributeError):
        return False


@cache
def channel() -> Channel | None:
    contract = current()
    if contract.report_fd is not None:
        _let_look()
    return open_channel(contract.report_fd, contract.rank)


def _line(at: float, rank: int, step: Any, total_steps: Any, metrics: dict[str, Any]) -> bytes:
    body: dict[str, Any] = {"at": round(at, 3), "rank": rank}
    for name, value in (("step", step), ("total_steps", total_steps)):
        number = _number(value)
        if number is not None and math.isfinite(number):
            body[name] = int(number)
    values = [(name[:_NAME_LIMIT], _number(value)) for name, value in list(metrics.items())[:_METRICS_LIMIT]]
    while True:
        body["metrics"] = {n: v if math.isfinite(v) else None for n, v in values if v is not None}
        line = json.dumps(body, separators=(",", ":")).encode() + b"\n"
        if len(line) <= LINE_LIMIT:
            return line
        values = values[: len(values) // 2]


def event_line(at: float, rank: int, event: str, data: Mapping[str, Any]) -> bytes:
    """``{"at","rank","event","data"}``; texts are cut until all of it fits."""
    limit = _TEXT_LIMIT
    while True:
        kept = {name: _cut(value, limit) for name, value in data.items()}
        body = {"at": round(at, 3), "rank": rank, "event": event, "data": kept}
        line = json.dumps(body, separators=(",", ":")).encode() + b"\n"
        if len(line) <= LINE_LIMIT or limit == 0:
            return line if len(line) <= LINE_LIMIT else b""
        limit //= 2


def _cut(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return value[:limit]
    if isinstance(value, list | tuple):
        return [_cut(each, limit) for each in value[: limit // 16]]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _number(value: Any) -> float | int | None:
    """A plain number, or None for what is none. An int beyond 64 bits becomes a float, which any reader takes."""
    kind = type(value)
    if kind is not float and kind is not int:
        try:
            value = value.item() if hasattr(value, "item") else value
            value = int(value) if isinstance(value, int) else float(value) if hasattr(value, "__float__") else None
        except (TypeError, ValueError, RuntimeError, OverflowError):
            return None
    if type(value) is int and not -(2**63) <= value < 2**63:
        return math.inf if value.bit_length() > 1023 else float(value)
    return value if isinstance(value, int | float) else None
