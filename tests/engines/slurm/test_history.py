"""sacct's rows are runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.engines.slurm.errors import Refused
from penstock.engines.slurm.history import command, read, told

RECORDED = Path(__file__).parent / "recorded"


def test_what_slurm_22_05_told() -> None:
    runs = read((RECORDED / "sacct.txt").read_text())
    assert [(run.shown, run.state, run.partition) for run in runs] == [
        ("1", "FAILED", "all"),
        ("2", "COMPLETED", "all"),
        ("3", "REQUEUED", "all"),
        ("5+0", "RUNNING", "all"),
        ("5+1", "RUNNING", "all"),
        ("4_0", "RUNNING", "all"),
        ("4_1", "RUNNING", "all"),
        ("8", "FAILED", ""),
    ]
    second = runs[1]
    assert second.name == "a|b"
    assert (second.job, second.record, second.user, second.account) == (2, 2, "nobody", "research")
    assert second.nodes == ("node-0", "node-1")
    assert (second.cpus, second.memory, dict(second.gpus)) == (2.0, 200 * 2**20, {"h100": 4.0})
    assert (second.started_at, second.ended_at) == (1795633945.0, 1795633947.0)
    assert runs[3].ended_at is None
    assert not runs[-1].whole


def test_gpus_without_a_type_count_too() -> None:
    line = "9|9|9|x|ann|vision|all|RUNNING|1795633945|Unknown|cpu=1,gres/gpu=3,gres/gpu:h100=1|n1"
    assert dict(read(line)[0].gpus) == {"h100": 1.0, "": 2.0}


def test_what_never_ran_is_left_out() -> None:
    assert read("9|9|9|x|ann|vision|all|CANCELLED by 0|None|1795633945||None assigned") == []
    assert read("9|9|9|x|ann|vision|all|PENDING|Unknown|Unknown||None assigned") == []


def test_too_few_columns_are_no_answer() -> None:
    with pytest.raises(Refused):
        read("sacct: something else")


def test_the_question_is_in_seconds_since_the_epoch() -> None:
    assert "--starttime=uts1795633945" in command(1795633945.7)


def test_how_far_accounting_knows() -> None:
    head = "*****\nsdiag output at Wed Nov 25 19:11:49 2026 (1795633909)\nDBD Agent queue size: "
    assert told(head + "0\n").all
    assert told(head + "0\n").at == 1795633909.0
    assert not told(head + "12\n").all
