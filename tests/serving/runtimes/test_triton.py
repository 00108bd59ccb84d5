"""Triton's repository: what is rendered, and that a real tritonserver composes three steps as they compose by hand."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput
from penstock.serving.formats import tell
from penstock.serving.runtimes.spec import Batching, Format, Model, Options, Ports, Request
from penstock.serving.runtimes.triton.repository import Settings, Signature, Step, Tensor, config, ensemble, joined
from penstock.serving.runtimes.triton.runtime import TritonRuntime
from penstock.serving.runtimes.triton.start import parse, prepare, visible
from tests.serving.onnx import models
from tests.serving.runtimes.worlds import WORLDS, running

STEPS = """\
steps:
  - {model: twice, inputs: {x: picture}, outputs: {y: bright}}
  - {model: layers, inputs: {x: bright}, outputs: {y: raw}}
  - {model: again, inputs: {x: raw}, outputs: {y: scores}}
"""


def composed(folder: Path) -> Path:
    folder.mkdir()
    models.doubled(folder / "twice.onnx", ("batch", 4))
    models.mlp(folder / "layers.onnx", [4, 8, 3])
    models.doubled(folder / "again.onnx", ("batch", 3))
    (folder / "ensemble.yaml").write_text(STEPS)
    return folder


@pytest.mark.real
@pytest.mark.needs("tritonserver")
def test_three_steps_answer_as_they_do_by_hand(tmp_path: Path) -> None:
    source = composed(tmp_path / "source")
    assert tell(str(source)).format is Format.TRITON
    x = np.random.default_rng(1).standard_normal((5, 4)).astype("f4")
    value = x
    for name in ("twice", "layers", "again"):
        (value,) = onnxruntime.InferenceSession(str(source / f"{name}.onnx")).run(None, {"x": value})
    with running(WORLDS["triton"], tmp_path, Model("all", 1, str(source), Format.TRITON)) as started:
        started.wait_ready()
        told = started.described()
        assert [entry["name"] for entry in told["inputs"]] == ["picture"]
        assert [entry["name"] for entry in told["outputs"]] == ["scores"]
        inputs = [{"name": "picture", "datatype": "FP32", "shape": [5, 4], "data": x.ravel().tolist()}]
        status, body = started.ask(Request("POST", "/v2/models/all/infer", json.dumps({"inputs": inputs}).encode()))
        assert status == 200, body
        assert json.loads(body)["outputs"][0]["data"] == pytest.approx(value.ravel().tolist(), abs=1e-5)


def test_a_repository_of_ones_own_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "own" / "a").mkdir(parents=True)
    (tmp_path / "own" / "a" / "config.pbtxt").write_text("")
    assert prepare(tmp_path / "made", str(tmp_path / "own"), "s", 1, Settings("python")) == ["a"]
    assert (tmp_path / "made" / "a" / "config.pbtxt").is_file()
    (tmp_path / "own" / "a" / "config.pbtxt").unlink()
    with pytest.raises(InvalidInput, match=r"no ensemble.yaml and no config.pbtxt"):
        prepare(tmp_path / "other", str(tmp_path / "made" / "a"), "s", 1, Settings("python"))


ONE = Signature((Tensor("x", "tensor(float)", (-1, 4)),), (Tensor("y", "tensor(int64)", (-1,)),))


def test_what_is_rendered() -> None:
    text = config("m", ONE, Settings("onnxruntime", Batching(16, (4, 8), 0.002), 2, (0, 1)))
    assert text == (
        'name: "m"\nbackend: "onnxruntime"\nmax_batch_size: 16\n'
        'input [ { name: "x" data_type: TYPE_FP32 dims: [4] } ]\n'
        'output [ { name: "y" data_type: TYPE_INT64 dims: [1] reshape { shape: [ ] } } ]\n'
        "instance_group [ { count: 2, kind: KIND_GPU, gpus: [0, 1] } ]\n"
        'parameters { key: "intra_op_thread_count" value { string_value: "1" } }\n'
        "dynamic_batching { max_queue_delay_microseconds: 2000 preferred_batch_size: [4, 8] }\n"
    )
    fixed = Signature((Tensor("x", "tensor(float)", (1, 4)),), (Tensor("y", "tensor(float)", (1, 2)),))
    assert "max_batch_size: 0\n" in config("m", fixed, Settings("python"))
    assert "dynamic_batching" not in config("m", fixed, Settings("python"))
    with pytest.raises(InvalidInput, match="cannot serve") as caught:
        config("m", Signature((Tensor("s", "sequence(tensor(float))", ()),), ()), Settings("python"))
    assert caught.value.details[0].path == "m.s"


def test_instances_are_ours_and_other_words_tritonservers() -> None:
    model, ports = Model("m", 1, "/m.onnx", Format.ONNX), Ports(1, 2, 3)
    argv = TritonRuntime().launch(model, Options(args=("--instances=2", "--log-verbose=1")), ports, "/w").argv
    assert argv[-3:] == ("--instances=2", "--", "--log-verbose=1")


@pytest.mark.parametrize(("told", "gpus"), [("", ()), ("3,5", (0, 1)), ("GPU-8f1c", (0,))])
def test_triton_counts_the_jobs_gpus_from_0(told: str, gpus: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
    assert visible() == gpus


WRONG = {
    "an unknown model": ([Step("no", {}, {})], "steps[0].model"),
    "an unknown tensor": ([Step("one", {"x": "a", "z": "b"}, {"y": "c"})], "steps[0].inputs.z"),
    "an input that nobody gives": ([Step("one", {}, {"y": "c"})], "steps[0].inputs"),
    "two makers": ([Step("one", {"x": "a"}, {"y": "c"}), Step("one", {"x": "a"}, {"y": "c"})], "steps[1].outputs"),
    "types that differ": (
        [Step("one", {"x": "a"}, {"y": "c"}), Step("one", {"x": "c"}, {"y": "d"})],
        "steps[1].inputs.x",
    ),
    "nothing": ([], "steps"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_together_is_told(case: str) -> None:
    steps, path = WRONG[case]
    with pytest.raises(InvalidInput) as caught:
        ensemble("all", steps, {"one": ONE}, 8)
    assert path in [problem.path for problem in caught.value.details]


def test_a_circle_is_told() -> None:
    same = Signature((Tensor("x", "tensor(float)", (-1, 4)),), (Tensor("y", "tensor(float)", (-1, 4)),))
    with pytest.raises(InvalidInput) as caught:
        joined([Step("s", {"x": "b"}, {"y": "a"}), Step("s", {"x": "a"}, {"y": "b"})], {"s": same})
    assert {problem.path for problem in caught.value.details} == {"steps[0]", "steps[1]"}


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=6, unique=True))
def test_a_chain_takes_its_first_and_gives_its_last(names: list[str]) -> None:
    same = Signature((Tensor("x", "tensor(float)", (-1, 4)),), (Tensor("y", "tensor(float)", (-1, 4)),))
    steps = [Step("s", {"x": a}, {"y": b}) for a, b in pairwise(names)]
    inputs, outputs = joined(steps, {"s": same})
    assert ([t.name for t in inputs], [t.name for t in outputs]) == ([names[0]], [names[-1]])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "steps: 3",
        "steps: [1]",
        "steps: [{model: a}]",
        "a: &x [*x]",
        "steps:\n  - {model: a, inputs: {x: 1}, outputs: {}}",
    ],
)
def test_an_ensemble_that_cannot_be_read_is_told(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"ensemble.yaml|YAML|file"):
        parse(text)
