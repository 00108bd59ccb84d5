"""Ends a test's Slurm when the test's process died without doing so, as one that is killed for its time does.

    python -m tests.slurm_reaper FOLDER

reads ``+PID`` and ``-PID`` from standard input, what runs and what was ended, until ``.``, when there is no more to do. When
the input ends without, whatever still runs is killed by its id, with its job steps, and the cluster's folder removed: its
owner held the other end, and is dead.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from benchmarks.measure import descendants, until

V1, GROUPS = Path("/sys/fs/cgroup"), ("freezer", "memory")


def kill_steps(marks: Mapping[str, str]) -> None:
    """Kill slurmstepd processes whose environment has the marks, with all below them."""
    wanted = {f"{name}={value}".encode() for name, value in marks.items()}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError):
            if Path(f"/proc/{entry}/comm").read_text().strip() != "slurmstepd":
                continue
            if wanted <= set(Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")):
                for pid in descendants(int(entry)):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def remove_groups(folder: Path) -> None:
    """The cluster's own control groups, once what was in them is dead."""
    for name in GROUPS:
        for at, _, _ in os.walk(V1 / name / folder.name, topdown=False):
            with suppress(OSError, RuntimeError):
                until(partial(_gone, at), "an empty control group", timeout=5, every=0.05)


def _gone(group: str) -> bool:
    with suppress(OSError):
        os.rmdir(group)
    return not os.path.exists(group)


def main(folder: Path) -> None:
    running: set[int] = set()
    for line in sys.stdin:
        if line[0] == ".":
            return
        pid = int(line[1:])
        (running.add if line[0] == "+" else running.discard)(pid)
    for pid in running:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    kill_steps({"SLURM_CONF": str(folder / "slurm.conf")})
    remove_groups(folder)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
