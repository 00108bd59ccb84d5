"""A training that goes on until it is told to stop, and what its ranks tell: for tests that break it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from penstock.diagnosis import reading
from penstock.diagnosis.injecting import network, programs
from penstock.diagnosis.injecting.groups import home
from penstock.diagnosis.injecting.spec import Target
from penstock.diagnosis.state import Rank
from penstock.engines.local import procs

PATIENCE_S = 30.0


class Training:
    """Two ranks that train until they are told to stop (``benchmarks/diagnosis_live.py``)."""

    def __init__(self, folder: Path, ranks: int = 2, workers: int = 0) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, "-m", "benchmarks.diagnosis_live", str(folder), str(ranks), str(workers)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        pids = json.loads(self.process.stdout.readline())
        hook, saves = str(folder / "trial" / "inject.json"), str(folder / "saves")
        self.targets = tuple(
            Target(rank, pid, procs.start_time(pid) or 0, f"node-{rank}", hook, saves) for rank, pid in enumerate(pids)
        )

    def since(self, at: float) -> dict[int, Rank]:
        """What the ranks have told of the time after ``at``."""
        events = []
        for path in sorted((self.folder / "trial" / "watch").glob("?")):
            events += [json.loads(line) for line in path.read_bytes().splitlines() if line.endswith(b"}")]
        found = reading.watched(sorted(events, key=lambda event: float(event["at"])))
        return {
            n: replace(
                rank,
                steps=tuple(step for step in rank.steps if step.at > at),
                counters=tuple(count for count in rank.counters if count.at > at and "cpu_s" in count.values),
            )
            for n in range(len(self.targets))
            for rank in (found.get(n, Rank(n, "")),)
        }

    def log(self, rank: int) -> str:
        return (self.folder / "trial" / "logs" / f"rank-{rank}.log").read_text(errors="replace")

    def gone(self, rank: int) -> bool:
        return procs.start_time(self.targets[rank].pid) != self.targets[rank].start

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert not [name for name in os.listdir("/run/netns") if name.startswith(f"pt{self.process.pid}-")]
        assert not Path(f"/sys/fs/cgroup/cpu/penstock-trials-{self.process.pid}").exists()


def goes_on(training: Training) -> None:
    now, deadline = time.time(), time.monotonic() + PATIENCE_S
    while not all(rank.steps for rank in training.since(now).values()):
        assert time.monotonic() < deadline, "it does not go on"
        time.sleep(0.05)


def state(training: Training) -> Any:
    """What an injection may have changed, of every rank and of the machine."""
    found = []
    for target in training.targets:
        groups = [home(target.pid, controller) for controller in ("cpu", "memory", "blkio")]
        links = programs.run(*programs.in_network(target.pid, "ip", "-br", "link"))
        routes = programs.run(*programs.in_network(target.pid, "ip", "route"))
        stopped = Path(f"/proc/{target.pid}/stat").read_text().rpartition(") ")[2][0] == "T"
        names = sorted(re.findall(r"^(\S+)", links, re.MULTILINE))
        left = network.leftovers(target.pid)
        found.append((groups, names, routes, left, stopped, os.sched_getaffinity(target.pid)))
    return found, os.path.exists(training.targets[0].hook), below(os.getpid())


def below(pid: int) -> list[int]:
    """Helpers that an injection started."""
    programs.reap()
    return sorted(procs.children(pid))
