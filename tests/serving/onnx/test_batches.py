"""Requests that are computed together: whose answer is whose, and who fails alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.serving.onnx import models
from tests.serving.onnx.running import Onnx, alive, onnx


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Onnx]:
    folder = tmp_path_factory.mktemp("models")
    models.doubled(folder / "double/1/model.onnx", ("batch", "width"))
    models.gather(folder / "gather/1/model.onnx")
    models.centred(folder / "centred/1/model.onnx")
    models.square(folder / "slow/1/model.onnx")
    models.words(folder / "words/1/model.onnx")
    options = ("--delay", "20ms", "--max-batch", "16", "--request-timeout", "5s")
    with onnx("--models", str(folder), *options) as started:
        yield started
        assert started.stop() == 0


def at_once(server: Onnx, count: int, call: Any) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def batch_sizes(server: Onnx, model: str) -> dict[int, int]:
    told = server.ask(f"/v2/models/{model}/stats").json["model_stats"][0]["batch_stats"]
    return {one["batch_size"]: one["compute_infer"]["count"] for one in told}


def test_each_caller_gets_its_own_rows(server: Onnx) -> None:
    """Rows of 1 to 3, of two widths, from 32 callers at once."""

    def call(place: int) -> bool:
        rows, width = 1 + place % 3, 4 + place % 2
        data = [place * 100 + at for at in range(rows * width)]
        answer = server.infer("double", x=("FP32", [rows, width], data)).json["outputs"][0]
        return bool(answer["data"] == [2 * one for one in data] and answer["shape"] == [rows, width])

    for _ in range(5):
        assert all(at_once(server, 32, call))
    assert max(batch_sizes(server, "double")) > 3
    assert max(batch_sizes(server, "double")) <= 16


def test_each_caller_gets_its_own_words(server: Onnx) -> None:
    def call(place: int) -> bool:
        data = ["x" * place, str(place)] * (1 + place % 2)
        answer = server.infer("words", x=("BYTES", [len(data) // 2, 2], data)).json["outputs"][0]
        return bool(answer["data"] == data)

    assert all(at_once(server, 16, call))
    assert max(batch_sizes(server, "words")) > 2


def test_one_bad_request_of_a_batch_fails_alone(server: Onnx) -> None:
    """An index beyond the table fails the run: of the batch, the one that gave it."""

    def call(place: int) -> tuple[int, Any]:
        answer = server.infer("gather", x=("INT64", [1], [99 if place == 5 else place % 10]))
        return answer.status, answer.json

    for _ in range(3):
        answers = at_once(server, 12, call)
        assert [status for place, (status, _) in enumerate(answers) if place != 5] == [200] * 11
        assert answers[5][0] in (400, 500)
        assert "gather version 1" in answers[5][1]["error"]
        for place, (_, body) in enumerate(answers):
            if place != 5:
                assert body["outputs"][0]["data"] == [2 * (place % 10), 2 * (place % 10) + 1]


def test_rows_that_change_each_other_are_not_put_together(server: Onnx) -> None:
    def call(place: int) -> Any:
        return server.infer("centred", x=("FP32", [1, 3], [place, place, place])).json["outputs"][0]["data"]

    assert at_once(server, 8, call) == [[0, 0, 0]] * 8
    assert set(batch_sizes(server, "centred")) == {1}
    assert server.ask("/v2/models/centred/config").json["max_batch_size"] == 0


def test_a_caller_that_hangs_up_takes_nobody_along(server: Onnx) -> None:
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()
    head = b"POST /v2/models/double/infer HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(body)

    def call(place: int) -> bool:
        if place % 2:
            with socket.create_connection(("127.0.0.1", server.http), 10) as link:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                link.sendall(head + body)
            return True
        return bool(server.infer("double", x=("FP32", [1, 4], [1, 2, 3, 4])).json["outputs"][0]["data"] == [2, 4, 6, 8])

    for _ in range(5):
        assert all(at_once(server, 16, call))


def test_a_request_s_own_time_is_kept(server: Onnx) -> None:
    tensor = {"name": "x", "datatype": "INT64", "shape": [1, 1], "data": [100_000]}
    began = time.monotonic()
    answer = server.ask("/v2/models/slow/infer", {"inputs": [tensor], "parameters": {"timeout": 300_000}})
    assert (answer.status, "within the request's time" in answer.json["error"]) == (504, True)
    assert time.monotonic() - began < 4
    assert server.infer("double", x=("FP32", [1, 4], [1, 2, 3, 4])).status == 200


def test_a_trace_says_where_the_time_went(server: Onnx) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
    headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    answer = server.ask("/v2/models/double/infer", {"inputs": [tensor]}, headers)
    words = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert words == ["queue", "batch", "compute"]
    assert "server-timing" not in server.ask("/v2/models/double/infer", {"inputs": [tensor]}).headers


def test_a_full_line_is_refused_with_retry_after(tmp_path: Path) -> None:
    path = models.square(tmp_path / "slow.onnx")
    with onnx("--model", f"slow={path}", "--max-queue", "2", "--max-batch", "1", "--request-timeout", "20s") as server:

        def call(_: int) -> Any:
            return server.infer("slow", x=("INT64", [1, 1], [20_000]))

        answers = at_once(server, 8, call)
        refused = [one for one in answers if one.status == 503]
        assert refused
        assert all(one.headers["retry-after"] == "1" for one in refused)
        assert [one.json["outputs"][0]["data"] for one in answers if one.status == 200] == [[20_000]] * (
            8 - len(refused)
        )


def test_sigterm_answers_what_it_has(tmp_path: Path) -> None:
    path = models.square(tmp_path / "slow.onnx")
    with onnx("--model", f"slow={path}", "--request-timeout", "30s") as server, ThreadPoolExecutor(4) as pool:
        executors = server.executors()
        calls = [pool.submit(server.infer, "slow", x=("INT64", [1, 1], [steps])) for steps in (60_000, 60_001)]
        server.until(
            lambda: "penstock_infer_running" in (page := server.ask("/metrics").body.decode()) and _running(page)
        )
        os.kill(server.process.pid, signal.SIGTERM)
        for pid in executors:
            os.kill(pid, signal.SIGTERM)  # as where the whole group is told to end
        assert [call.result().json["outputs"][0]["data"] for call in calls] == [[60_000], [60_001]]
        assert server.process.wait(30) == 0
        assert not any(alive(pid) for pid in executors)


def _running(page: str) -> bool:
    line = next(one for one in page.splitlines() if one.startswith("penstock_infer_running{"))
    return float(line.split()[-1]) > 0


def test_answers_are_those_of_onnx_runtime(tmp_path: Path) -> None:
    path = models.mlp(tmp_path / "m.onnx", (32, 64, 8))
    rows = np.random.default_rng(3).standard_normal((24, 32)).astype("f4")
    expected = onnxruntime.InferenceSession(str(path)).run(None, {"x": rows})[0]
    with onnx("--model", f"m={path}", "--preferred", "4,8", "--delay", "5ms") as server:

        def call(place: int) -> Any:
            return server.infer("m", x=("FP32", [1, 32], rows[place].tolist())).json["outputs"][0]["data"]

        np.testing.assert_allclose(at_once(server, 24, call), expected, atol=1e-5)
        assert set(batch_sizes(server, "m")) <= {1, 2, 3, 4, 5, 6, 7, 8}
