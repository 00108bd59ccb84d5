"""Commands on this machine, to their end or as streams: what every transport is made of."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from typing import IO

from penstock.engines.slurm.spec import Completed

_CHUNK = 1 << 16
_FIRST_LOOK_S, _LAST_LOOK_S = 0.001, 0.05  # whether a command that has said all is over
_LEAVE_S = 3.0  # between asking a process to end and ending it


async def completed(
    argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float, env: Mapping[str, str] | None = None
) -> Completed:
    """Raises TimeoutError, and then the command is ended; OSError when it cannot be started.

    By subprocess, which starts it by vfork: the loop's own way forks the whole server, whose pages are then copied on both
    sides as they are written, and that is ten times the CPU.
    """
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    fed = pipe if stdin else nothing
    process = subprocess.Popen(  # noqa: ASYNC220 - it returns as soon as the command is begun
        argv, stdin=fed, stdout=pipe, stderr=pipe, env=env, start_new_session=True, cwd="/", bufsize=0
    )
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.fileno(), process.stderr.fileno()
    try:
        async with asyncio.timeout(timeout_s):
            _, said, complained = await asyncio.gather(_feed(process.stdin, stdin), _all(out), _all(err))
            return Completed(await _over(process), said, complained)
    except BaseException:
        _signal(process, signal.SIGKILL)
        await _over(process)
        raise
    finally:
        for end in (process.stdin, process.stdout, process.stderr):
            if end is not None:
                end.close()


async def _feed(into: IO[bytes] | None, data: bytes) -> None:
    """One that ended without reading it all is no error of ours."""
    if into is None:
        return
    fd, view = into.fileno(), memoryview(data)
    os.set_blocking(fd, False)
    with contextlib.suppress(OSError):
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                await _ready(fd, writing=True)
    into.close()


async def _all(fd: int) -> bytes:
    os.set_blocking(fd, False)
    pieces = list[bytes]()
    while True:
        try:
            piece = os.read(fd, _CHUNK)
        except BlockingIOError:
            await _ready(fd, writing=False)
            continue
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


async def _over(process: subprocess.Popen[bytes]) -> int:
    """Its status, once it has closed its pipes: that comes a moment before its end. (Not every kernel has pidfd_open.)"""
    pause = _FIRST_LOOK_S
    while (code := process.poll()) is None:
        await asyncio.sleep(pause)
        pause = min(_LAST_LOOK_S, pause * 2)
    return code


class PipeStream:
    """A command behind two pipes; what it says on standard error comes with the rest."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def open(cls, argv: Sequence[str], env: Mapping[str, str] | None = None) -> PipeStream:
        pipe = asyncio.subprocess.PIPE
        return cls(
            await asyncio.create_subprocess_exec(
                *argv,
                stdin=pipe,
                stdout=pipe,
                stderr=asyncio.subprocess.STDOUT,
                env=env,
                start_new_session=True,
                cwd="/",
            )
        )

    async def read(self) -> bytes | None:
        assert self._process.stdout is not None
        return await self._process.stdout.read(_CHUNK) or None

    async def write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        await self._process.stdin.drain()

    async def close_input(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def resize(self, cols: int, rows: int) -> None:
        return

    async def wait(self) -> int:
        return await _code(self._process)

    async def close(self) -> None:
        await self.close_input()
        await _end(self._process)


class TtyStream:
    """A command at a terminal of its own, whose other end we hold."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self._process = process
        self._master = master
        os.set_blocking(master, False)

    @classmethod
    async def open(cls, argv: Sequence[str], size: tuple[int, int], env: Mapping[str, str] | None = None) -> TtyStream:
        """``size``: columns, rows."""
        master, slave = os.openpty()
        try:
            _set_size(master, *size)
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True, cwd="/"
            )
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        return cls(process, master)

    async def read(self) -> bytes | None:
        while self._master >= 0:
            try:
                return os.read(self._master, _CHUNK) or None
            except BlockingIOError:
                await _ready(self._master, writing=False)
            except OSError:  # EIO: the last process of the terminal is gone
                return None
        return None

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self._master >= 0:
            try:
                view = view[os.write(self._master, view) :]
            except BlockingIOError:
                await _ready(self._master, writing=True)

    async def close_input(self) -> None:
        await self.write(b"\x04")

    async def resize(self, cols: int, rows: int) -> None:
        if self._master >= 0:
            _set_size(self._master, cols, rows)
            _signal(self._process, signal.SIGWINCH)  # it has no controlling terminal that would do so

    async def wait(self) -> int:
        return await _code(self._process)

    async def close(self) -> None:
        _signal(self._process, signal.SIGHUP)
        await _end(self._process)
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


async def _ready(fd: int, *, writing: bool) -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    add(fd, _settle, done)
    try:
        await done
    finally:
        remove(fd)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _set_size(fd: int, cols: int, rows: int) -> None:
    limit = 10_000
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", max(1, min(rows, limit)), max(1, min(cols, limit)), 0, 0))


async def _code(process: asyncio.subprocess.Process) -> int:
    """128 + N when signal N ended it, as shells say it."""
    code = await process.wait()
    return code if code >= 0 else 128 - code


async def _end(process: asyncio.subprocess.Process) -> None:
    _signal(process, signal.SIGTERM)
    try:
        async with asyncio.timeout(_LEAVE_S):
            await process.wait()
    except TimeoutError:
        _signal(process, signal.SIGKILL)
        await process.wait()


def _signal(process: asyncio.subprocess.Process | subprocess.Popen[bytes], number: int) -> None:
    """To it and all that it started."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
