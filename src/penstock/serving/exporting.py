"""Weights become ONNX on their way to the server: by the user's own module, in the user's own environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from penstock.base.errors import InvalidInput, Problem

_TIMEOUT_S = 1800.0
_SAID = 2000  # characters of what the exporter said


def to_onnx(weights: str, factory: str, inputs: Sequence[str], target: str, venv: str | None) -> dict[str, Any]:
    """Writes ``target``; answers the parity that was found. Raises InvalidInput, with what the exporter said."""
    if not inputs:
        raise InvalidInput(
            "an exporter needs the model's inputs", hint="Say --input NAME:TYPE[SIZES], without the batch."
        )
    python = os.path.join(venv, "bin", "python") if venv else sys.executable
    words = [python, "-m", "penstock.worker.export", factory, "--weights", os.path.abspath(weights), "--to", target]
    for text in inputs:
        words += ["--input", text]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidInput(f"the exporter could not be run: {error}") from error
    if done.returncode:
        own = done.stderr.rfind("export: ")  # what it says itself comes last, after PyTorch's own lines
        said = (done.stderr[own + len("export: ") :] if own >= 0 else done.stderr).strip()
        hint = "Is it what the model takes? --input says types and sizes without the batch."
        if "No module named" in said:
            hint = "It needs `pip install 'penstock[export]'` in the environment that has the model's code."
        raise InvalidInput("the model was not exported", details=[Problem("--exporter", said[:_SAID])], hint=hint)
    parity: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return parity
