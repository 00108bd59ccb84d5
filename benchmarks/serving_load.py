"""What the serving benchmarks share: wrk with a body from a file, the CPU of a tree of processes, raw ONNX Runtime."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

_SCRIPT = """\
local file = io.open(os.getenv("WRK_BODY"), "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
wrk.headers["Content-Type"] = "application/octet-stream"
local length = os.getenv("WRK_JSON")
if length ~= "" then
  wrk.headers["Inference-Header-Content-Length"] = length
else
  wrk.headers["Content-Type"] = "application/json"
end
done = function(summary, latency, requests)
  local e = summary.errors
  local bad = e.connect + e.read + e.write + e.status + e.timeout
  io.stderr:write(string.format('RESULT {"requests":%d,"seconds":%.6f,"bad":%d,"p50":%.4f,"p99":%.4f}\\n',
    summary.requests, summary.duration / 1e6, bad, latency:percentile(50) / 1000, latency:percentile(99) / 1000))
end
"""

_RAW = """\
import sys, time
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options)
feeds = {"x": numpy.random.default_rng(0).standard_normal((int(sys.argv[2]), int(sys.argv[3]))).astype("f4")}
for _ in range(5):
    session.run(None, feeds)
began, runs = time.process_time(), 0
while time.process_time() - began < float(sys.argv[4]):
    session.run(None, feeds)
    runs += 1
print((time.process_time() - began) / runs / int(sys.argv[2]) * 1e6)
"""


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body in a file. ``json``: bytes of it that are JSON before binary tensors; None: all of it."""

    file: Path
    json: int | None


@dataclass(frozen=True, slots=True)
class Round:
    """One stretch of load. ``cpu_us`` of the server's whole tree for each request; times in milliseconds."""

    requests: int
    rate: float
    cpu_us: float
    p50: float
    p99: float


def bodies(folder: Path, width: int) -> tuple[Body, Body]:
    """The same row of ``width`` numbers as binary tensor and as JSON."""
    values = [((at * 37) % 101) / 101 - 0.5 for at in range(width)]
    import numpy as np

    row = np.array(values, "<f4")
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, width]}
    head = {
        "inputs": [tensor | {"parameters": {"binary_data_size": row.nbytes}}],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head).encode()
    binary, plain = folder / "row.binary", folder / "row.json"
    binary.write_bytes(text + row.tobytes())
    plain.write_text(json.dumps({"inputs": [tensor | {"data": row.tolist()}]}))
    return Body(binary, len(text)), Body(plain, None)


def wrk(folder: Path, url: str, body: Body, connections: int, seconds: float) -> dict[str, Any]:
    """Raises RuntimeError where wrk is not installed, or an answer was no 2xx."""
    if shutil.which("wrk") is None:
        raise RuntimeError("wrk is not installed: make test-deps")
    script = folder / "wrk.lua"
    script.write_text(_SCRIPT)
    told = {"WRK_BODY": str(body.file), "WRK_JSON": "" if body.json is None else str(body.json)}
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "20s", "-s", str(script), url]
    ran = subprocess.run(
        command, env=os.environ | told, capture_output=True, text=True, check=True, timeout=seconds + 60
    )
    found: dict[str, Any] = json.loads(ran.stderr.rpartition("RESULT ")[2])
    if found["bad"] or not found["requests"]:
        raise RuntimeError(f"{url}: {found['bad']} of {found['requests']} requests failed")
    return found


def load(folder: Path, url: str, body: Body, connections: int, seconds: float, pid: int) -> Round:
    before = cpu_seconds(pid)
    found = wrk(folder, url, body, connections, seconds)
    spent = cpu_seconds(pid) - before
    requests = found["requests"]
    return Round(requests, requests / found["seconds"], spent / requests * 1e6, found["p50"], found["p99"])


def tree(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for task in os.listdir(f"/proc/{pid}/task"):
        for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
            yield from tree(int(child))


def cpu_seconds(pid: int) -> float:
    """User and system time of the tree so far."""
    ticks = 0
    for member in tree(pid):
        fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICK


def resident(pid: int) -> int:
    """Bytes of resident memory of the tree."""
    return sum(int(Path(f"/proc/{member}/statm").read_text().split()[1]) for member in tree(pid)) * _PAGE


def raw_us(model: Path, batch: int, width: int, seconds: float = 1.0) -> float:
    """CPU microseconds of ONNX Runtime alone for each row, one thread."""
    command = [sys.executable, "-c", _RAW, str(model), str(batch), str(width), str(seconds)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)
