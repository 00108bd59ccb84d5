"""Submit to first log line, as a person sees it: from the start of `penstock run` to the line on its output."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Bar, alone, spread
from benchmarks.ours import PENSTOCK, Server, server

RUNS = 21
MARK = b"first-line-of-the-job"


def once(running: Server, folder: str) -> float:
    """Wall seconds of one run up to its first line; the run itself is waited for."""
    command = [PENSTOCK, "run", "--cpus", "0.1", "--workdir", folder, "--", "echo", MARK.decode()]
    began = time.monotonic()
    with subprocess.Popen(
        command, env=running.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        seen = b""
        while MARK not in seen:
            chunk = process.stdout.read1(65536)  # type: ignore[attr-defined] # a buffered reader, not plain IO[bytes]
            if not chunk:
                raise RuntimeError(f"no line came: {process.stderr.read()[-300:]!r}")
            seen += chunk
        took = time.monotonic() - began
        process.stdout.read()
        process.stderr.read()
    return took


def measure() -> list[Bar]:
    with tempfile.TemporaryDirectory() as folder, server("submit") as running:
        (Path(folder) / "train.py").write_text("print('hello')\n")
        once(running, folder)
        values = [once(running, folder) for _ in range(RUNS)]
    note = f"{spread(values, ' s')}; Slurm 0.7-2.7, Ray 6.3"
    return [Bar("submit -> first log line in the CLI", statistics.median(values), 0.5, "s", note=note)]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
