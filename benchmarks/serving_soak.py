"""The built-in ONNX server under broken requests, read from the last `make soak` (build/soak.json), which must be of this commit."""

from __future__ import annotations

import sys

from benchmarks import soak
from benchmarks.harness import Bar, alone

# What tests/serving/onnx/test_soak.py records while callers send the ONNX server what is broken and its models' processes are killed.
BARS = (
    ("ONNX server fuzzed: requests, all with the status that they deserve", "requests", 1000.0, "at least"),
    ("its models' processes killed meanwhile", "killed", 6.0, "at least"),
    ("memory that it kept, MB", "grown_mb", 64.0, "at most"),
)


def measure() -> list[Bar]:
    return soak.read(BARS, "onnx_fuzz")


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
