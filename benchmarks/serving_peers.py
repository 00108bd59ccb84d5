"""The servers of the runtime's benchmark, each with the same model: the built-in one, tritonserver, MLServer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import say
from tests.triton_server import Argument, TritonServer, add_model, unpacked

ROOT = Path(__file__).resolve().parents[1]
MLSERVER = ROOT / "build/mlserver"
MLSERVER_VERSION = "1.7.1"
START_S = 90.0

_MLSERVER_MODEL = """\
import numpy
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class OnnxModel(MLModel):
    async def load(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload):
        rows = NumpyCodec.decode_input(payload.inputs[0]).astype(numpy.float32, copy=False)
        found = self.session.run(None, {"x": rows})[0]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", found)])
"""


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    pid: int
    port: int

    @property
    def infer(self) -> str:
        return f"http://127.0.0.1:{self.port}/v2/models/mlp/infer"


def wait_ready(url: str, process: subprocess.Popen[bytes], name: str) -> None:
    """Raises RuntimeError."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{name} was not ready within {START_S:g} s")


@contextmanager
def ours(models: Path, port: int) -> Iterator[Peer]:
    command = [sys.executable, "-m", "penstock.serving.runtimes.onnx", "--models", str(models), "--http", str(port)]
    with _running("penstock", command, port, os.environ | {}) as peer:
        yield peer


@contextmanager
def triton(folder: Path, model: Path, width: int, ports: list[int]) -> Iterator[Peer]:
    """With Triton's own dynamic batching before its Python backend: there is no other in the wheel."""
    unpacked()
    repository = folder / "triton/models"
    add_model(repository, "mlp", model, [Argument("x", "TYPE_FP32", [width])], [Argument("y", "TYPE_FP32", [10])])
    server = TritonServer(repository, (ports[0], ports[1], ports[2]))
    try:
        server.wait()
        yield Peer("tritonserver", server.process.pid, ports[0])
    finally:
        server.stop()


@contextmanager
def mlserver(folder: Path, model: Path, width: int, ports: list[int]) -> Iterator[Peer]:
    """In its own environment. Its workers are off: they would cost it a copy of every request more."""
    install_mlserver()
    place = folder / "mlserver"
    place.mkdir()
    (place / "onnx_model.py").write_text(_MLSERVER_MODEL)
    (place / "model-settings.json").write_text(json.dumps({
        "name": "mlp", "implementation": "onnx_model.OnnxModel", "max_batch_size": 32, "max_batch_time": 0.002,
        "parameters": {"uri": str(model)},
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, width]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 10]}],
    }))  # fmt: skip
    (place / "settings.json").write_text(json.dumps({
        "host": "127.0.0.1", "http_port": ports[0], "grpc_port": ports[1], "metrics_port": ports[2],
        "parallel_workers": 0, "debug": False,
    }))  # fmt: skip
    command = [str(MLSERVER / "bin/mlserver"), "start", str(place)]
    with _running("MLServer", command, ports[0], os.environ | {"PYTHONPATH": str(place)}) as peer:
        yield peer


def install_mlserver() -> None:
    """Once, into build/. Raises CalledProcessError where pip cannot."""
    if (MLSERVER / "bin/mlserver").exists():
        return
    say(f"   installing MLServer {MLSERVER_VERSION} into {MLSERVER}")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(MLSERVER)], check=True)
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("onnxruntime==")]
    pip = [str(MLSERVER / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, f"mlserver=={MLSERVER_VERSION}", *pinned], check=True, timeout=900)


@contextmanager
def _running(name: str, command: list[str], port: int, environment: dict[str, str]) -> Iterator[Peer]:
    log = ROOT / f"build/{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        wait_ready(f"http://127.0.0.1:{port}/v2/models/mlp/ready", process, name)
        yield Peer(name, process.pid, port)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
