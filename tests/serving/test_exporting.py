"""Weights and the function that builds their module become a model that can be served."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn

from penstock.base.errors import InvalidInput
from penstock.serving.exporting import to_onnx
from penstock.serving.formats import tell
from penstock.serving.runtimes.spec import Format


def test_weights_become_a_model_of_the_users_own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shapes.py").write_text("from torch import nn\ndef build():\n    return nn.Linear(3, 2)\n")
    save_file(nn.Linear(3, 2).state_dict(), str(tmp_path / "w.safetensors"))
    monkeypatch.chdir(tmp_path)
    parity = to_onnx("w.safetensors", "shapes:build", ["x:float32[3]"], str(tmp_path / "m.onnx"), None)
    assert parity["difference"] <= parity["tolerance"]
    assert tell(str(tmp_path / "m.onnx")).format is Format.ONNX


def test_what_the_exporter_says_is_told(tmp_path: Path) -> None:
    save_file(nn.Linear(3, 2).state_dict(), str(tmp_path / "w.safetensors"))
    target = str(tmp_path / "m.onnx")
    with pytest.raises(InvalidInput, match="not exported") as caught:
        to_onnx(str(tmp_path / "w.safetensors"), "nowhere:build", ["x:float32[3]"], target, None)
    assert "nowhere:build is not there" in caught.value.details[0].message
    with pytest.raises(InvalidInput, match="inputs"):
        to_onnx(str(tmp_path / "w.safetensors"), "nowhere:build", [], target, None)
    with pytest.raises(InvalidInput, match="could not be run"):
        to_onnx("w", "a:b", ["x:float32[3]"], target, str(tmp_path / "no-venv"))
