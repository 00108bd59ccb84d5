"""The same calls to the built-in server and to a real tritonserver: answers equal to 1e-5, refusals of the same kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http
from tritonclient.utils import InferenceServerException

from benchmarks.measure import free_ports
from tests.serving.onnx import models
from tests.serving.onnx.running import onnx
from tests.triton_server import Argument, add_model, tritonserver

pytestmark = [pytest.mark.real, pytest.mark.needs("tritonserver", "libpython")]
ROWS = np.random.default_rng(2).standard_normal((5, 16)).astype("f4")
Ports = tuple[int, int]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ports, Ports]]:
    """(HTTP, gRPC) of ours and of Triton's."""
    folder = tmp_path_factory.mktemp("both")
    file = models.mlp(folder / "ours/mlp/1/model.onnx", (16, 32, 4))
    repository = folder / "theirs"
    add_model(repository, "mlp", file, [Argument("x", "TYPE_FP32", [16])], [Argument("y", "TYPE_FP32", [4])])
    http, grpc, metrics = free_ports(3)
    explicit = ("--model-control-mode=explicit", "--load-model=mlp")
    with onnx("--models", str(folder / "ours")) as here, tritonserver(repository, (http, grpc, metrics), *explicit):
        yield (here.http, here.grpc), (http, grpc)


def given(module: ModuleType, array: np.ndarray, **more: Any) -> Any:
    tensor = module.InferInput("x", array.shape, "FP32")
    tensor.set_data_from_numpy(array, **more)
    return tensor


def http_infer(client: Any, binary_in: bool, binary_out: bool, compressed: str | None) -> np.ndarray:
    answer = client.infer(
        "mlp",
        [given(by_http, ROWS, binary_data=binary_in)],
        outputs=[by_http.InferRequestedOutput("y", binary_data=binary_out)],
        request_compression_algorithm=compressed,
        response_compression_algorithm=compressed,
    )
    found: np.ndarray = answer.as_numpy("y")
    return found


HTTP_CHECKS: dict[str, Callable[[Any], Any]] = {
    "live": lambda client: client.is_server_live(),
    "ready": lambda client: client.is_server_ready(),
    "model ready": lambda client: (client.is_model_ready("mlp"), client.is_model_ready("mlp", "1")),
    "no such model ready": lambda client: (client.is_model_ready("nobody"), client.is_model_ready("mlp", "9")),
    "metadata": lambda client: {k: v for k, v in client.get_model_metadata("mlp").items() if k != "platform"},
    "binary": lambda client: http_infer(client, True, True, None),
    "json": lambda client: http_infer(client, False, False, None),
    "json in, binary out": lambda client: http_infer(client, False, True, None),
    "gzip": lambda client: http_infer(client, True, True, "gzip"),
    "deflate": lambda client: http_infer(client, False, False, "deflate"),
    "config": lambda client: {k: client.get_model_config("mlp")[k] for k in ("name", "max_batch_size")},
    "statistics": lambda client: sorted(client.get_inference_statistics("mlp")["model_stats"][0]["inference_stats"]),
    "index": lambda client: [(one["name"], one.get("state")) for one in client.get_model_repository_index()],
    "unload, load": lambda client: (client.unload_model("mlp"), client.load_model("mlp"), client.is_model_ready("mlp")),
}


@pytest.mark.parametrize("check", HTTP_CHECKS)
def test_http_answers_as_triton_does(both: tuple[Ports, Ports], check: str) -> None:
    answers = []
    for http, _ in both:
        with by_http.InferenceServerClient(f"127.0.0.1:{http}") as client:
            answers.append(HTTP_CHECKS[check](client))
    if isinstance(answers[0], np.ndarray):
        np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=1e-5)
    else:
        assert answers[0] == answers[1]


GRPC_CHECKS: dict[str, Callable[[Any], Any]] = {
    "live": lambda client: client.is_server_live(),
    "ready": lambda client: (client.is_server_ready(), client.is_model_ready("mlp")),
    "infer": lambda client: client.infer("mlp", [given(by_grpc, ROWS)]).as_numpy("y"),
    "metadata": lambda client: [
        (one.name, one.datatype, list(one.shape)) for one in client.get_model_metadata("mlp").inputs
    ],
    "config": lambda client: client.get_model_config("mlp").config.max_batch_size,
    "statistics": lambda client: client.get_inference_statistics("mlp").model_stats[0].name,
    "index": lambda client: [one.name for one in client.get_model_repository_index().models],
    "unload, load": lambda client: (client.unload_model("mlp"), client.load_model("mlp"), client.is_model_ready("mlp")),
}


@pytest.mark.parametrize("check", GRPC_CHECKS)
def test_grpc_answers_as_triton_does(both: tuple[Ports, Ports], check: str) -> None:
    answers = []
    for _, grpc in both:
        with by_grpc.InferenceServerClient(f"127.0.0.1:{grpc}") as client:
            answers.append(GRPC_CHECKS[check](client))
    if isinstance(answers[0], np.ndarray):
        np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=1e-5)
    else:
        assert answers[0] == answers[1]


REFUSED: dict[str, Callable[[ModuleType, Any], Any]] = {
    "shape": lambda module, client: client.infer("mlp", [given(module, np.zeros((2, 5), "f4"))]),
    "rank": lambda module, client: client.infer("mlp", [given(module, np.zeros((16,), "f4"))]),
    "model": lambda module, client: client.infer("nobody", [given(module, ROWS)]),
    "version": lambda module, client: client.infer("mlp", [given(module, ROWS)], model_version="9"),
    "output": lambda module, client: client.infer(
        "mlp", [given(module, ROWS)], outputs=[module.InferRequestedOutput("z")]
    ),
    "metadata": lambda _, client: client.get_model_metadata("nobody"),
    "statistics": lambda _, client: client.get_inference_statistics("nobody"),
}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("check", REFUSED)
def test_refusals_have_triton_s_status(both: tuple[Ports, Ports], check: str, protocol: str) -> None:
    module: ModuleType = by_http if protocol == "http" else by_grpc
    statuses = []
    for ports in both:
        with (
            module.InferenceServerClient(f"127.0.0.1:{ports[protocol == 'grpc']}") as client,
            pytest.raises(InferenceServerException) as caught,
        ):
            REFUSED[check](module, client)
        statuses.append(caught.value.status())
    assert statuses[0] == statuses[1], json.dumps(statuses)


def test_what_triton_answers_is_folders(both: tuple[Ports, Ports], tmp_path: Path) -> None:
    """The index of an unloaded model: both name it, and neither says READY."""
    states = []
    for http, _ in both:
        with by_http.InferenceServerClient(f"127.0.0.1:{http}") as client:
            client.unload_model("mlp")
            states.append([(one["name"], one.get("state") == "READY") for one in client.get_model_repository_index()])
            client.load_model("mlp")
    assert states[0] == states[1] == [("mlp", False)]
