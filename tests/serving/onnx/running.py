"""The built-in runtime as a process of its own, as a replica starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE_S = 60.0
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Onnx:
    """``http`` and ``grpc`` are ports on loopback."""

    def __init__(self, *arguments: str, wait: bool = True) -> None:
        http, grpc = free_port(), free_port()
        command = (sys.executable, "-m", "penstock.serving.runtimes.onnx", *arguments)
        self._start((*command, "--http", str(http), "--grpc", str(grpc)), http, grpc)
        if wait:
            self.until(lambda: self.status("/v2/health/ready") == 200)

    @classmethod
    def started(cls, command: Sequence[str], http: int, grpc: int) -> Onnx:
        """Of a whole command line."""
        server = cls.__new__(cls)
        server._start(command, http, grpc)
        return server

    def _start(self, command: Sequence[str], http: int, grpc: int) -> None:
        self.http, self.grpc = http, grpc
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.until(lambda: self.status("/v2/health/live") == 200)

    def until(self, holds: Any) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not holds():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}"
            assert time.monotonic() < deadline, "not within the deadline"
            time.sleep(0.02)

    def status(self, path: str) -> int:
        try:
            return self.ask(path).status
        except OSError:
            return 0

    def ask(self, path: str, body: bytes | Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """GET, or POST where there is a body: bytes, or what becomes JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data, dict(headers or {}))
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
                return Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()})
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read(), {k.lower(): v for k, v in error.headers.items()})

    def infer(self, model: str, **inputs: Any) -> Answer:
        """JSON; each input is (datatype, shape, data)."""
        told = [
            {"name": name, "datatype": datatype, "shape": shape, "data": data}
            for name, (datatype, shape, data) in inputs.items()
        ]
        return self.ask(f"/v2/models/{model}/infer", {"inputs": told})

    def tree(self) -> list[int]:
        """Its process and its executors'."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [self.process.pid, *map(int, children)]

    def executors(self) -> list[int]:
        return self.tree()[1:]

    def resident(self) -> int:
        """Bytes of resident memory of the tree."""
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.tree()) * PAGE

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def onnx(*arguments: str, wait: bool = True) -> Iterator[Onnx]:
    server = Onnx(*arguments, wait=wait)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
