"""A what-if, as plain values: which fleet, which policy, which failures. From it everything that a replay is given."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from heapq import merge
from itertools import chain, islice
from operator import attrgetter
from typing import Any

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import format_duration
from penstock.capacity import slurm_conf, traces
from penstock.capacity.failures import by_mtbf, from_file
from penstock.capacity.metrics import Metrics, answer
from penstock.capacity.presets import LONGEST_S
from penstock.capacity.replay import Cluster, Failure, Outcome, Replay, TraceJob
from penstock.capacity.traces import Findings, Selection
from penstock.scheduling.spec import Setup, flavor_of, parse_setup
from penstock.scheduling.state import Gpu

ORDERS = ("fifo", "sjf", "fairshare", "multifactor")
BLOCKINGS = ("strict", "skip")
BACKFILLS = ("none", "easy", "conservative", "replan")
PLACEMENTS = ("bestfit", "firstfit", "spread", "fgd")
LONG_AGO = 5e8  # earlier times count from the trace's own beginning
AHEAD = 100_000  # jobs read before the replay begins, so that reading is timed apart; more than these stream


@dataclass(frozen=True, slots=True)
class Scenario:
    """Times in seconds. ``queues`` is a queue file's text, ``slurm_conf`` a slurm.conf's; what is None here they say,
    failing that FIFO, strict, no backfill, a depth of 100, and best fit (first fit where blocked workloads are skipped:
    docs/decisions/0004).
    """

    nodes: int
    gpus_per_node: int
    policy: str | None = None
    blocking: str | None = None
    backfill: str | None = None
    depth: int | None = None
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
    estimates: bool = False  # measure how far off start estimates are, though nothing is promised

    def cluster(self) -> Cluster:
        flavor = self._flavor(self._queue_file()) if self.queues else "default"
        return Cluster(self.nodes, self.gpus_per_node, self.cpus_per_node, self.memory_per_node, self.gpu_model, flavor)

    def _flavor(self, setup: Setup) -> str:
        return flavor_of(setup, (Gpu("0", self.gpu_model),))

    def _queue_file(self) -> Setup:
        """Raises InvalidInput with everything that is wrong with it, quotas beyond the fleet among that."""
        per_node = {"gpus": self.gpus_per_node, "cpus": self.cpus_per_node, "memory": self.memory_per_node}
        has = {name: float(self.nodes * amount) for name, amount in per_node.items() if amount or name == "gpus"}
        try:
            setup = parse_setup(self.queues, path="--queues")
        except InvalidInput:
            if "flavors" not in self.queues:
                parse_setup(self.queues, path="--queues", capacity={"default": has})
            raise
        flavor = self._flavor(setup)
        capacity = {name: dict.fromkeys(has, 0.0) for name in setup.flavors} | {flavor: has}
        try:
            return parse_setup(self.queues, path="--queues", capacity=capacity)
        except InvalidInput as wrong:
            if setup.flavors:
                wrong.advice = f"Flavors go by --gpu-model: with {self.gpu_model!r} all nodes are {flavor!r}."
            raise

    def setup(self) -> Setup:
        setup = Setup()
        if self.queues:
            setup = self._queue_file()
        policy = setup.policy
        if self.slurm_conf:
            site = slurm_conf.read(self.slurm_conf)
            policy = site.policy(policy)
            setup = setup if self.queues else site.setup(setup)
        policy = replace(
            policy,
            order=self.policy or policy.order,
            blocking=self.blocking or policy.blocking,
            backfill=self.backfill or policy.backfill,
            placement=self.placement or policy.placement,
            depth=self.depth or policy.depth,
        )
        if self.placement is None and policy.placement == "bestfit" and policy.blocking == "skip":
            policy = replace(policy, placement="firstfit")
        return replace(setup, policy=policy)

    def problems(self) -> list[Problem]:
        """Everything that is wrong with it."""
        found = []
        for name, value, known in (
            ("policy", self.policy, ORDERS),
            ("blocking", self.blocking, BLOCKINGS),
            ("backfill", self.backfill, BACKFILLS),
            ("placement", self.placement, PLACEMENTS),
        ):
            if value is not None and value not in known:
                found.append(Problem(name, f"{value!r} is none of {', '.join(known)}"))
        for name, number, least, most in (
            ("nodes", self.nodes, 1, 100_000),
            ("gpus_per_node", self.gpus_per_node, 1, 1024),
            ("depth", 100 if self.depth is None else self.depth, 1, 100_000),
        ):
            if not least <= number <= most:
                found.append(Problem(name, f"{number} is not from {least} to {most}"))
        for name, seconds in (("mtbf", self.mtbf_s), ("checkpoint_interval", self.checkpoint_s)):
            if seconds is not None and not seconds > 0:
                found.append(Problem(name, "must be above zero"))
        if not self.repair_s >= 0:
            found.append(Problem("repair", "must not be negative"))
        elif self.repair_s > LONGEST_S:
            found.append(Problem("repair", "must be at most 100 years"))
        return found

    def lost(self) -> Iterator[Failure]:
        """Nodes that fail, in the order of time."""
        told = from_file(self.failures, self.nodes) if self.failures else iter(())
        drawn = (
            iter(())
            if self.mtbf_s is None
            else by_mtbf(self.nodes, self.mtbf_s, self.repair_s, random.Random(self.seed))
        )
        return merge(told, drawn, key=attrgetter("at"))


def checked(scenario: Scenario) -> Scenario:
    if problems := scenario.problems():
        raise InvalidInput("the scenario cannot be replayed", details=problems)
    return scenario


_COUNTS, _WORDS = ("nodes", "depth"), ("policy", "blocking", "backfill", "placement")


def changed(scenario: Scenario, text: str) -> Scenario:
    """``nodes=96,policy=sjf``: the same with these changed. Raises InvalidInput with all that is wrong."""
    problems, counts, words = [], dict[str, int](), dict[str, str]()
    for item in text.split(","):
        key, _, value = (part.strip() for part in item.partition("="))
        if key in words or key in counts:
            problems.append(Problem("versus", f"{key} is given twice"))
        elif key in _WORDS and value:
            words[key] = value
        elif key in _COUNTS and value.isdigit():
            counts[key] = int(value)
        else:
            problems.append(Problem("versus", f"{item!r}: write {', '.join(_COUNTS + _WORDS)}=VALUE"))
    if problems:
        raise InvalidInput("--versus cannot be read", details=problems)
    found = replace(scenario, nodes=counts.get("nodes", scenario.nodes), depth=counts.get("depth", scenario.depth))
    return checked(
        replace(
            found,
            policy=words.get("policy", found.policy),
            blocking=words.get("blocking", found.blocking),
            backfill=words.get("backfill", found.backfill),
            placement=words.get("placement", found.placement),
        )
    )


@dataclass(frozen=True, slots=True)
class Source:
    """Where jobs come from: a file, read anew at each call."""

    path: str
    preset: str = "csv"
    select: Selection = field(default_factory=Selection)

    def jobs(self, scenario: Scenario, findings: Findings, *, watch: traces.Watch | None = None) -> Iterator[TraceJob]:
        select = replace(self.select, pool_gpus=scenario.nodes * scenario.gpus_per_node)
        return traces.read(self.path, self.preset, select, findings, watch=watch)


def simulate(
    scenario: Scenario,
    jobs: Iterator[TraceJob] | list[TraceJob],
    *,
    sink: Callable[[Outcome], None],
    samples: int = 0,
) -> Replay:
    """Ready to run."""
    cluster = checked(scenario).cluster()
    made = Replay(
        map(slurm_conf.read(scenario.slurm_conf).job(cluster), jobs) if scenario.slurm_conf else jobs,
        cluster,
        scenario.setup(),
        failures=scenario.lost(),
        checkpoint_s=scenario.checkpoint_s,
        samples=samples,
        sink=sink,
    )
    made.foretell = scenario.estimates
    return made


Watch = Callable[[float | None, str], None]  # the fraction done where it is known, and words


def reading(watch: Watch) -> traces.Watch:
    return lambda rows, fraction: watch(fraction, f"{rows:,} rows read")


def replaying(watch: Watch, run: Replay, whole: tuple[float, int], clock: Callable[[], float]) -> Callable[[int], None]:
    """Says the simulated date, how many jobs have ended, and how long it will still take at this pace."""
    origin, most = whole
    began = clock()

    def said(ended: int) -> None:
        at = origin + run.scheduler.now
        date = f"day {at / 86400:.0f}" if at < LONG_AGO else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d}"
        done = min(ended / most, 1.0)
        left = f", {format_duration((clock() - began) * (1 - done) / done)} left" if done > 0 else ""
        watch(done, f"{date}: {ended:,} of {most:,} jobs have ended{left}")

    return said


def replayed(
    scenario: Scenario,
    source: Source,
    clock: Callable[[], float],
    *,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
    samples: int = 0,
) -> dict[str, Any]:
    """The answer of one replay; with ``samples`` it has a timeline of about so many points (``Series.to_dict``).

    ``progress`` is told how many jobs have ended, ``watch`` how far it is and in words.
    Raises NothingToReplay.
    """
    findings, metrics = Findings(), Metrics()
    stream = source.jobs(checked(scenario), findings, watch=reading(watch) if watch else None)
    began = clock()
    ahead = list(islice(stream, AHEAD))
    if not ahead:
        raise traces.nothing(findings, source.select)
    read_s = clock() - began
    most = len(ahead)
    if most == AHEAD:  # more follow: at the most so many
        most = max(AHEAD, min(source.select.first or findings.rows, findings.rows - findings.left_out))
    began = clock()
    run = simulate(scenario, chain(ahead, stream), sink=metrics.add, samples=samples)
    if watch is not None and ahead:
        progress = replaying(watch, run, (ahead[0].submit, most), clock)
    del ahead  # or its jobs would be kept to the end
    result = run.run(progress=progress)
    found = answer(metrics, run, clock() - began)
    found["not_modelled"] = list(slurm_conf.read(scenario.slurm_conf).not_modelled())
    found |= {"policy": run.scheduler.policy.name, "read_s": round(read_s, 3), "trace": findings.to_dict()}
    if run.series is not None:
        found["timeline"] = run.series.to_dict(scenario.nodes * scenario.gpus_per_node, result.makespan)
    return found
