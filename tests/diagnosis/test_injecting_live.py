"""Faults injected for real into a training of two ranks, one after the other: each is seen, and nothing of it is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.diagnosis import reading
from penstock.diagnosis.injecting import acting, catalogue, network, programs
from penstock.diagnosis.injecting.groups import home
from penstock.diagnosis.injecting.spec import Target
from penstock.diagnosis.state import Rank
from penstock.engines.local import procs

pytestmark = pytest.mark.needs("root", "iptables")
PATIENCE_S = 20.0


class Training:
    """Two ranks that train until they are told to stop (``benchmarks/diagnosis_live.py``)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        words = [sys.executable, "-m", "benchmarks.diagnosis_live", str(folder)]
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

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    one = Training(tmp_path_factory.mktemp("live"))
    _goes_on(one)
    yield one
    one.stop()
    assert not [name for name in os.listdir("/run/netns") if name.startswith(f"pt{one.process.pid}-")]
    assert not Path(f"/sys/fs/cgroup/cpu/penstock-trials-{one.process.pid}").exists()


Sign = Callable[[dict[int, Rank]], Any]


def _mean(rank: Rank, phase: str) -> float:
    values = [getattr(step, phase) or 0.0 for step in rank.steps]
    return sum(values) / len(values) if len(values) >= 3 else 0.0


def _grew(rank: Rank, counter: str) -> float:
    """By second of wall time."""
    told = rank.counters
    if len(told) < 2:
        return 0.0
    return (told[-1].values[counter] - told[0].values[counter]) / (told[-1].at - told[0].at)


FAULTS: tuple[tuple[str, float, Sign], ...] = (
    ("slow-loader", 0.05, lambda r: _mean(r[1], "data") > 0.04 > _mean(r[0], "data")),
    ("slow-loaders", 0.05, lambda r: min(_mean(r[n], "data") for n in r) > 0.04),
    ("slow-compute", 0.05, lambda r: _mean(r[1], "compute") > _mean(r[0], "compute") + 0.03),
    ("imbalance", 4, lambda r: _mean(r[1], "tokens") > 2 * _mean(r[0], "tokens") > 0),
    ("garbage", 1, lambda r: _mean(r[1], "gc") > 0.01 > _mean(r[0], "gc")),
    ("leak", 8, lambda r: _grew(r[1], "rss_bytes") > 10e6 + _grew(r[0], "rss_bytes")),
    ("anomaly", 1, lambda r: len(r[0].steps) > 3),
    ("cpu-contention", 4, lambda r: _grew(r[1], "run_delay_s") > 0.15),
    ("cpu-quota", 0.05, lambda r: _grew(r[1], "throttled_s") > 0.05),
    ("freeze", 0.6, lambda r: max((step.total for step in r[0].steps), default=0) > 0.4),
    ("bandwidth", 80, lambda r: min(_mean(r[n], "comm") for n in r) > 0.06),
    ("packet-loss", 0.05, lambda r: _grew(r[0], "retransmits") > 30),
    ("latency", 0.02, lambda r: min(_mean(r[n], "comm") for n in r) > 0.03),
    ("congestion", 150, lambda r: min(_mean(r[n], "comm") for n in r) > 0.03),
    ("slow-reads", 0.5, lambda r: max(_mean(r[n], "data") for n in r) > 0.02),
)


@pytest.mark.parametrize(("name", "strength", "sign"), FAULTS, ids=[name for name, _, _ in FAULTS])
def test_it_is_felt_and_goes_again(training: Training, tmp_path: Path, name: str, strength: float, sign: Sign) -> None:
    before = _state(training)
    order = acting.order(
        catalogue.named(name), training.targets[1:], training.targets, strength=strength, place=str(training.folder)
    )
    began = time.time()
    with acting.injected(order, "job", tmp_path / "notes"):
        deadline = time.monotonic() + PATIENCE_S
        while not sign(told := training.since(began)):
            assert time.monotonic() < deadline, {n: (rank.steps[-3:], rank.counters[-2:]) for n, rank in told.items()}
            time.sleep(0.05)
    assert _state(training) == before
    assert not list((tmp_path / "notes").iterdir())
    _goes_on(training)


def _goes_on(training: Training) -> None:
    now, deadline = time.time(), time.monotonic() + PATIENCE_S
    while not all(rank.steps for rank in training.since(now).values()):
        assert time.monotonic() < deadline, "it does not go on"
        time.sleep(0.05)


def _state(training: Training) -> Any:
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
    return found, os.path.exists(training.targets[0].hook), _below(os.getpid())


def _below(pid: int) -> list[int]:
    """Helpers that an injection started."""
    programs.reap()
    return sorted(procs.children(pid))
