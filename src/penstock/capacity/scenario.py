"""A what-if, as plain values: which fleet, which policy, which failures. From it everything that a replay is given."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from penstock.base.errors import InvalidInput, Problem
from penstock.capacity import slurm_conf, traces
from penstock.capacity.failures import by_mtbf, from_file
from penstock.capacity.metrics import Metrics, answer
from penstock.capacity.replay import Cluster, Failure, Outcome, Replay, Result, TraceJob
from penstock.capacity.traces import Findings, Selection
from penstock.scheduling.spec import Setup, parse_setup
from penstock.scheduling.state import Policy

ORDERS = ("fifo", "sjf", "fairshare", "multifactor")
BLOCKINGS = ("strict", "skip")
BACKFILLS = ("none", "easy", "conservative")
PLACEMENTS = ("bestfit", "firstfit")
AHEAD = 500_000  # jobs read before the replay begins, so that reading is timed apart; more than these stream
YEAR_S = 366 * 86400.0
Instant = tuple[float, dict[str, float], dict[str, int]]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Times in seconds. ``placement`` None: best fit, and first fit where blocked workloads are skipped
    (docs/decisions/0004). ``queues`` is a queue file's text, ``slurm_conf`` a slurm.conf's.
    """

    nodes: int
    gpus_per_node: int
    policy: str = "fifo"
    blocking: str = "strict"
    backfill: str = "none"
    depth: int = 100
    placement: str | None = None
    cpus_per_node: float = 0.0
    memory_per_node: int = 0
    gpu_model: str = ""
    queues: str = ""
    slurm_conf: str = ""
    failures: str = ""
    mtbf_s: float | None = None
    repair_s: float = 4 * 3600.0
    checkpoint_s: float | None = None
    seed: int = 0

    def cluster(self) -> Cluster:
        return Cluster(self.nodes, self.gpus_per_node, self.cpus_per_node, self.memory_per_node, self.gpu_model)

    def setup(self) -> Setup:
        placement = self.placement or ("firstfit" if self.blocking == "skip" else "bestfit")
        policy = Policy(self.policy, self.blocking, self.backfill, placement, self.depth)
        setup = Setup()
        if self.queues:
            capacity = {
                "default": {
                    "gpus": float(self.nodes * self.gpus_per_node),
                    "cpus": self.nodes * self.cpus_per_node,
                    "memory": float(self.nodes * self.memory_per_node),
                }
            }
            setup = parse_setup(self.queues, path="--queues", capacity=capacity)
            policy = replace(policy, preemption=setup.policy.preemption, weights=setup.policy.weights)
        if self.slurm_conf:
            policy = slurm_conf.apply(policy, self.slurm_conf)
        return replace(setup, policy=policy)

    def problems(self) -> list[Problem]:
        """Everything that is wrong with it."""
        found = []
        for name, value, known in (
            ("policy", self.policy, ORDERS),
            ("blocking", self.blocking, BLOCKINGS),
            ("backfill", self.backfill, BACKFILLS),
            ("placement", self.placement or "bestfit", PLACEMENTS),
        ):
            if value not in known:
                found.append(Problem(name, f"{value!r} is none of {', '.join(known)}"))
        for name, number, least, most in (
            ("nodes", self.nodes, 1, 100_000),
            ("gpus_per_node", self.gpus_per_node, 1, 1024),
            ("depth", self.depth, 1, 100_000),
        ):
            if not least <= number <= most:
                found.append(Problem(name, f"{number} is not from {least} to {most}"))
        for name, seconds in (("mtbf", self.mtbf_s), ("checkpoint_interval", self.checkpoint_s)):
            if seconds is not None and not seconds > 0:
                found.append(Problem(name, "must be above zero"))
        if not self.repair_s >= 0:
            found.append(Problem("repair", "must not be negative"))
        return found

    def lost(self, horizon_s: float) -> Iterator[Failure]:
        if self.failures:
            yield from from_file(self.failures, self.nodes)
        if self.mtbf_s is not None:
            yield from by_mtbf(self.nodes, self.mtbf_s, self.repair_s, horizon_s, random.Random(self.seed))


