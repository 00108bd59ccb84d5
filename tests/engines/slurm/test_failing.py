"""Whose end brought the ranks down, and how far they had come: from run folders as the shim of a real shell leaves them."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from penstock.engines.slurm import failing, restarts, script
from penstock.engines.slurm.files import NearFiles
from penstock.engines.slurm.restarts import Start
from penstock.engines.spec import Failure

REPORT = 'echo \'{"step": %d}\' >&"$PENSTOCK_REPORT_FD"'


def rank(run: Path, number: int, body: str, **environment: str) -> int:
    """One life of a rank, by the shim that stands before it on a node."""
    told = {"PATH": os.environ["PATH"], "SLURMD_NODENAME": f"n{number}", "RANK": str(number), **environment}
    words = ("sh", "-c", script._SHIM, "penstock-rank", str(run), "", "sh", "-c", body)
    return subprocess.run(words, env=told, check=False).returncode


def made(path: Path) -> Path:
    for name in ("logs", "progress", "ranks"):
        (path / name).mkdir()
    return path


def told(run: Path, *, over: bool, requeues: int = 0, world: int = 2) -> tuple[list[Start], Sequence[Failure]]:
    async def main() -> tuple[list[Start], Sequence[Failure]]:
        files = NearFiles(str(run), None)
        begun, known = await failing.read(files, world, 1.0, requeues, "c1-")
        return begun, await failing.failures(files, known, over=over)

    return asyncio.run(main())


def test_each_life_has_its_cause_its_step_and_its_last_words(tmp_path: Path) -> None:
    run = made(tmp_path)
    for life, step in enumerate((7, 5)):
        assert rank(run, 1, f"{REPORT % step}; echo bad batch {life} >&2; exit 3") == 3
        rank(run, 0, f"{REPORT % (step - 1)}; echo peer is gone; kill -TERM $$")
    begun, found = told(run, over=False)
    assert [(one.total, one.requeues, one.restart) for one in begun] == [(1, 0, 1)]
    assert [(f.restart, f.rank, f.node, f.exit_code, f.step, f.lines) for f in found] == [
        (0, 1, "c1-n1", 3, 7, ("bad batch 0",))
    ]
    _, found = told(run, over=True)
    assert [(f.restart, f.step, f.lines) for f in found] == [(0, 7, ("bad batch 0",)), (1, 5, ("bad batch 1",))]


def test_a_life_without_a_report_reached_nothing_whatever_the_one_before_did(tmp_path: Path) -> None:
    run = made(tmp_path)
    rank(run, 0, f"{REPORT % 40}; exit 1")
    rank(run, 0, "exit 1")
    _, found = told(run, over=True, world=1)
    assert [(f.restart, f.step) for f in found] == [(0, 40), (1, None)]


def test_a_rank_whose_shim_was_killed_too_still_counts_its_lives(tmp_path: Path) -> None:
    run = made(tmp_path)
    assert rank(run, 0, "kill -KILL $PPID; exit 1") == -9  # no word of its end
    rank(run, 1, "exit 4")
    rank(run, 0, "exit 5")
    rank(run, 1, "sleep 0.2; exit 4")
    _, found = told(run, over=True)
    assert [(f.restart, f.rank, f.exit_code) for f in found] == [(0, 1, 4), (1, 0, 5)]


def test_lives_are_numbered_through_requeues(tmp_path: Path) -> None:
    run = made(tmp_path)
    rank(run, 0, "exit 1")
    rank(run, 0, "exit 1")
    (run / "ranks/0").unlink()  # as the batch script does, of a run that was taken back
    for _ in range(2):
        rank(run, 0, "exit 1", SLURM_RESTART_COUNT="1")
    begun, found = told(run, over=True, world=1)
    assert [(one.total, one.requeues, one.restart, one.index) for one in begun] == [(1, 0, 1, 1), (2, 1, 1, 3)]
    assert [f.restart for f in found] == [2, 3]


def test_what_a_job_writes_in_their_place_is_no_line_of_ours(tmp_path: Path) -> None:
    run = made(tmp_path)
    for name in ("ranks/0", "restarts", "progress/0", "logs/0.out"):
        (run / name).write_bytes(
            os.urandom(4000)
            + b"\n1 2\nn0 x y z w\nn0 1 0 1e9 0 5 5\nn0 1 0 5 9999999 5 5\n1 0 9999999 5\n9999999999 0 1 1\n"
        )
    assert told(run, over=True, world=1) == ([Start(1, 0, 9999999, 5.0)], ())
    assert restarts.start("1 0 1 12.5") == Start(1, 0, 1, 12.5)
    assert not any(map(restarts.start, ("1 0 1", "x", "1 0 1 nan", "-1 0 1 3")))
