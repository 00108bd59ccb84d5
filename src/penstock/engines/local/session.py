"""Sessions inside a running allocation: a terminal, a command's pipes, or a connection to one of the job's ports."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import termios
import time

from penstock.base.errors import Conflict, NotFound
from penstock.engines.local.link import Link, settle
from penstock.engines.spec import SessionRequest

_CHUNK = 1 << 16
_TOUCH_EVERY_S = 5.0
_LAST_OUTPUT_S = 1.0  # what a background process of the session may still print after its command has exited


class LocalSession:
    """Reads and writes the descriptors that the supervisor handed over. ``out`` and ``into`` may be the same one."""

    def __init__(self, link: Link, out: int, into: int, *, port: bool, terminal: bool) -> None:
        self._link = link
        self._out = out
        self._into = into
        self._port = port
        self._terminal = terminal
        self._touched_at = time.monotonic()
        self._exit: asyncio.Task[int | None] | None = None
        for fd in {out, into}:
            os.set_blocking(fd, False)
        if not port:
            self._exit = asyncio.create_task(self._exit_code())

    async def receive(self) -> bytes | None:
        """Output as it comes; None at its end."""
        while self._out >= 0:
            try:
                data = os.read(self._out, _CHUNK)
            except BlockingIOError:
                if not await self._wait_readable():
                    return None
                continue
            except OSError:  # EIO: the last process of the terminal is gone
                return None
            self._touch()
            return data or None
        return None

    async def send(self, data: bytes) -> None:
        """Raises BrokenPipeError when nobody reads any more."""
        self._touch()
        view = memoryview(data)
        while view and self._into >= 0:
            try:
                view = view[os.write(self._into, view) :]
            except BlockingIOError:
                await self._ready(self._into, writing=True)

    async def resize(self, cols: int, rows: int) -> None:
        if self._terminal and self._out >= 0:
            size = struct.pack("HHHH", max(1, min(rows, 10_000)), max(1, min(cols, 10_000)), 0, 0)
            fcntl.ioctl(self._out, termios.TIOCSWINSZ, size)

    async def close_input(self) -> None:
        """End of input: EOF typed at a terminal, a closed pipe, a half-closed connection."""
        if self._into < 0:
            return
        if self._terminal:
            await self.send(b"\x04")
        elif self._port:
            with contextlib.suppress(OSError):
                _shut_down(self._into)
        else:
            os.close(self._into)
            self._into = -1

    async def wait(self) -> int | None:
        """The command's exit code (128 + N when signal N ended it); None for a port, or when the job ended first."""
        return None if self._exit is None else await asyncio.shield(self._exit)

    async def close(self) -> None:
        """Hang up: what still runs in the session gets SIGHUP."""
        if self._exit is not None and not self._exit.done():
            self._exit.cancel()
        self._link.close()
        for fd in {self._out, self._into} - {-1}:
            os.close(fd)
        self._out = self._into = -1

    async def _exit_code(self) -> int | None:
        answer = await self._link.line()
        return None if answer is None else int(answer["exit_code"])

    async def _wait_readable(self) -> bool:
        """False when the command has exited and nothing more comes, though a child of it holds the pipe open."""
        if self._exit is None or self._terminal:
            await self._ready(self._out, writing=False)
            return True
        ready = asyncio.ensure_future(self._ready(self._out, writing=False))
        await asyncio.wait({ready, self._exit}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            await asyncio.wait({ready}, timeout=_LAST_OUTPUT_S)
        if ready.done():
            return True
        ready.cancel()
        return False

    async def _ready(self, fd: int, *, writing: bool) -> None:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
        add(fd, settle, done)
        try:
            await done
        finally:
            remove(fd)

    def _touch(self) -> None:
        """Tell the supervisor that somebody is there, for the idle time-out."""
        now = time.monotonic()
        if now - self._touched_at >= _TOUCH_EVERY_S:
            self._touched_at = now
            with contextlib.suppress(OSError):
                self._link.tell({"op": "touch"})


def _shut_down(fd: int) -> None:
    with socket.socket(fileno=os.dup(fd)) as link:
        link.shutdown(socket.SHUT_WR)


async def open_session(run_dir: str, request: SessionRequest) -> LocalSession:
    """Raises NotFound when the attempt does not run or the program is not there, Conflict with the supervisor's reason when it refuses."""
    link = Link.connect(run_dir)
    if link is None:
        raise NotFound("the job is not running: there is nothing to enter")
    try:
        if request.port is not None:
            answer, fds = await link.ask({"op": "port", "port": request.port})
        else:
            words = {"command": list(request.command), "cols": request.cols, "rows": request.rows, "node": request.node}
            answer, fds = await link.ask({"op": "exec", "tty": request.tty, **words})
        if answer.get("missing"):
            raise NotFound(
                str(answer["error"]), hint="Name the program by its path, or enter with `sh` and look for it."
            )
        if "error" in answer:
            raise Conflict(str(answer["error"]), hint="See `penstock describe` for what the job runs and where.")
    except BaseException:
        link.close()
        raise
    into, out = (fds[0], fds[1]) if len(fds) == 2 else (fds[0], fds[0])
    return LocalSession(link, out, into, port=request.port is not None, terminal=request.tty and request.port is None)
