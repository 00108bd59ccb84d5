"""The server killed with SIGKILL at random moments under load: nothing lost, nothing twice, every exit status right."""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from penstock.base.errors import PenstockError
from penstock.client.client import Client
from tests.system.house import FINAL, House, until


@dataclass
class Load:
    """Submits jobs one after another through whatever server there is, each until it was accepted, with its own key."""

    house: House
    marks: Path
    expected: dict[str, int] = field(default_factory=dict)  # name -> exit code
    stop: threading.Event = field(default_factory=threading.Event)
    pace_s: float = 0.05

    def run(self, who: int) -> None:
        rng = random.Random(who)
        number = 0
        while not self.stop.is_set():
            name, code = f"k{who}-{number}", rng.choice([0, 0, 0, 3, 7])
            number += 1
            nap = rng.choice([0, 0, 0.05, 0.4])
            script = f"echo run >> {self.marks}/{name}; sleep {nap}; exit {code}"
            spec = {"command": ["sh", "-c", script], "resources": {"cpus": 0.1}}
            if self.submit(name, spec):
                self.expected[name] = code
            time.sleep(self.pace_s)

    def submit(self, name: str, spec: Mapping[str, object]) -> bool:
        """True once it was accepted; gives up only when told to stop before any server took it."""
        tried = False
        while not (self.stop.is_set() and not tried):
            try:
                with Client(url=self.house.url, token=self.house.token) as client:
                    tried = True
                    client.transport.request(
                        "POST",
                        "/api/v1/projects/default/jobs",
                        body=json.dumps({"name": name, "spec": dict(spec)}).encode(),
                        headers={"content-type": "application/json", "idempotency-key": name},
                        repeatable=False,
                    )
            except (PenstockError, OSError, ValueError):
                time.sleep(0.05)
            else:
                return True
        return False


@pytest.fixture
def marks() -> Iterator[Path]:
    """A folder in which jobs of any user leave one line a run."""
    with tempfile.TemporaryDirectory(prefix="penstock-marks-", dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@dataclass
class Findings:
    """What was found wrong after the kills; all of it should be 0."""

    kills: int = 0
    jobs_lost: int = 0
    jobs_run_twice: int = 0
    wrong_statuses: int = 0
    broken_ledgers: int = 0
    accepted: int = 0
    examples: list[object] = field(default_factory=list)


def kill_often(kills: int, marks: Path, seed: int) -> Findings:
    rng = random.Random(seed)
    with House("--local-nodes", "2") as house:
        load = Load(house, marks)
        threads = [threading.Thread(target=load.run, args=(who,)) for who in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(kills):
                time.sleep(rng.uniform(0.0, 1.2))
                house.end(signal.SIGKILL)
                house.start()
        finally:
            load.stop.set()
            for thread in threads:
                thread.join(60)
        found = check(house, load, marks)
    found.kills = kills
    return found


def check(house: House, load: Load, marks: Path) -> Findings:
    until(lambda: not house.get("jobs?phase=active&limit=1")["items"], "jobs do not end", 180)
    jobs = all_jobs(house)
    found = Findings(accepted=len(load.expected))
    found.jobs_lost = len(set(load.expected) - set(jobs))
    for name, status in jobs.items():
        runs = (marks / name).read_text().count("run") if (marks / name).exists() else 0
        right = status["phase"] in FINAL and status["exit_code"] == load.expected.get(name, status["exit_code"])
        found.jobs_run_twice += max(runs - 1, 0)
        found.wrong_statuses += not right or runs == 0
        if runs != 1 or not right:
            found.examples.append((name, runs, status))
    verified = house.get("audit/verify")
    found.broken_ledgers = int(not verified["ok"])
    return found


def all_jobs(house: House) -> dict[str, Any]:
    """Every job's status by name."""
    jobs: dict[str, Any] = {}
    cursor: str | None = ""
    while cursor is not None:
        page = house.get(f"jobs?limit=500{f'&cursor={cursor}' if cursor else ''}")
        jobs |= {job["name"]: job["status"] for job in page["items"]}
        cursor = page["next_cursor"]
    return jobs


def judge(found: Findings) -> None:
    assert found.accepted > 10, "there was no load"
    wrong = (found.jobs_lost, found.jobs_run_twice, found.wrong_statuses, found.broken_ledgers)
    assert wrong == (0, 0, 0, 0), (found, found.examples[:3])


@pytest.mark.real
def test_a_few_kills(marks: Path) -> None:
    judge(kill_often(8, marks, seed=1))


@pytest.mark.soak
def test_a_hundred_kills(marks: Path, record_property: Callable[[str, object], None]) -> None:
    found = kill_often(100, marks, seed=int(os.environ.get("PENSTOCK_SOAK_SEED", "7")))
    for name in ("kills", "jobs_lost", "jobs_run_twice", "wrong_statuses", "broken_ledgers"):
        record_property(f"soak:{name}", getattr(found, name))
    judge(found)
