"""Frames on their way to the spawner: sent at once when they fit, else kept and sent when there is room."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable

_LENGTH = struct.Struct(">I")


class Outbox:
    """Never blocks the event loop. ``lost`` is called once when the other end is gone."""

    def __init__(self, channel: socket.socket, lost: Callable[[], None]) -> None:
        self._channel = channel
        self._lost = lost
        self._waiting = bytearray()
        self._loop = asyncio.get_running_loop()
        channel.setblocking(False)
        self._loop.add_reader(channel, self._hear)

    def send(self, frame: bytes) -> None:
        self._waiting += _LENGTH.pack(len(frame)) + frame
        if len(self._waiting) == _LENGTH.size + len(frame):
            self._flush()

    def _flush(self) -> None:
        """Send what fits; the rest when the socket has room."""
        try:
            while self._waiting:
                del self._waiting[: self._channel.send(self._waiting[: 1 << 20])]
        except BlockingIOError:
            self._loop.add_writer(self._channel, self._flush)
            return
        except OSError:  # its reader's end tells _hear too
            self._waiting.clear()
        self._loop.remove_writer(self._channel)

    def _hear(self) -> None:
        """The spawner never speaks: readable means that it is gone."""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            if self._channel.recv(1):
                return
            self._forget()
            self._lost()
            return
        self._forget()
        self._lost()

    def _forget(self) -> None:
        self._loop.remove_reader(self._channel)
        self._loop.remove_writer(self._channel)
        self._channel.close()

    async def close(self) -> None:
        """Send what waits (a second at most), then let the spawner end."""
        deadline = self._loop.time() + 1.0
        while self._waiting and self._loop.time() < deadline:
            await asyncio.sleep(0.01)
        self._forget()
