"""What every runtime owes a replica, each as a real process: ready once loaded, warmed by one request, read, drained."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.runtimes.spec import Batching, Format, Load, Options, Ports
from tests.serving.runtimes.worlds import WORLDS, World, running

REAL = [pytest.mark.real, pytest.mark.needs("tritonserver")]
every = pytest.mark.parametrize(
    "world", [pytest.param(w, id=n, marks=REAL if n == "triton" else ()) for n, w in WORLDS.items()]
)
pure = pytest.mark.parametrize("world", [pytest.param(w, id=n) for n, w in WORLDS.items()])


@every
def test_it_is_ready_once_loaded_warmed_by_one_request_and_read(world: World, tmp_path: Path) -> None:
    with running(world, tmp_path) as started:
        assert not started.ready(), "not before it has begun"
        started.wait_ready()
        first = world.runtime.warming(started.model, started.described())
        if world.name != "command":
            assert first is not None
            status, body = started.ask(first)
            assert 200 <= status < 300, body
            json.loads(body)
        page = world.runtime.metrics()
        if page is not None:
            status, text = started.ask(page)
            load = world.runtime.load(text.decode())
            assert status == 200
            assert load.compute_s is not None and load.compute_s > 0, "it has computed, and says how long"
            assert load.waiting == 0
        assert started.stop() in ((0, -signal.SIGTERM) if world.name == "command" else (0,))


@every
def test_what_it_has_begun_is_answered_before_it_ends(world: World, tmp_path: Path) -> None:
    if world.slow is None:
        return  # a command's own affair
    answers: list[int] = []
    with running(world, tmp_path) as started:
        started.wait_ready()
        asked = world.slow(started.model)
        thread = threading.Thread(target=lambda: answers.append(started.ask(asked)[0]))
        thread.start()
        time.sleep(0.3)
        assert started.stop() == 0
        thread.join(30)
    assert answers == [200]


@every
def test_a_model_that_cannot_be_loaded_is_never_ready(world: World, tmp_path: Path) -> None:
    if world.broken is None:
        return  # nothing that it would load itself
    with running(world, tmp_path, world.broken(tmp_path)) as started:
        until = time.monotonic() + 4
        while time.monotonic() < until and started.process.poll() is None:
            assert not started.ready()
            time.sleep(0.1)


@pure
def test_what_it_does_not_take_is_refused_with_its_path(world: World, tmp_path: Path) -> None:
    kind = world.runtime
    (tmp_path / "x").mkdir()
    fine = world.options(tmp_path / "x")
    assert kind.validate(fine, next(iter(kind.formats), None)) == []
    if kind.formats:
        assert [p.path for p in kind.validate(fine, Format.PICKLE)] == ["model"]
        assert [p.path for p in kind.validate(Options(command=("a", "{port}")), None)] == ["command"]
        wrong = Options(batching=Batching(most=2, preferred=(8,)))
        assert [p.path.split(".")[0] for p in kind.validate(wrong, None)] == ["batching"]
    else:
        assert [p.path for p in kind.validate(Options(), None)] == ["command"]


@pure
def test_how_it_is_started_is_a_function_of_what_it_is_told(world: World, tmp_path: Path) -> None:
    model, options = world.make(tmp_path), world.options(tmp_path)
    launches = {str(world.runtime.launch(model, options, Ports(1001, 1002, 1003, "10.0.0.7"), "/w")) for _ in range(3)}
    assert len(launches) == 1
    (launch,) = launches
    assert "1001" in launch


@pure
@given(
    text=st.text()
    | st.from_regex(r"(nv_inference_count|vllm:num_requests_running|penstock_infer_running)\{?.{0,20}\n?")
)
def test_any_page_is_read(world: World, text: str) -> None:
    assert isinstance(world.runtime.load(text), Load)
