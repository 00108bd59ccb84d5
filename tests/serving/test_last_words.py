"""How a replica ended, in its own words: never in older ones."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.jobs.state import Phase
from penstock.serving.jobs import seen_of

OLD = "INFO 200 GET /v2/health"


@pytest.mark.parametrize(
    ("signal", "lines", "told"),
    [
        (9, [OLD], "Crashed: was killed by signal 9"),
        (None, [OLD, "penstock: the runtime onnx was ended by signal 9"], "the runtime onnx was ended by signal 9"),
        (
            None,
            ["penstock: the runtime onnx was ended by signal 9 before it was ready", OLD],
            "the runtime onnx was ended by signal 9 before it was ready",
        ),
        (
            None,
            ["ImportError: no torch", "penstock: the runtime command ended with exit code 1 before it was ready"],
            "the runtime command ended with exit code 1 before it was ready",
        ),
        (
            None,
            ["penstock: the runtime onnx was ended by signal 11", "Fatal Python error: Segmentation fault"],
            "the runtime onnx was ended by signal 11 / Fatal Python error: Segmentation fault",
        ),
    ],
)
def test_last_words(signal: int | None, lines: list[str], told: str) -> None:
    row: Any = SimpleNamespace(
        phase=Phase.FAILED,
        signal=signal,
        exit_code=1,
        failures=json.dumps([{"lines": lines}]),
        reason="Crashed",
        message="was killed by signal 9",
    )
    assert seen_of(row, {}, "").message == told
