"""The example of data: stopped, and started again on as many ranks or fewer, it goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from penstock.worker.data.prepare import Options, prepare
from tests.examples.test_checkpoint_examples import ROOT, losses


def run(data: str, ranks: int, steps: int, directory: Path) -> dict[int, float]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    script = ["examples/data/train.py", "--data", data, "--steps", str(steps), "--dir", str(directory)]
    done = subprocess.run([*launcher, *script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return losses(done.stdout)


@pytest.mark.real
def test_the_loss_goes_on(tmp_path: Path) -> None:
    data = str(tmp_path / "tokens")
    prepare([str(ROOT / "README.md")], data, Options(as_bytes=True, block_size=64, chunk_bytes=2000))
    whole = run(data, 2, 50, tmp_path / "whole")
    run(data, 2, 30, tmp_path / "parts")
    same = run(data, 2, 40, tmp_path / "parts")
    assert min(same) == 20
    assert all(whole[step] == loss for step, loss in same.items())
    fewer = run(data, 1, 50, tmp_path / "parts")
    assert min(fewer) == 40
    assert all(abs(whole[step] - loss) <= 1e-6 for step, loss in fewer.items())
