"""A process for each version: its death harms no other, its end gives the memory back."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serving.onnx import models
from tests.serving.onnx.running import Onnx, alive, onnx


def one(server: Onnx, model: str = "double") -> int:
    return server.infer(model, x=("FP32", [1, 4], [1, 2, 3, 4])).status


def test_a_model_that_dies_is_started_again_and_harms_no_other(tmp_path: Path) -> None:
    for name in ("double", "other"):
        models.doubled(tmp_path / f"{name}/1/model.onnx")
    with onnx("--models", str(tmp_path)) as server:
        first, second = server.executors()
        os.kill(first, signal.SIGKILL)
        server.until(lambda: len(server.executors()) == 2 and first not in server.executors())
        assert second in server.executors()
        assert {one(server), one(server, "other")} == {200}  # the first waited for the restart
        server.until(lambda: server.status("/v2/health/ready") == 200)
        page = server.ask("/metrics").body.decode()
        assert "penstock_infer_restarts_total" in page
        assert (
            sum(
                float(line.split()[-1])
                for line in page.splitlines()
                if line.startswith("penstock_infer_restarts_total{")
            )
            == 1
        )


def test_a_model_that_dies_of_a_request_fails_that_request(tmp_path: Path) -> None:
    """The executor is killed while it computes: who waited for it is told, after one more try."""
    path = models.square(tmp_path / "slow.onnx")
    with onnx("--model", f"slow={path}", "--request-timeout", "20s") as server:
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(server.infer, "slow", x=("INT64", [1, 1], [1_000_000]))
            server.until(
                lambda: 'penstock_infer_running{model="slow",version="1"} 1' in server.ask("/metrics").body.decode()
            )
            os.kill(server.executors()[0], signal.SIGKILL)
            answer = call.result()
        assert (answer.status, "SIGKILL" in answer.json["error"]) == (500, True)
        server.until(lambda: server.status("/v2/health/ready") == 200)
        assert server.infer("slow", x=("INT64", [1, 1], [3])).json["outputs"][0]["data"] == [3]


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"\x08\x07\x12", None], ids=["empty", "text", "cut", "truncated"]
)
def test_a_corrupt_file_is_told_and_harms_no_other(tmp_path: Path, content: bytes | None) -> None:
    models.doubled(tmp_path / "double/1/model.onnx")
    broken = models.mlp(tmp_path / "broken/1/model.onnx", (64, 64, 4))
    broken.write_bytes(broken.read_bytes()[:2000] if content is None else content)
    with onnx("--models", str(tmp_path), wait=False) as server:
        server.until(lambda: server.status("/v2/models/double/ready") == 200)
        server.until(lambda: "UNAVAILABLE" in server.ask("/v2/repository/index", {}).body.decode())
        assert server.status("/v2/health/ready") == 503
        answer = server.ask("/v2/models/broken/ready")
        assert (answer.status, "cannot be loaded" in answer.json["error"]) == (503, True)
        assert one(server, "broken") == 503
        loaded = server.ask("/v2/repository/models/broken/load", {})
        assert (loaded.status, "cannot be loaded" in loaded.json["error"]) == (400, True)
        assert one(server) == 200
        models.doubled(broken)
        assert server.ask("/v2/repository/models/broken/load", {}).status == 200
        assert one(server, "broken") == 200
        assert server.status("/v2/health/ready") == 200


def test_an_unload_gives_the_memory_back(tmp_path: Path) -> None:
    """Within 5 %, after traffic, twice over."""
    models.mlp(tmp_path / "big/1/model.onnx", (512, 2048, 2048, 10))
    with onnx("--models", str(tmp_path)) as server:
        server.ask("/v2/repository/models/big/unload", {})
        before = server.resident()
        for _ in range(2):
            assert server.ask("/v2/repository/models/big/load", {}).status == 200
            assert server.infer("big", x=("FP32", [64, 512], [0.5] * 64 * 512)).status == 200
            assert server.resident() > 1.5 * before
            assert server.ask("/v2/repository/models/big/unload", {}).status == 200
            assert server.executors() == []
        assert server.resident() < 1.05 * before
        assert server.status("/v2/models/big/ready") == 404


def index(server: Onnx) -> list[tuple[Any, Any]]:
    return [(row.get("version"), row.get("state")) for row in server.ask("/v2/repository/index", {}).json]


def policy(text: str) -> dict[str, Any]:
    return {"parameters": {"config": f'{{"version_policy": {text}}}'}}


def test_versions_are_loaded_as_the_policy_says(tmp_path: Path) -> None:
    for version in (1, 2, 10):
        models.mlp(tmp_path / f"m/{version}/model.onnx", (4, 4), seed=version)
    (tmp_path / "m/notes").mkdir()
    (tmp_path / "m/11").mkdir()  # without a model
    with onnx("--models", str(tmp_path)) as server:
        load = "/v2/repository/models/m/load"
        assert index(server) == [("10", "READY")]
        assert server.ask(load, policy('{"all": {}}')).status == 200
        assert server.ask("/v2/models/m").json["versions"] == ["10", "1", "2"]
        answers = {server.ask(f"/v2/models/m/versions/{one}/infer", _row()).body for one in (1, 2, 10)}
        assert len(answers) == 3
        assert server.ask("/v2/models/m/infer", _row()).json["model_version"] == "10"
        assert server.ask(load, policy('{"specific": {"versions": [2]}}')).status == 200
        assert index(server) == [("2", "READY")]
        assert len(server.executors()) == 1
        for wrong in ('{"specific": {"versions": [7]}}', '{"specific": 3}', '"none"'):
            assert server.ask(load, policy(wrong)).status == 400
        assert server.ask(load, {"parameters": {"file:1/model.onnx": "AAAA"}}).status == 400
        assert index(server) == [("2", "READY")]


def test_a_new_file_is_loaded_in_place_of_the_old(tmp_path: Path) -> None:
    path = models.mlp(tmp_path / "m/1/model.onnx", (4, 4), seed=1)
    with onnx("--models", str(tmp_path)) as server:
        before, executor = server.ask("/v2/models/m/infer", _row()).body, server.executors()
        assert server.ask("/v2/repository/models/m/load", {}).status == 200
        assert server.executors() == executor  # the same file: nothing to do
        fresh = models.mlp(tmp_path / "fresh.onnx", (4, 4), seed=2)
        shutil.move(fresh, path)
        assert server.ask("/v2/repository/models/m/load", {}).status == 200
        assert server.executors() != executor
        assert server.ask("/v2/models/m/infer", _row()).body != before


def _row() -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


def test_executors_end_with_the_front(tmp_path: Path) -> None:
    path = models.doubled(tmp_path / "m.onnx")
    with onnx("--model", f"m={path}") as server:
        (executor,) = server.executors()
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + 10
        while alive(executor):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def started(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "penstock.serving.runtimes.onnx", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stderr.strip().splitlines()[-1]


def test_what_it_cannot_serve_or_listen_on_is_said(tmp_path: Path) -> None:
    model = ("--model", f"m={models.doubled(tmp_path / 'm.onnx')}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, said = started(*model, "--http", port)
        assert (code, "Address already in use" in said) == (6, True)
        code, said = started(*model, "--http", "0", "--grpc", port)
        assert (code, said.endswith(f"port {port}, for gRPC: it is taken")) == (6, True)
    code, said = started("--models", str(tmp_path / "nowhere"))
    assert (code, said.endswith("nowhere: is no folder")) == (2, True)
    code, said = started("--model", "../m=/etc/passwd")
    assert (code, "model name '../m'" in said) == (2, True)
