"""``penstock capacity plan``: replays of one trace on fleets of different sizes until the least that is enough is known."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

from penstock.base.errors import Conflict, InvalidInput
from penstock.base.quantities import parse_duration
from penstock.capacity import plan
from penstock.capacity.figures import percentile
from penstock.capacity.metrics import Metrics, reality
from penstock.capacity.picture import off
from penstock.capacity.plan import SHARES, WEEK_S, Target, Trial, Week
from penstock.capacity.replay import Outcome, TraceJob
from penstock.capacity.scenario import Scenario, Source, simulate
from penstock.capacity.traces import Findings, nothing
from penstock.scheduling.spec import parse_setup

TRUSTED = 0.25  # above this error of the replay's P95 against what happened, `plan` refuses
MOST_JOBS = 2_000_000
Note = Callable[[str], None]


def parse_target(text: str) -> Target:
    metric, equals, value = text.partition("=")
    if metric not in plan.METRICS or not equals:
        raise InvalidInput(f"--target {text!r}: write one of {', '.join(plan.METRICS)}, and a time: p95-wait=1h")
    try:
        return Target(metric, parse_duration(value))
    except ValueError as exc:
        raise InvalidInput(f"--target {text!r}: {exc}") from exc


class Sizer:
    """Replays one list of jobs on as many nodes as asked."""

    def __init__(self, scenario: Scenario, jobs: list[TraceJob], target: Target, note: Note) -> None:
        self.scenario, self.jobs, self.target, self.note = scenario, jobs, target, note
        self.span = jobs[-1].submit - jobs[0].submit
        self.replays = 0

    def least(self) -> int:
        """The largest job needs so many, and so do the quotas that a queue file promises."""
        largest = max(math.ceil(job.gpus) for job in self.jobs)
        promised = 0.0
        if self.scenario.queues:
            setup = parse_setup(self.scenario.queues, path="--queues")
            every = [one.quotas for one in setup.queues.values()] + [one.quotas for one in setup.cohorts.values()]
            promised = sum(flavor["gpus"].nominal for by in every for flavor in by.values() if "gpus" in flavor)
        return -(-max(largest, math.ceil(promised)) // self.scenario.gpus_per_node)

    def start(self) -> int:
        """Where to begin: half as much again as the mean demand."""
        work = sum(job.gpus * job.duration for job in self.jobs)
        return max(1, math.ceil(1.5 * work / max(self.span, 1.0) / self.scenario.gpus_per_node))

    def attempt(self, nodes: int, whole: bool) -> Trial:
        weeks = [Week() for _ in range(int(self.span // WEEK_S) + 1)]
        waits: list[float] = []
        target, above = self.target, 0

        def sink(outcome: Outcome) -> None:
            nonlocal above
            week = weeks[min(int(outcome.queued_at // WEEK_S), len(weeks) - 1)]
            week.jobs += 1
            week.waited += outcome.waited
            if outcome.waited > target.seconds:
                week.above += 1
                above += 1
            waits.append(outcome.waited)

        run = simulate(replace(self.scenario, nodes=nodes), self.jobs, sink=sink)

        def hopeless(now: float) -> bool:
            queued = list(run.still_waiting(now))
            if target.metric in SHARES:
                late = above + sum(wait > target.seconds for wait in queued)
                return late > target.allowed_above(len(self.jobs))
            return sum(waits) + sum(queued) > target.seconds * len(self.jobs)

        self.replays += 1
        result = run.run(stop=None if whole else hopeless)
        if result.aborted or result.unplaced:
            self.note(f"{nodes} nodes: not enough")
            return Trial(nodes, met=False, value=None)
        waits.sort()
        share = SHARES.get(target.metric)
        value = percentile(waits, share) if share else sum(waits) / len(waits)
        met = target.met(weeks)
        self.note(f"{nodes} nodes: {target.metric} {value:.0f} s" + ("" if met else ": not enough"))
        return Trial(nodes, met, value, tuple(weeks))


def planned(
    scenario: Scenario, source: Source, target: Target, *, force: bool, note: Note, clock: Callable[[], float]
) -> dict[str, Any]:
    """The answer of ``penstock capacity plan``. Raises Conflict where the replay cannot be trusted."""
    began = clock()
    findings = Findings()
    jobs = list(islice(source.jobs(replace(scenario, nodes=plan.LARGEST), findings), MOST_JOBS + 1))
    if len(jobs) > MOST_JOBS:
        raise InvalidInput(
            f"the trace has more than {MOST_JOBS:,} jobs, and plan keeps all in memory",
            hint="--first N takes the first, --cluster one partition or queue.",
        )
    if not jobs:
        raise nothing(findings, source.select)
    trust = _trust(scenario, jobs, force=force)
    sizer = Sizer(scenario, jobs, target, note)
    best, known = plan.size(sizer.attempt, sizer.start(), sizer.least())
    low = high = None
    if best is not None:
        for nodes in plan.surroundings(best, sizer.least()):
            if nodes not in known or known[nodes].value is None:
                known[nodes] = sizer.attempt(nodes, True)
        low, high = plan.interval(known, target, random.Random(scenario.seed))
    return {
        "nodes": best,
        "gpus": None if best is None else best * scenario.gpus_per_node,
        "target": {"metric": target.metric, "seconds": target.seconds},
        "achieved_s": None if best is None else known[best].value,
        "interval": {"low": low, "high": high, "confidence": 0.9, "over": "weeks"},
        "trials": [
            {"nodes": t.nodes, "met": t.met, "value_s": t.value} for t in sorted(known.values(), key=lambda t: t.nodes)
        ],
        "jobs": len(jobs),
        "replays": sizer.replays,
        "reality": trust,
        "trace": findings.to_dict(),
        "wall_s": round(clock() - began, 3),
    }


def _trust(scenario: Scenario, jobs: list[TraceJob], *, force: bool) -> dict[str, Any] | None:
    """Where the trace knows the true waits: whether the replay on the fleet as it is comes near them."""
    if not any(job.started is not None for job in jobs):
        return None
    metrics = Metrics()
    simulate(scenario, jobs, sink=metrics.add).run()
    found = reality(metrics)
    if found is not None and found["p95_error"] > TRUSTED and not force:
        raise Conflict(
            f"the replay's P95 wait is {found['p95_replay_s']:g} s where {found['p95_real_s']:g} s really happened: "
            f"{off(found, 'p95')}, above {100 * TRUSTED:.0f}%",
            hint="Give the fleet as it was (--nodes, --gpus-per-node) and its policy (--slurm-conf, --queues); "
            "--force answers all the same.",
        )
    return found
