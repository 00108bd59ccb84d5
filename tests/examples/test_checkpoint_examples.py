"""The examples of checkpoints, as users start them: stopped, started again on as many ranks or fewer, they go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = 30


def losses(output: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"^step (\d+) loss ([\d.]+)$", output, re.MULTILINE)}


def run(example: str, ranks: int, steps: int, directory: Path) -> dict[int, float]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*(launcher if ranks else [sys.executable]), f"examples/checkpoint/{example}.py"]
    done = subprocess.run(
        [*command, "--steps", str(steps), "--dir", str(directory)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return losses(done.stdout)


def test_plain_goes_on_to_the_last_bit(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    whole = run("plain", 0, 400, tmp_path / "whole")
    command = [sys.executable, "examples/checkpoint/plain.py", "--steps", "400", "--dir", str(tmp_path / "parts")]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    processes.append(first)
    assert first.stdout is not None
    began = "".join(first.stdout.readline() for _ in range(100))
    first.send_signal(signal.SIGTERM)
    said = losses(began + first.stdout.read())
    first.stdout.close()
    assert first.wait(60) == 0
    rest = run("plain", 0, 400, tmp_path / "parts")
    assert min(rest) == max(said) + 1
    assert all(whole[step] == loss for step, loss in (said | rest).items())


@pytest.mark.real
@pytest.mark.parametrize("example", ["ddp", "fsdp2"])
def test_ranks_go_on(tmp_path: Path, example: str) -> None:
    whole = run(example, 2, STEPS + 20, tmp_path / "whole")
    run(example, 2, STEPS, tmp_path / "parts")
    same = run(example, 2, STEPS + 20, tmp_path / "parts")
    assert min(same) == 20
    assert all(whole[step] == loss for step, loss in same.items())
    run(example, 2, STEPS, tmp_path / "fewer")
    fewer = run(example, 1, STEPS + 20, tmp_path / "fewer")
    assert min(fewer) == 20
    assert all(whole[step] == pytest.approx(loss, rel=1e-6) for step, loss in fewer.items())
    more = run(example, 2, STEPS + 40, tmp_path / "fewer")  # saved on one rank, loaded on two
    assert min(more) == 40
    assert all(whole[step] == pytest.approx(loss, rel=1e-5) for step, loss in more.items() if step in whole)
