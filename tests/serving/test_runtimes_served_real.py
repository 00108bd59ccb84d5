"""Runtimes of other hands, whole: a service's replica becomes ready, and the real Envoy brings what it answers."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as by_grpc
from tritonclient.utils import InferenceServerException

from benchmarks.measure import free_ports
from tests.serving.onnx import models
from tests.serving.runtimes.worlds import WORLDS
from tests.system.house import House, until

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    [port] = free_ports(1)
    with House("--gateway-port", str(port)) as made:
        yield made


def served(house: House, name: str, spec: dict[str, Any]) -> None:
    services = house.client.services
    services.create(name, {"drain": "1s", "resources": {"cpus": 0.5}, **spec})
    until(lambda: services.get(name).phase == "Ready", f"{name} is not ready")


def ask(house: House, name: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    url = f"{house.client.services.get(name).status['url']}/{path}"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return dict(json.loads(answer.read()))


@pytest.mark.needs("tritonserver")
def test_triton_answers_through_the_gateway(house: House, tmp_path: Path) -> None:
    model = house.client.services.carry(str(models.doubled(tmp_path / "twice.onnx")))
    env = {"PATH": WORLDS["triton"].options(tmp_path).env["PATH"]}
    served(house, "twice", {**model, "runtime": "triton", "env": env})
    inputs = [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
    answer = ask(house, "twice", "v2/models/twice/infer", {"inputs": inputs})
    assert answer["outputs"][0]["data"] == [2, 4, 6, 8]
    house.client.services.delete("twice")


def test_vllms_stand_in_answers_through_the_gateway(house: House) -> None:
    folder = Path(house.data_dir, "vllm")
    folder.mkdir(mode=0o755)
    found = WORLDS["vllm"].make(folder)
    assert found is not None
    Path(found.path, "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    env = {"PATH": WORLDS["vllm"].options(folder).env["PATH"]}
    served(house, "tiny", {**house.client.services.carry(found.path), "env": env})  # told by its content
    answer = ask(house, "tiny", "v1/completions", {"model": "tiny", "prompt": "Hello", "max_tokens": 3})
    assert answer["choices"][0]["text"]
    house.client.services.delete("tiny")


def test_a_grpc_call_wakes_a_service_that_has_no_replica(house: House, tmp_path: Path) -> None:
    """Its first try waits for the replica and is told to come again, which the caller's own policy does."""
    services = house.client.services
    model = services.carry(str(models.doubled(tmp_path / "asleep.onnx")))
    services.create("asleep", {**model, "autoscaling": {"min": 0, "max": 1}, "drain": "1s", "resources": {"cpus": 0.5}})
    until(lambda: services.get("asleep").phase == "Idle", "it does not sleep")
    again = {"maxAttempts": 3, "initialBackoff": "1s", "maxBackoff": "1s", "backoffMultiplier": 1}
    policy = {"name": [{}], "retryPolicy": {**again, "retryableStatusCodes": ["UNAVAILABLE"]}}
    options = [("grpc.service_config", json.dumps({"methodConfig": [policy]}))]
    given = by_grpc.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(np.array([[1, 2, 3, 4]], "f4"))
    address = services.get("asleep").status["url"].split("/")[2]

    def asked(**how: Any) -> Any:
        with by_grpc.InferenceServerClient(address, **how) as client:
            return client.infer("asleep", [given], headers={"x-penstock-service": "default/asleep"})

    def first() -> Any:
        """None as long as the gateway has not been told of the service."""
        try:
            return asked(channel_args=options)
        except InferenceServerException as error:
            if error.status() != "StatusCode.UNIMPLEMENTED":
                raise
            return None

    until(lambda: gateway_up(address), "no gateway")
    assert until(first, "the gateway does not hear of it").as_numpy("y").tolist() == [[2, 4, 6, 8]]
    assert asked().as_numpy("y").tolist() == [[2, 4, 6, 8]]
    services.delete("asleep")


def gateway_up(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True
