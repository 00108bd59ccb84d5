"""The digits example under the real torchrun: it learns, and a kill at any moment changes nothing of the result."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.real

TRAIN = Path(__file__).resolve().parents[2] / "examples" / "digits" / "train.py"
SHORT = ("--epochs", "10", "--checkpoint-every", "20")  # 110 steps


class Run:
    def __init__(self, folder: Path, *arguments: str, ranks: int = 2, restarts: int = 0) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        torchrun = [
            "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", f"--max_restarts={restarts}",
            "--monitor_interval=0.1",
        ]  # fmt: skip
        # The variables that engines/launchers.py gives; without the second one restarted ranks may hang.
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "PET_LOCAL_ADDR": "127.0.0.1",
        }
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(torchrun if ranks > 1 else ()), str(TRAIN), *arguments],
                cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def wait_for(self, text: str, count: int = 1) -> None:
        deadline = time.monotonic() + 240
        while self.log().count(text) < count:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def ranks(self) -> list[int]:
        """Pids of the ranks: children of the agent. (Each is the leader of a session of its own.)"""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def kill(self) -> None:
        for pid in (*self.ranks(), self.process.pid):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def end(self) -> dict[str, Any]:
        assert self.process.wait(timeout=240) == 0, self.log()
        return dict(json.loads((self.folder / "result.json").read_text()))

    def weights(self) -> dict[str, Any]:
        return dict(torch.load(self.folder / "checkpoints" / "last.pt", weights_only=True)["model"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("undisturbed"), *SHORT)
    run.end()
    return run


def same(one: Run, other: Run) -> bool:
    ours, theirs = one.weights(), other.weights()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_learns(tmp_path: Path) -> None:
    run = Run(tmp_path)
    result = run.end()
    assert result["accuracy"] >= 0.97
    assert "test accuracy" in run.log()


def test_one_process_needs_no_launcher(tmp_path: Path) -> None:
    assert Run(tmp_path, *SHORT, ranks=1).end()["world_size"] == 1


def test_a_rank_killed_under_torchrun_changes_nothing_of_the_result(tmp_path: Path, undisturbed: Run) -> None:
    run = Run(tmp_path, *SHORT, restarts=2)
    run.wait_for("checkpoint at step 40")
    os.kill(run.ranks()[1], signal.SIGKILL)
    result = run.end()
    assert result["resumed_at"] >= 40
    assert same(run, undisturbed)


@pytest.mark.parametrize("seed", range(3))
def test_everything_killed_at_any_moment_changes_nothing_of_the_result(
    tmp_path: Path, undisturbed: Run, seed: int
) -> None:
    run = Run(tmp_path, *SHORT)
    run.wait_for("a fresh start")
    time.sleep(random.Random(seed).uniform(0, 4))  # the moment is the point here
    if run.process.poll() is None:
        run.kill()
    run = Run(tmp_path, *SHORT)
    result = run.end()
    assert result["steps"] == 110
    assert same(run, undisturbed)


def test_a_torn_write_is_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt.4711").write_bytes(b"half of a checkp")
    assert Run(tmp_path, *SHORT, ranks=1).end()["resumed_at"] == 0
