"""The front's end of one executor: started, told a batch, heard, ended.

Everything happens in the event loop by call-back: a batch costs the front one write and one wake-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from penstock.serving.runtimes.onnx.exchange import Reader, Region, aligned, pack
from penstock.serving.runtimes.onnx.tensors import Content, Tensor

KEEP_BYTES = 16 << 20
_MODULE = "penstock.serving.runtimes.onnx.executor"


class Heard(Protocol):
    """Who is told what the executor says; ``gone`` comes once, last."""

    def loaded(self, message: Mapping[str, Any]) -> None: ...
    def refused(self, message: str) -> None: ...
    def answered(self, message: Mapping[str, Any]) -> None: ...
    def gone(self, why: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Start:
    path: str
    threads: int
    warm: tuple[int, ...]
    name: str


class Link:
    """One executor process, from ``start`` to ``close`` or its death."""

    def __init__(self, start: Start, heard: Heard) -> None:
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._reader = Reader()
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._coming = Region.new(f"{start.name}-in")
        self._going = Region.new(f"{start.name}-out")
        options = {
            "path": start.path, "threads": start.threads, "warm": start.warm, "front": os.getpid(),
            "link": theirs.fileno(), "coming": self._coming.fd, "going": self._going.fd,
        }  # fmt: skip
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, json.dumps(options)],
                pass_fds=(theirs.fileno(), self._coming.fd, self._going.fd),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
            )
        except OSError:
            self._free()
            raise
        finally:
            theirs.close()
        self._open = True
        self._loop.add_reader(self._ours.fileno(), self._readable)

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(
        self, inputs: Sequence[Sequence[Content]], shapes: Sequence[tuple[int, ...]], outputs: Sequence[str]
    ) -> None:
        """One batch: for each input the contents of its requests, laid end to end, and the whole's shape."""
        sizes = [sum(map(len, parts)) for parts in inputs]
        offsets, end = aligned(sizes)
        if self._coming.size > KEEP_BYTES and end < KEEP_BYTES // 4:
            self._coming.shrink(KEEP_BYTES // 4)
        memory = self._coming.grow(end)
        for offset, parts in zip(offsets, inputs, strict=True):
            at = offset
            for part in parts:
                memory[at : at + len(part)] = part
                at += len(part)
        entries = [list(entry) for entry in zip(offsets, sizes, shapes, strict=True)]
        with contextlib.suppress(ConnectionError):  # its end is heard where it is read
            self._ours.send(pack({"in": entries, "size": self._coming.size, "out": list(outputs)}))

    def tensors(self, message: Mapping[str, Any]) -> list[Tensor]:
        """The outputs, copied: the next batch will write over them."""
        memory = self._going.view(message["size"])
        return [
            Tensor(name, datatype, tuple(shape), bytes(memory[offset : offset + size]))
            for name, datatype, shape, offset, size in message["out"]
        ]

    def kill(self) -> None:
        """It hangs: its end is then heard as any death."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def close(self) -> None:
        """End it, and wait until its memory is free. Nothing is heard any more."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._ours.fileno())
        self._free()
        self.kill()
        await asyncio.to_thread(self.process.wait)

    def _readable(self) -> None:
        try:
            data = self._ours.recv(1 << 18)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._died()
            return
        try:
            messages = self._reader.feed(data)
        except ValueError:
            self.kill()
            return
        for message in messages:
            self._hear(message)

    def _hear(self, message: Mapping[str, Any]) -> None:
        if "ready" in message:
            self._heard.loaded(message)
        elif "refused" in message:
            self._heard.refused(message["refused"])
        elif "out" in message or "error" in message:
            self._heard.answered(message)

    def _died(self) -> None:
        self._open = False
        self._loop.remove_reader(self._ours.fileno())
        self._free()
        self.kill()  # it may have closed its end alone
        code = self.process.wait()
        self._heard.gone(f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")

    def _free(self) -> None:
        self._ours.close()
        self._coming.close()
        self._going.close()
