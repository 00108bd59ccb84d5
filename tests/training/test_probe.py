"""What is seen of a rank's process from outside: also of one that tells nothing itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.diagnosis.evidence import with_looks
from penstock.diagnosis.plan import diagnose
from penstock.diagnosis.state import Counters, Evidence, Rank
from penstock.training import probe
from penstock.training.stacks import Seen
from penstock.training.state import Flight, Look

SPIN = "print(flush=True)\nwhile True: pass"
GROUP = Path("/sys/fs/cgroup/cpu")


@pytest.fixture
def rank() -> Iterator[subprocess.Popen[bytes]]:
    """A process that computes, and looks as a rank of an attempt does."""
    told = {"PENSTOCK_ATTEMPT_ID": f"probed-{os.getpid()}.1", "PENSTOCK_REPORT_FD": "1", "RANK": "3"}
    with subprocess.Popen([sys.executable, "-c", SPIN], env=os.environ | told, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def looked_at() -> Look:
    asked = {"attempt": f"probed-{os.getpid()}.1", "between_s": 0.6, "spies": []}
    (told,) = probe.look(asked)["ranks"]
    assert told["rank"] == 3
    return Look(3, "n0", told["pid"], told["start"], told["state"], over_s=told["over_s"], grown=told["grown"])


def test_what_the_kernel_counts_of_it(rank: subprocess.Popen[bytes]) -> None:
    look = looked_at()
    assert look.pid == rank.pid
    assert look.grown["cpu_s"] > 0
    assert {"run_delay_s", "io_wait_s", "read_bytes", "write_bytes"} <= set(look.grown)
    assert look.over_s >= 0.6


@pytest.mark.needs("root")
def test_a_quota_that_is_used_up_is_seen_without_the_script_s_help(rank: subprocess.Popen[bytes]) -> None:
    group = GROUP / f"penstock-probed-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_quota_us").write_text("10000")
        (group / "cgroup.procs").write_text(str(rank.pid))
        look = looked_at()
        (GROUP / "cgroup.procs").write_text(str(rank.pid))
    finally:
        group.rmdir()
    assert look.grown["throttled_s"] > 0
    seen = Seen((look,), Flight(), {})
    found = diagnose(Evidence("train", "p", "Running", 100.0, tuple(with_looks({}, seen, 100.0).values())))
    assert (found.verdict, [each.name for each in found.culprits]) == ("cgroup_throttle", ["3"])


def test_what_a_rank_counts_itself_is_kept() -> None:
    own = (Counters(1.0, {"cpu_s": 1.0}),)
    look = Look(0, "n0", 10, 1, "S", over_s=2.0, grown={"cpu_s": 0.5})
    ranks = with_looks({0: Rank(0, "n0", counters=own)}, Seen((look,), Flight(), {}), 50.0)
    assert ranks[0].counters == own
    alone = with_looks({}, Seen((look,), Flight(), {}), 50.0)
    assert alone[0].counters == (Counters(48.0, {"cpu_s": 0.0}), Counters(50.0, {"cpu_s": 0.5}))
