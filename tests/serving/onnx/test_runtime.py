"""What a replica is told of the runtime, tried on the real thing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.measure import free_ports
from penstock.serving.runtimes.onnx.runtime import OnnxRuntime
from penstock.serving.runtimes.spec import Batching, Format, Load, Model, Options, Ports
from tests.serving.onnx import models
from tests.serving.onnx.running import Onnx


def test_a_replica_starts_asks_warms_and_reads_it(tmp_path: Path) -> None:
    runtime = OnnxRuntime()
    model = Model("two", 3, str(models.two(tmp_path / "two.onnx")), Format.ONNX)
    options = Options(batching=Batching(most=8, preferred=(4,), delay=0.001), threads=1)
    assert runtime.validate(options, Format.ONNX) == []
    http, grpc, metrics = free_ports(3)
    launch = runtime.launch(model, options, Ports(http, grpc, metrics), str(tmp_path))
    server = Onnx.started(launch.argv, http, grpc)
    try:
        server.until(lambda: server.status(runtime.ready(model).path) == 200)
        described = runtime.describe(model)
        assert described is not None
        warming = runtime.warming(model, server.ask(described.path).json)
        assert warming is not None
        assert server.ask(warming.path, warming.body, warming.headers).status == 200
        assert server.ask("/v2/models/two/versions/3/config").json["max_batch_size"] == 8
        page = runtime.metrics()
        assert page is not None
        load = runtime.load(server.ask(page.path).body.decode())
        assert (load.running, load.waiting, load.batches) == (0, 0, {1: 1})
        assert load.compute_s is not None
        assert load.compute_s > 0
    finally:
        assert server.stop() == 0


def test_options_that_cannot_be_are_told_with_their_path() -> None:
    options = Options(batching=Batching(most=4, preferred=(2, 8), delay=40.0), command=("x",))
    problems = OnnxRuntime().validate(options, Format.SAFETENSORS)
    assert [problem.path for problem in problems] == ["model", "command", "batching.preferred", "batching.delay"]


@pytest.mark.parametrize("page", ["", "nonsense", "penstock_infer_running{} x\n", "\0" * 100])
def test_a_page_that_is_none_says_nothing(page: str) -> None:
    assert OnnxRuntime().load(page) == Load(batches={})


def test_a_model_too_large_to_make_up_is_not_warmed_by_request() -> None:
    described = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4096, 4096]}]}
    model = Model("m", 1, "/m.onnx", Format.ONNX)
    assert OnnxRuntime().warming(model, described) is None
    assert OnnxRuntime().warming(model, json.loads("{}")) is None
