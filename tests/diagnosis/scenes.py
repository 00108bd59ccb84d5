"""Trainings made up for the rules' tests: ranks that wait for one another, as they do, with noise and faults of any strength."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock.diagnosis.state import Counters, Evidence, Rank, Step

COUNTED = 1.0  # seconds between readings of counters


@dataclass
class Work:
    """One rank's step before anybody waited: seconds."""

    data: float = 0.0004
    compute: float = 0.030
    optimizer: float = 0.003
    checkpoint: float = 0.0
    gc: float = 0.0
    frozen: float = 0.0
    tokens: float = 4096.0
    counts: dict[str, float] = field(default_factory=dict)  # what this step adds to counters beyond the usual

    @property
    def local(self) -> float:
        return self.data + self.compute + self.optimizer + self.checkpoint + self.gc + self.frozen


Fault = Callable[[int, int, Work], None]  # rank, step, its work


@dataclass
class Scene:
    world: int = 2
    steps: int = 160
    transfer: float = 0.012
    noise: float = 0.08
    seed: int = 1
    nodes: Mapping[int, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    slower: Callable[[int, int], float] = lambda _step, _world: 1.0  # of the transfer, by step
    usual: Mapping[str, float] = field(
        default_factory=lambda: {"run_delay_s": 0.03, "cpu_s": 0.55, "segments_out": 900.0, "net_tx_bytes": 5e7}
    )

    def evidence(self, *faults: Fault) -> Evidence:
        chance = random.Random(self.seed)
        steps: dict[int, list[Step]] = {rank: [] for rank in range(self.world)}
        counted: dict[int, list[Counters]] = {rank: [] for rank in range(self.world)}
        sums: dict[int, dict[str, float]] = {
            rank: {
                **dict.fromkeys((*self.usual, "retransmits", "throttled_s", "io_pressure_s"), 0.0),
                "rss_bytes": 4e8,
                "open_files": 40.0,
                "max_files": 1024.0,
            }
            for rank in range(self.world)
        }
        at, due = 1000.0, 1000.0
        for number in range(self.steps):
            done = {rank: self._work(rank, number, chance, faults) for rank in range(self.world)}
            shortest = self.transfer * self.slower(number, self.world) * chance.lognormvariate(0, self.noise)
            total = max(work.local for work in done.values()) + shortest
            at += total
            while due <= at:  # by a thread of its own, so also in the midst of a step
                for rank, work in done.items():
                    if work.frozen < COUNTED:
                        counted[rank].append(Counters(due, dict(sums[rank])))
                due += COUNTED
            for rank, work in done.items():
                steps[rank].append(
                    Step(
                        number,
                        at,
                        total,
                        work.data,
                        work.compute + work.frozen,  # garbage is collected beside it: worker/phases.py
                        total - work.local,
                        work.optimizer,
                        work.checkpoint,
                        work.gc,
                        work.tokens,
                        2.0,
                    )
                )
                for name, rate in self.usual.items():
                    by = (
                        total if name.endswith("_s") else self.transfer + 0.035
                    )  # what is sent goes with steps, not with time
                    idle = work.frozen + work.checkpoint if name == "cpu_s" else 0.0
                    sums[rank][name] += rate * (by - idle)
                for name, value in work.counts.items():
                    sums[rank][name] = sums[rank].get(name, 0.0) + value
        ranks = tuple(
            Rank(
                rank,
                self.nodes.get(rank, "node-1"),
                tuple(steps[rank]),
                tuple(counted[rank]),
                {"cpus": 2, **self.config},
            )
            for rank in range(self.world)
        )
        return Evidence("train", "default", "Running", at, ranks)

    def _work(self, rank: int, number: int, chance: random.Random, faults: tuple[Fault, ...]) -> Work:
        work = Work()
        work.data *= chance.lognormvariate(0, 0.3)
        work.compute *= chance.lognormvariate(0, self.noise)
        for fault in faults:
            fault(rank, number, work)
        return work


def from_step(start: int, fault: Fault) -> Fault:
    def later(rank: int, step: int, work: Work) -> None:
        if step >= start:
            fault(rank, step, work)

    return later


def on(rank: int, change: Callable[[int, Work], None]) -> Fault:
    def only(this: int, step: int, work: Work) -> None:
        if this == rank:
            change(step, work)

    return only


def everywhere(change: Callable[[int, Work], None]) -> Fault:
    def each(_rank: int, step: int, work: Work) -> None:
        change(step, work)

    return each


def adds(**more: float) -> Callable[[int, Work], None]:
    """Seconds to phases, and what is counted, each step."""

    def change(_step: int, work: Work) -> None:
        for name, value in more.items():
            if hasattr(work, name):
                setattr(work, name, getattr(work, name) + value)
            else:
                work.counts[name] = work.counts.get(name, 0.0) + value

    return change


def with_rank(evidence: Evidence, rank: int, **changes: Any) -> Evidence:
    """One rank's evidence otherwise."""
    return dataclasses.replace(
        evidence, ranks=tuple(dataclasses.replace(r, **changes) if r.rank == rank else r for r in evidence.ranks)
    )
