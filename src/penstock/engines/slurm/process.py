"""Commands on this machine, to their end or as streams: what every transport is made of."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Mapping, Sequence

from penstock.engines.slurm.spec import Completed

_CHUNK = 1 << 16
_LEAVE_S = 3.0  # between asking a process to end and ending it


async def completed(
    argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float, env: Mapping[str, str] | None = None
) -> Completed:
    """Raises TimeoutError, and then the command is ended; OSError when it cannot be started."""
    pipe = asyncio.subprocess.PIPE
    fed = pipe if stdin else asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=fed, stdout=pipe, stderr=pipe, env=env, start_new_session=True, cwd="/"
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(timeout_s):
            _, out, err = await asyncio.gather(_feed(process, stdin), process.stdout.read(), process.stderr.read())
            await process.wait()
    except BaseException:
        _signal(process, signal.SIGKILL)
        await process.wait()
        raise
    return Completed(process.returncode or 0, out, err)


async def _feed(process: asyncio.subprocess.Process, data: bytes) -> None:
    """One that ended without reading it all is no error of ours; uvloop says it by RuntimeError."""
    if process.stdin is None:
        return
    with contextlib.suppress(OSError, RuntimeError):
        process.stdin.write(data)
        await process.stdin.drain()
    with contextlib.suppress(OSError, RuntimeError):
        process.stdin.close()


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
                await self._ready(writing=False)
            except OSError:  # EIO: the last process of the terminal is gone
                return None
        return None

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and self._master >= 0:
            try:
                view = view[os.write(self._master, view) :]
            except BlockingIOError:
                await self._ready(writing=True)

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

    async def _ready(self, *, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
        add(self._master, _settle, done)
        try:
            await done
        finally:
            remove(self._master)


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


def _signal(process: asyncio.subprocess.Process, number: int) -> None:
    """To it and all that it started."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
