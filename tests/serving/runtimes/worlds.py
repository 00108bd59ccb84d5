"""Every runtime with a model of its own, started as a replica starts it."""

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.serving.runtimes.known import runtime
from penstock.serving.runtimes.spec import Format, Model, Options, Ports, Request, Runtime
from tests.serving.onnx import models

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
READY_S = 60.0
_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404); self.end_headers(); self.wfile.write(b"well")
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@dataclass(frozen=True)
class World:
    """``broken``: a model of the right format that cannot be loaded; None where the runtime has no models."""

    name: str
    make: Callable[[Path], Model | None]
    options: Callable[[Path], Options]
    broken: Callable[[Path], Model] | None
    slow: Callable[[Model | None], Request] | None = None  # a request that takes about a second

    @property
    def runtime(self) -> Runtime:
        return runtime(self.name, "/health")


class Running:
    def __init__(self, world: World, model: Model | None, options: Options, folder: Path) -> None:
        self.world, self.model = world, model
        http, grpc, metrics = _free(3)
        self.ports = Ports(http, grpc, metrics)
        launch = world.runtime.launch(model, options, self.ports, str(folder))
        for name, data in launch.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                launch.argv, cwd=folder, env={**os.environ, **launch.env}, stdout=log, stderr=log
            )

    def ask(self, request: Request) -> tuple[int, bytes]:
        port = self.ports.metrics if request.port == "metrics" else self.ports.http
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}{request.path}", request.body or None, dict(request.headers), method=request.method
        )
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError:
            return 0, b""

    def ready(self) -> bool:
        return self.ask(self.world.runtime.ready(self.model))[0] == 200

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while not self.ready():
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-3000:]
            time.sleep(0.05)

    def described(self) -> Mapping[str, Any]:
        asked = self.world.runtime.describe(self.model)
        if asked is None:
            return {}
        status, body = self.ask(asked)
        assert status == 200, body
        told: Mapping[str, Any] = json.loads(body)
        return told

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(self.world.runtime.grace)


@contextmanager
def running(world: World, folder: Path, model: Model | None = None) -> Iterator[Running]:
    started = Running(world, model or world.make(folder), world.options(folder), folder)
    try:
        yield started
    finally:
        if started.process.poll() is None:
            started.process.terminate()
            try:
                started.process.wait(10)
            except subprocess.TimeoutExpired:
                started.process.kill()
                started.process.wait()


def _free(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    found = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return found


def _onnx(folder: Path) -> Model:
    return Model("m", 3, str(models.square(folder / "model.onnx")), Format.ONNX)


def _cut(folder: Path) -> Model:
    path = models.square(folder / "model.onnx")
    path.write_bytes(path.read_bytes()[:200])
    return Model("m", 3, str(path), Format.ONNX)


def _slow(model: Model | None) -> Request:
    assert model is not None
    inputs = [{"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [60_000]}]
    return Request("POST", f"/v2/models/{model.name}/infer", json.dumps({"inputs": inputs}).encode())


def _llm(folder: Path) -> Model:
    (folder / "llm").mkdir()
    (folder / "llm" / "config.json").write_text("{}")
    return Model("tiny", 1, str(folder / "llm"), Format.HUGGING_FACE)


def _stand_in(folder: Path) -> Options:
    """``vllm`` on the PATH is the stand-in, which answers as the real one does."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "vllm"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "vllm_stand_in.py"}" "$@"\n')
    program.chmod(0o755)
    return Options(env={"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"})


def _slow_text(model: Model | None) -> Request:
    assert model is not None
    body = json.dumps({"model": model.name, "prompt": "slow", "max_tokens": 10}).encode()
    return Request("POST", "/v1/completions", body, {"content-type": "application/json"})


def triton_options(_folder: Path) -> Options:
    """The tritonserver that `make test-deps` unpacks."""
    return Options(env={"PATH": f"{ROOT / 'build/tritonserver/tritonserver/bin'}{os.pathsep}{os.environ['PATH']}"})


WORLDS = {
    "onnx": World("onnx", _onnx, lambda _: Options(), _cut, _slow),
    "triton": World("triton", _onnx, triton_options, _cut, _slow),
    "vllm": World("vllm", _llm, _stand_in, None, _slow_text),
    "command": World(
        "command", lambda _: None, lambda _: Options(command=(sys.executable, "-c", _SERVER, "{port}")), None
    ),
}
