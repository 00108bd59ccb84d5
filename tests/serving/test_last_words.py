"""How a replica ended, in its own words: never in older ones."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.jobs.state import Phase
from penstock.serving.jobs import seen_of
from penstock.serving.told import OWN, ended

OLD = "INFO 200 GET /v2/health"


@pytest.mark.parametrize(
    ("signal", "lines", "told"),
    [
        (9, [OLD], "Crashed: was killed by signal 9"),
        (None, [OLD, OWN + ended("onnx", -9, ready=True)], "the runtime onnx was ended by signal 9"),
        (
            None,
            [OWN + ended("onnx", -9, ready=False), OLD],
            "the runtime onnx was ended by signal 9 before it was ready",
        ),
        (
            None,
            ["ImportError: no torch", OWN + ended("command", 1, ready=False)],
            "the runtime command ended with exit code 1 before it was ready",
        ),
        (
            None,
            [OWN + ended("onnx", -11, ready=True), "Fatal Python error: Segmentation fault"],
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
