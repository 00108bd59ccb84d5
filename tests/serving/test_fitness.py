"""What speaks against a model, and what a process says of one."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.client.snapshot import take_model
from penstock.serving.fitness import fit
from penstock.serving.formats import Found
from penstock.serving.runtimes.spec import Format, Options
from tests.serving.test_formats import ONNX

SERVER = Options(command=("serve", "{port}"))


@pytest.mark.parametrize(
    ("format_", "named", "options", "pickles", "runtime", "words"),
    [
        (Format.ONNX, None, Options(), False, "onnx", ""),
        (Format.ONNX, "vllm", Options(), False, "vllm", "is onnx; the runtime vllm takes"),
        (Format.SAFETENSORS, None, Options(), False, "", "--exporter"),
        (Format.UNKNOWN, None, Options(), False, "", "cannot be served: torn"),
        (Format.UNKNOWN, "command", SERVER, False, "command", ""),
        (Format.PICKLE, "command", SERVER, False, "", "is a pickle"),
        (Format.PICKLE, "command", SERVER, True, "command", ""),
        (Format.PICKLE, None, Options(), True, "", "is served by no runtime here"),
    ],
)
def test_what_speaks_against_a_model(
    format_: Format, named: str | None, options: Options, pickles: bool, runtime: str, words: str
) -> None:
    name, problems = fit(Found(format_, "model", "torn"), named, options, pickles=pickles)
    assert name == runtime
    assert words in " ".join(one.message for one in problems)
    assert bool(words) == bool(problems)


def told(*argv: str, snapshot: Path | None = None) -> dict[str, str]:
    command = [sys.executable, "-m", "penstock.serving.telling", *argv]
    with open(snapshot or "/dev/null", "rb") as source:
        return dict(json.loads(subprocess.run(command, stdin=source, check=True, capture_output=True).stdout))


def test_a_process_tells_of_a_file_and_of_one_in_a_snapshot(tmp_path: Path) -> None:
    model, snapshot, room = tmp_path / "net.onnx", tmp_path / "snapshot", tmp_path / "room"
    model.write_bytes(ONNX)
    assert told(str(model))["format"] == "onnx"
    assert told(f"{model}.gone")["error"] == "cannot be read: No such file or directory"
    model.write_bytes(pickle.dumps([1]))
    snapshot.write_bytes(b"".join(take_model(str(model)).pieces))
    room.mkdir()
    assert told("net.onnx", str(room), snapshot=snapshot)["format"] == "pickle"
    assert "damaged" in told("net.onnx", str(room), snapshot=model)["error"]
