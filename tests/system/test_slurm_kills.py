"""Submissions and cancellations on a real Slurm, cut short at random: our server killed, slurmctld restarted."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from penstock.base.errors import PenstockError
from penstock.client.client import Client
from tests.slurm_cluster import Cluster, cluster
from tests.system.house import House, until
from tests.system.test_kills import Load, all_jobs

pytestmark = pytest.mark.needs("slurmdbd", "root")


@dataclass
class Cancels:
    """Cancels some of what the load has submitted, whatever it does at the time."""

    load: Load
    asked: set[str] = field(default_factory=set)

    def run(self) -> None:
        rng = random.Random(99)
        while not self.load.stop.is_set():
            names = sorted(set(self.load.expected) - self.asked)
            if names and rng.random() < 0.5:
                name = rng.choice(names[-4:])
                self.asked.add(name)  # also where no answer comes: a server that was killed may have heard it
                with (
                    suppress(PenstockError, OSError, ValueError),
                    Client(url=self.load.house.url, token=self.load.house.token) as client,
                ):
                    client.jobs.cancel(name)
            time.sleep(0.2)


class SlurmLoad(Load):
    def submit(self, name: str, spec: object) -> bool:
        assert isinstance(spec, dict)
        told = {**spec, "engine": "c1", "resources": {"cpus": 1, "memory": "10Mi"}}
        return super().submit(name, told)


@dataclass
class Findings:
    interruptions: int = 0
    accepted: int = 0
    cancelled: int = 0
    jobs_lost: int = 0
    jobs_doubled: int = 0
    wrong_ends: int = 0
    allocations_left: int = 0
    broken_ledgers: int = 0
    examples: list[object] = field(default_factory=list)


@pytest.fixture
def folders() -> Iterator[tuple[Path, Path]]:
    """Where jobs leave a line for each run, and where their run folders lie; open to jobs' users."""
    with (
        TemporaryDirectory(prefix="penstock-marks-", dir="/tmp") as marks,
        TemporaryDirectory(prefix="penstock-runs-", dir="/tmp") as runs,
    ):
        os.chmod(marks, 0o777)
        os.chmod(runs, 0o1777)
        yield Path(marks), Path(runs)


def interrupt_often(times: int, marks: Path, runs: Path, seed: int) -> Findings:
    rng = random.Random(seed)
    with cluster() as slurm, House() as house:
        words = ("--name", "c1", "--slurm-conf", slurm.environment["SLURM_CONF"], "--folder", str(runs), "--manage")
        house.cli("engines", "add", "slurm", *words)
        load = SlurmLoad(house, marks, pace_s=0.3)
        cancels = Cancels(load)
        threads = [threading.Thread(target=load.run, args=(who,)) for who in range(2)]
        threads.append(threading.Thread(target=cancels.run))
        for thread in threads:
            thread.start()
        try:
            for _ in range(times):
                time.sleep(rng.uniform(0.2, 2.0))
                strike(rng, house, slurm)
        finally:
            load.stop.set()
            for thread in threads:
                thread.join(90)
        found = check(house, slurm, load, cancels, marks)
    found.interruptions = times
    return found


def strike(rng: random.Random, house: House, slurm: Cluster) -> None:
    """Kill our server, or take slurmctld down for a moment, or both at once."""
    what = rng.choice(("server", "server", "slurmctld", "both"))
    if what in ("slurmctld", "both"):
        slurm.stop_ctld()
    if what in ("server", "both"):
        time.sleep(rng.uniform(0.0, 0.5))
        house.end(signal.SIGKILL)
        house.start()
    if what in ("slurmctld", "both"):
        time.sleep(rng.uniform(0.0, 1.0))
        slurm.start_ctld()


def check(house: House, slurm: Cluster, load: Load, cancels: Cancels, marks: Path) -> Findings:
    def over() -> bool:
        return not any(house.get(f"jobs?phase={phase}&limit=1")["items"] for phase in ("active", "Pending"))

    until(over, "jobs do not end", 300)
    jobs = all_jobs(house)
    found = Findings(accepted=len(load.expected), cancelled=len(cancels.asked))
    found.jobs_lost = len(set(load.expected) - set(jobs))
    for name, status in jobs.items():
        runs = (marks / name).read_text().count("run") if (marks / name).exists() else 0
        code = load.expected.get(name, status["exit_code"])
        right = status["phase"] == ("Succeeded" if code == 0 else "Failed") and status["exit_code"] == code
        if name in cancels.asked:
            right = right or status["phase"] == "Cancelled"
            right = right and runs <= 1
        else:
            right = right and runs == 1
        found.jobs_doubled += max(runs - 1, 0)
        found.wrong_ends += not right
        if not right:
            found.examples.append((name, name in cancels.asked, runs, status))
    until(lambda: not slurm.run("squeue", "-h", "-t", "CG", "-o", "%i").split(), "jobs complete", 60)
    found.allocations_left = len(slurm.run("squeue", "-h", "-o", "%i").split())
    found.broken_ledgers = int(not house.get("audit/verify")["ok"])
    return found


def judge(found: Findings) -> None:
    assert found.accepted > 10, "there was no load"
    assert found.cancelled > 2, "nothing was cancelled"
    wrong = (found.jobs_lost, found.jobs_doubled, found.wrong_ends, found.allocations_left, found.broken_ledgers)
    assert wrong == (0, 0, 0, 0, 0), (found, found.examples[:3])


@pytest.mark.real
def test_a_few_interruptions(folders: tuple[Path, Path]) -> None:
    judge(interrupt_often(6, *folders, seed=3))


@pytest.mark.soak
def test_fifty_interruptions(folders: tuple[Path, Path], record_property: Callable[[str, object], None]) -> None:
    found = interrupt_often(50, *folders, seed=int(os.environ.get("PENSTOCK_SOAK_SEED", "11")))
    for name in ("interruptions", "jobs_lost", "jobs_doubled", "wrong_ends", "allocations_left"):
        record_property(f"soak:slurm_{name}", getattr(found, name))
    judge(found)
