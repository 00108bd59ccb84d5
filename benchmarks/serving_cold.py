"""Scale from zero: from a request that nobody could answer to its answer, through the gateway; and a first `penstock serve`.

A small ONNX model on this machine. Each round: the service has no replica, eight callers ask at once, all of them must be
answered with 200 by a replica that had answered its warming request before.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.harness import Bar, alone, say, spread
from penstock.client.client import Client
from penstock.serving.autoscaling import Tuning
from tests.serving.onnx import models
from tests.system.house import PATIENCE_S, House, until

ROUNDS = 5
CALLERS = 8
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]}).encode()


def ask(url: str, answers: list[tuple[int, float]]) -> None:
    began = time.monotonic()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, BODY), timeout=60) as answer:
            code = int(answer.status)
            answer.read()
    except urllib.error.HTTPError as error:
        code = error.code
    except OSError:
        code = 0
    answers.append((code, time.monotonic() - began))


def together(url: str) -> list[tuple[int, float]]:
    answers: list[tuple[int, float]] = []
    threads = [threading.Thread(target=ask, args=(url, answers)) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def asleep(client: Client) -> bool:
    status = client.services.get("small").status
    return bool(status["replicas"]["all"] == 0 and status["replicas"]["wanted"] == 0)


def measure() -> list[Bar]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder, House("--gateway-port", port) as house:
        model = models.mlp(Path(folder) / "small.onnx", (64, 32, 10))
        client = house.client
        spec = {
            **client.services.carry(str(model)),
            "resources": {"cpus": 0.5},
            "drain": "1s",
            "autoscaling": {"min": 0, "max": 1, "idle_after": "2s", "down_after": "1s", "flaps": 4 * ROUNDS},
        }
        client.services.create("small", spec)
        url = client.services.get("small").status["url"] + "/v2/models/small/infer"
        until(lambda: together(url)[0][0] == 200, "the service does not answer")
        took, lost, cold = [], 0, 0
        for _ in range(ROUNDS):
            until(lambda: asleep(client), "it has replicas still", Tuning().steady + PATIENCE_S)  # after a panic
            answers = together(url)
            lost += sum(code != 200 for code, _ in answers)
            took.append(max(seconds for _, seconds in answers))
            replicas = [
                one for version in client.services.get("small").status["versions"] for one in version["replicas"]
            ]
            cold += sum("warmed" not in one["stages"] for one in replicas if one["phase"] == "Ready")
            say(f"   {took[-1]:.2f} s, stages {[one['stages'] for one in replicas]}")
        client.services.delete("small")
        until(lambda: not list(client.services.list()), "the service does not end")
    note = f"{spread(took, ' s')}; {CALLERS} callers at once, the slowest of them; MLServer's start alone 17 s"
    return [
        Bar("scale from zero: the last of 8 first answers", statistics.median(took), 3.0, "s", note=note),
        Bar("scale from zero: requests lost", lost, 0, "", note=f"of {ROUNDS * CALLERS}"),
        Bar("scale from zero: replicas that served unwarmed", cold, 0, ""),
    ]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
