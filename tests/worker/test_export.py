"""A model's way to ONNX: what is written answers as PyTorch does, and what does not is not written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from penstock.worker import export


class Drifting(nn.Module):
    """Answers otherwise in evaluation once it was exported: what a stateful model does."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x.sum(1, keepdim=True) + (0.0 if torch.compiler.is_exporting() else 0.01)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))


def test_what_is_written_answers_as_the_model_for_any_batch(tmp_path: Path) -> None:
    model = small().train()
    found = export.to_onnx(model, torch.randn(8, 6), tmp_path / "deep" / "m.onnx", outputs=("scores",))
    assert model.training, "it is left as it was"
    assert (found.inputs, found.outputs, found.same_top1) == (("input",), ("scores",), 1.0)
    session = onnxruntime.InferenceSession(str(tmp_path / "deep" / "m.onnx"))
    x = torch.randn(11, 6)
    (answer,) = session.run(None, {"input": x.numpy()})
    assert torch.allclose(torch.from_numpy(answer), model.eval()(x), atol=1e-5)
    assert os.listdir(tmp_path / "deep") == ["m.onnx"]


def test_an_export_that_answers_otherwise_is_not_left(tmp_path: Path) -> None:
    with pytest.raises(export.ExportFailed, match=r"output output\[\d+, 0\]: PyTorch says .* the export"):
        export.to_onnx(Drifting(), torch.randn(4, 3), tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("example", "words"),
    [(torch.randn(1, 6), "at least 2 samples"), (torch.tensor(1.0), "at least 2 samples"), ([], "0 example inputs")],
)
def test_an_example_that_cannot_be_used_is_told(tmp_path: Path, example: torch.Tensor, words: str) -> None:
    with pytest.raises(export.ExportFailed, match=words):
        export.to_onnx(small(), example, tmp_path / "m.onnx")


def test_the_command_line_takes_weights_of_torch_and_of_safetensors(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(3, 2)\n")
    weights = nn.Linear(3, 2).state_dict()
    torch.save({"model": weights, "step": 3}, tmp_path / "last.pt")
    save_file(weights, str(tmp_path / "w.safetensors"))
    base = [sys.executable, "-m", "penstock.worker.export", "shapes:build", "--input", "x:float32[3]"]
    for extra in (["--weights", "last.pt", "--key", "model"], ["--weights", "w.safetensors"]):
        done = subprocess.run(
            [*base, "--to", "m.onnx", *extra], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout.splitlines()[-1])["inputs"] == ["x"]
        (answer,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": [[1.0, 0.0, 0.0]]})
        assert answer[0] == pytest.approx((weights["weight"][:, 0] + weights["bias"]).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere:build", "--input", "x:float32[3]"], "is not there"),
        (["builtins", "--input", "x:float32[3]"], "MODULE:FUNCTION"),
        (["builtins:dict", "--input", "x:float32[3]"], "not a torch.nn.Module"),
        (["builtins:dict", "--input", "x:floaty[3]"], "says no input"),
    ],
)
def test_bad_words_are_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([*words, "--to", "m.onnx"]) == 1
    assert told in capsys.readouterr().err


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch run",)

    torch.save({"model": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(export.ExportFailed, match="do not fit"):
        export.load(small(), str(tmp_path / "evil.pt"), "model")
    assert not Path("run").exists()


def test_it_is_imported_by_its_public_name_too() -> None:
    for words in ("import penstock.export", "import penstock"):
        code = f"{words}; print(penstock.export.to_onnx.__module__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "penstock.worker.export"
