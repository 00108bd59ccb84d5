"""The server's end of a supervisor's ``control.sock``: requests, answers, and the descriptors that come with them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from typing import Any

from penstock.base.errors import EngineFailure
from penstock.engines.local.folder import CONTROL

_ANSWER_S = 15.0  # a supervisor answers in microseconds; one that is stopped by a debugger does not


class Link:
    """One connection to a supervisor."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._data = b""
        self._fds: list[int] = []

    @classmethod
    def connect(cls, run_dir: str) -> Link | None:
        """None when nobody listens there. By the folder's descriptor: a socket's path is limited to 107 bytes."""
        try:
            folder = os.open(run_dir, os.O_PATH | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(f"/proc/self/fd/{folder}/{CONTROL}")
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            sock.close()
            return None
        finally:
            os.close(folder)
        return cls(sock)

    def tell(self, request: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send without waiting for an answer. Raises OSError when the supervisor is gone."""
        data = json.dumps(request).encode() + b"\n"
        if fds:
            socket.send_fds(self._sock, [data], fds)
            return
        self._sock.settimeout(5)  # only a command line of many kilobytes could wait at all
        self._sock.sendall(data)
        self._sock.setblocking(False)

    async def ask(self, request: dict[str, Any], fds: tuple[int, ...] = ()) -> tuple[dict[str, Any], list[int]]:
        """The answer and its descriptors. Raises EngineFailure when there is none."""
        try:
            self.tell(request, fds)
            answer = await asyncio.wait_for(self.line(), _ANSWER_S)
        except (OSError, TimeoutError) as error:
            raise EngineFailure(f"the job's supervisor does not answer: {str(error) or 'time-out'}") from error
        if answer is None:
            raise EngineFailure("the job ended before its supervisor could answer")
        taken, self._fds = self._fds, []
        return answer, taken

    async def line(self) -> dict[str, Any] | None:
        """The next line; None at the end."""
        while b"\n" not in self._data:
            await self._readable()
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, 1 << 16, 4)
            except BlockingIOError:
                continue
            except ConnectionError:
                return None
            if not data:
                return None
            self._data += data
            self._fds += fds
        line, _, self._data = self._data.partition(b"\n")
        answer = json.loads(line)
        return answer if isinstance(answer, dict) else {}

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._sock, settle, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self._sock)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        with contextlib.suppress(OSError):
            self._sock.close()


def settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
