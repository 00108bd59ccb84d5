"""A small ONNX model as a service of a real server, and callers who go on asking."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.serving.onnx.models import mlp
from tests.system.house import House, until

NAME = "scorer"
SIZES = (8, 16, 4)


@contextlib.contextmanager
def house() -> Iterator[House]:
    """With the models in it; in the end without a service, so that nothing outlives it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with House("--gateway-port", str(port)) as made:
        for word, seed in (("good", 0), ("other", 1)):
            path = mlp(Path(made.data_dir, "models", word, f"{NAME}.onnx"), SIZES, seed)
            os.chmod(path, 0o644)
        yield made
        for service in made.client.services.list():
            made.client.services.delete(service.name)
        until(lambda: not list(made.client.services.list()), "the service does not end")


def spec(made: House, word: str, **rollout: Any) -> dict[str, Any]:
    model = f"{made.data_dir}/models/{word}/{NAME}.onnx"
    return {"model": model, "resources": {"cpus": 0.2}, "drain": "1s", "replicas": 2, "rollout": rollout}


def serve(made: House) -> str:
    made.client.services.create(NAME, spec(made, "good"))
    until(lambda: made.client.services.get(NAME).status["replicas"]["ready"] == 2, "it is not ready")
    return str(made.client.services.get(NAME).status["url"])


@contextlib.contextmanager
def callers(url: str, count: int = 3) -> Iterator[None]:
    over = threading.Event()
    threads = [threading.Thread(target=_ask, args=(url, over, n)) for n in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(30)


def _ask(url: str, over: threading.Event, seed: int) -> None:
    where, chance = urlsplit(url), random.Random(seed)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    while not over.wait(0.02):
        data = [chance.uniform(-1, 1) for _ in range(SIZES[0])]
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, SIZES[0]], "data": data}]}
        try:
            connection.request("POST", f"{where.path}/v2/models/{NAME}/infer", json.dumps(body))
            connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            connection.close()
    connection.close()
