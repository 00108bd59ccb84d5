"""What `tritonclient` asks of a server that speaks the Open Inference Protocol, answered by the built-in one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as by_grpc
import tritonclient.http as by_http
from tritonclient.utils import InferenceServerException

from tests.serving.onnx import models
from tests.serving.onnx.running import Onnx, onnx

ROWS = np.random.default_rng(1).standard_normal((3, 16)).astype("f4")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Onnx, np.ndarray]]:
    folder = tmp_path_factory.mktemp("models")
    path = models.mlp(folder / "mlp/1/model.onnx", (16, 32, 4))
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": ROWS})[0]
    models.two(folder / "two/1/model.onnx")
    models.words(folder / "words/7/model.onnx")
    with onnx("--models", str(folder)) as server:
        yield server, expected


@pytest.fixture
def http(served: tuple[Onnx, np.ndarray]) -> Iterator[by_http.InferenceServerClient]:
    with by_http.InferenceServerClient(f"127.0.0.1:{served[0].http}") as client:
        yield client


@pytest.fixture
def grpc(served: tuple[Onnx, np.ndarray]) -> Iterator[by_grpc.InferenceServerClient]:
    with by_grpc.InferenceServerClient(f"127.0.0.1:{served[0].grpc}") as client:
        yield client


@pytest.mark.parametrize("compressed", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_http_infers(
    http: by_http.InferenceServerClient,
    served: tuple[Onnx, np.ndarray],
    binary_in: bool,
    binary_out: bool,
    compressed: str | None,
) -> None:
    given = by_http.InferInput("x", ROWS.shape, "FP32")
    given.set_data_from_numpy(ROWS, binary_data=binary_in)
    answer = http.infer(
        "mlp",
        [given],
        outputs=[by_http.InferRequestedOutput("y", binary_data=binary_out)],
        request_id="r1",
        request_compression_algorithm=compressed,
        response_compression_algorithm=compressed,
    )
    np.testing.assert_allclose(answer.as_numpy("y"), served[1], atol=1e-5)
    assert answer.get_response()["id"] == "r1"
    assert answer.get_response()["model_version"] == "1"


def test_http_tells_health_metadata_and_config(http: by_http.InferenceServerClient) -> None:
    assert http.is_server_live()
    assert http.is_server_ready()
    assert http.is_model_ready("mlp")
    assert http.is_model_ready("mlp", "1")
    assert not http.is_model_ready("nobody")
    assert {"binary_tensor_data", "statistics"} <= set(http.get_server_metadata()["extensions"])
    told = http.get_model_metadata("mlp")
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 16]}]
    assert told["versions"] == ["1"]
    config = http.get_model_config("mlp")
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (32, [16])
    assert {entry["name"] for entry in http.get_model_repository_index()} == {"mlp", "two", "words"}


def test_http_counts(http: by_http.InferenceServerClient) -> None:
    before = http.get_inference_statistics("two")["model_stats"][0]
    given = [by_http.InferInput("a", (1, 2), "FP32"), by_http.InferInput("b", (1, 2), "INT32")]
    given[0].set_data_from_numpy(np.array([[1, 2]], "f4"))
    given[1].set_data_from_numpy(np.array([[3, 4]], "i4"))
    answer = http.infer("two", given)
    assert answer.as_numpy("total").tolist() == [[4, 6]]
    assert answer.as_numpy("double").tolist() == [[2, 4]]
    after = http.get_inference_statistics("two", "1")["model_stats"][0]
    assert after["inference_count"] == before["inference_count"] + 1
    assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 1
    assert after["batch_stats"][0]["batch_size"] == 1


def test_http_carries_text(http: by_http.InferenceServerClient) -> None:
    text = np.array([["a", "Zürich"], ["", "日本"]], dtype=object)
    for binary in (True, False):
        given = by_http.InferInput("x", (2, 2), "BYTES")
        given.set_data_from_numpy(text, binary_data=binary)
        answer = http.infer("words", [given], outputs=[by_http.InferRequestedOutput("y", binary_data=binary)])
        found = [cell.decode() if isinstance(cell, bytes) else cell for cell in answer.as_numpy("y").ravel()]
        assert found == list(text.ravel())


def test_http_loads_and_unloads(http: by_http.InferenceServerClient, served: tuple[Onnx, np.ndarray]) -> None:
    http.unload_model("words")
    assert not http.is_model_ready("words")
    assert [entry for entry in http.get_model_repository_index() if entry["name"] == "words"] == [{"name": "words"}]
    assert len(served[0].executors()) == 2
    http.load_model("words")
    assert http.is_model_ready("words", "7")
    with pytest.raises(InferenceServerException, match="nobody"):
        http.load_model("nobody")


@pytest.mark.parametrize("shape", [(3, 5), (16,), (1, 16, 1)])
def test_a_wrong_shape_is_refused(
    http: by_http.InferenceServerClient, grpc: by_grpc.InferenceServerClient, shape: tuple[int, ...]
) -> None:
    for module, client in ((by_http, http), (by_grpc, grpc)):
        given = module.InferInput("x", shape, "FP32")
        given.set_data_from_numpy(np.zeros(shape, "f4"))
        with pytest.raises(InferenceServerException, match=r"input x: shape: is .*, the model takes \[-1, 16\]"):
            client.infer("mlp", [given])


def test_grpc_infers(grpc: by_grpc.InferenceServerClient, served: tuple[Onnx, np.ndarray]) -> None:
    given = by_grpc.InferInput("x", ROWS.shape, "FP32")
    given.set_data_from_numpy(ROWS)
    answer = grpc.infer("mlp", [given], outputs=[by_grpc.InferRequestedOutput("y")], request_id="r2")
    np.testing.assert_allclose(answer.as_numpy("y"), served[1], atol=1e-5)
    assert answer.get_response().id == "r2"


def test_grpc_tells_what_http_tells(grpc: by_grpc.InferenceServerClient) -> None:
    assert grpc.is_server_live()
    assert grpc.is_server_ready()
    assert grpc.is_model_ready("mlp")
    assert list(grpc.get_model_metadata("mlp").inputs[0].shape) == [-1, 16]
    config = grpc.get_model_config("mlp").config
    assert (config.max_batch_size, list(config.input[0].dims)) == (32, [16])
    assert {entry.name for entry in grpc.get_model_repository_index().models} == {"mlp", "two", "words"}
    assert grpc.get_inference_statistics("mlp").model_stats[0].name == "mlp"
    grpc.unload_model("two")
    grpc.load_model("two")
    assert grpc.is_model_ready("two")
    with pytest.raises(InferenceServerException, match="nobody"):
        grpc.get_model_metadata("nobody")