def checked(scenario: Scenario) -> Scenario:
    if problems := scenario.problems():
        raise InvalidInput("the scenario cannot be replayed", details=problems)
    return scenario


@dataclass(frozen=True, slots=True)
class Source:
    """Where jobs come from: a file, read anew at each call."""

    path: str
    preset: str = "csv"
    select: Selection = field(default_factory=Selection)

    def jobs(self, scenario: Scenario, findings: Findings) -> Iterator[TraceJob]:
        pool = scenario.nodes * scenario.gpus_per_node
        return traces.read(self.path, self.preset, replace(self.select, pool_gpus=pool), findings)


def simulate(
    scenario: Scenario,
    jobs: Iterator[TraceJob] | list[TraceJob],
    *,
    sink: Callable[[Outcome], None],
    sample_s: float = 0.0,
) -> Replay:
    """Ready to run. Failures are drawn for ten years of trace at the most: a heap cannot be endless."""
    horizon = 10 * YEAR_S
    if isinstance(jobs, list) and jobs:
        horizon = (jobs[-1].submit - jobs[0].submit) * 2 + 90 * 86400.0
    return Replay(
        jobs,
        checked(scenario).cluster(),
        scenario.setup(),
        failures=scenario.lost(horizon) if scenario.failures or scenario.mtbf_s else (),
        checkpoint_s=scenario.checkpoint_s,
        sample_s=sample_s,
        sink=sink,
    )


def replayed(
    scenario: Scenario,
    source: Source,
    clock: Callable[[], float],
    *,
    progress: Callable[[int], None] | None = None,
    samples: int = 0,
) -> dict[str, Any]:
    """The answer of one replay; with ``samples`` it has a timeline of about so many instants."""
    findings, metrics = Findings(), Metrics()
    stream = source.jobs(checked(scenario), findings)
    began = clock()
    jobs: Iterator[TraceJob] | list[TraceJob] = list(stream if samples or scenario.mtbf_s else islice(stream, AHEAD))
    read_s = clock() - began
    if isinstance(jobs, list) and len(jobs) == AHEAD:
        jobs = chain(jobs, stream)
    sample_s = (jobs[-1].submit - jobs[0].submit) / samples if samples and isinstance(jobs, list) and jobs else 0.0
    began = clock()
    run = simulate(scenario, jobs, sink=metrics.add, sample_s=max(sample_s, 1.0) if samples else 0.0)
    result = run.run(progress=progress)
    found = answer(metrics, run, clock() - began)
    found |= {"policy": run.scheduler.policy.name, "read_s": round(read_s, 3), "trace": findings.to_dict()}
    if samples:
        found["timeline"] = timeline(result, metrics, samples, scenario)
    return found


def timeline(result: Result, metrics: Metrics, samples: int, scenario: Scenario) -> dict[str, Any]:
    """By queue, the busiest eight and the rest together, for charts."""
    names = sorted(metrics.queues, key=lambda name: -len(metrics.queues[name].waits))
    shown, rest = names[:8], set(names[8:])
    rows = result.timeline[:: max(1, len(result.timeline) // (2 * samples))]

    def series(pick: Callable[[Instant], Mapping[str, float]]) -> dict[str, list[float]]:
        found = {name: [pick(row).get(name, 0) for row in rows] for name in shown}
        if rest:
            found["other queues"] = [sum(n for name, n in pick(row).items() if name in rest) for row in rows]
        return found

    return {
        "at": [round(row[0], 1) for row in rows],
        "capacity": scenario.nodes * scenario.gpus_per_node,
        "gpus": series(lambda row: row[1]),
        "waiting": series(lambda row: row[2]),
    }
