"""A minute of everything at once: good requests among broken ones, callers that hang up, executors that are killed, loads
and unloads. Every good request is answered rightly or told to come again, and memory stays bounded.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving.onnx import models
from tests.serving.onnx.running import Onnx, onnx

pytestmark = pytest.mark.soak
SECONDS = 60.0
CALLERS = 12
GROWTH = 64 << 20


def good(server: Onnx, chance: random.Random) -> str:
    rows, width = chance.randint(1, 5), chance.randint(1, 6)
    data = [chance.randint(-99, 99) for _ in range(rows * width)]
    answer = server.infer("double", x=("FP32", [rows, width], data))
    if answer.status == 200:
        assert answer.json["outputs"][0]["data"] == [2 * one for one in data]
    else:
        assert answer.status in (500, 503, 504), answer.body
    return f"good {answer.status}"


def indexed(server: Onnx, chance: random.Random) -> str:
    """One in ten fails its batch; the others are answered."""
    bad = chance.random() < 0.1
    at = 99 if bad else chance.randint(0, 9)
    answer = server.infer("gather", x=("INT64", [1], [at]))
    if not bad and answer.status == 200:
        assert answer.json["outputs"][0]["data"] == [2 * at, 2 * at + 1]
    assert answer.status in ((400, 500, 503, 504) if bad else (200, 500, 503, 504)), answer.body
    return f"{'bad' if bad else 'good'} index {answer.status}"


def broken(server: Onnx, chance: random.Random) -> str:
    """A request with bytes changed, cut or repeated."""
    body = bytearray(
        json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()
    )
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(body))
        match chance.randint(0, 2):
            case 0:
                body[at] = chance.randrange(256)
            case 1:
                del body[at : at + chance.randint(1, 20)]
            case _:
                body[at:at] = body[at : at + 9] * chance.randint(1, 50)
    headers = {"Inference-Header-Content-Length": str(chance.randint(0, 200))} if chance.random() < 0.5 else {}
    if chance.random() < 0.2:
        headers["Content-Encoding"] = chance.choice(["gzip", "deflate"])
    answer = server.ask("/v2/models/double/infer", bytes(body), headers)
    assert answer.status in (200, 400, 413, 500, 503, 504), answer.body
    return f"broken {answer.status}"


def raw(server: Onnx, chance: random.Random) -> str:
    """Bytes that are hardly HTTP, from a caller that hangs up at any point."""
    pieces = [b"POST /v2/models/double/infer HTTP/1.1\r\n", b"host: h\r\n", b"content-length: 40\r\n", b"a: b\r\n" * 99]
    pieces += [
        b"transfer-encoding: chunked\r\n",
        b"\r\n",
        b'5\r\n{"inp\r\n',
        chance.randbytes(50),
        b"expect: 100-continue\r\n",
    ]
    with socket.create_connection(("127.0.0.1", server.http), 10) as link:
        link.settimeout(0.05)
        try:
            for _ in range(chance.randint(1, 8)):
                link.sendall(chance.choice(pieces))
            link.recv(1000)
        except OSError:
            pass
    return "raw"


def test_nothing_that_is_sent_breaks_it(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    models.doubled(tmp_path / "double/1/model.onnx", ("batch", "width"))
    models.gather(tmp_path / "gather/1/model.onnx")
    seen: Counter[str] = Counter()
    with onnx("--models", str(tmp_path), "--max-body", "64Ki", "--request-timeout", "10s") as server:
        until = time.monotonic() + SECONDS

        def caller(seed: int) -> Counter[str]:
            chance, mine = random.Random(seed), Counter[str]()
            kinds = (good, good, indexed, broken, raw)
            while time.monotonic() < until:
                mine[chance.choice(kinds)(server, chance)] += 1
            return mine

        def breaker() -> int:
            chance, kills = random.Random(99), 0
            while time.monotonic() < until - 5:
                time.sleep(chance.uniform(1, 4))
                executors = server.executors()
                if executors:
                    try:
                        os.kill(chance.choice(executors), signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    kills += 1
            return kills

        with ThreadPoolExecutor(CALLERS + 1) as pool:
            killed = pool.submit(breaker)
            calls = [pool.submit(caller, seed) for seed in range(CALLERS)]
            time.sleep(SECONDS / 4)
            early = front(server)
            for call in calls:
                seen += call.result()
        server.until(lambda: server.status("/v2/health/ready") == 200)
        grown = front(server) - early
        assert server.stop() == 0
    assert killed.result() > 5
    assert seen["good 200"] > 100
    assert seen["good index 200"] > 50
    assert grown < GROWTH
    record_property(
        "soak:onnx_fuzz", {"requests": sum(seen.values()), "killed": killed.result(), "grown_mb": grown / 1e6}
    )


def front(server: Onnx) -> int:
    """Bytes of resident memory of the process that callers speak to."""
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
