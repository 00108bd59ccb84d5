"""The cycle against results that independent simulators agree on (data/traces/README), and its small promises."""

from __future__ import annotations

import csv
import heapq
import lzma
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pytest

from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.spec import Setup
from penstock.scheduling.state import Ask, Gpu, NodeState, Part, Policy, Share, Topology, Workload

TRACE = Path(__file__).parents[2] / "data/traces/philly_82k_jobs.csv.xz"
Job = tuple[float, float, int]  # submit, duration, GPUs


@cache
def philly(first: int | None) -> list[Job]:
    with lzma.open(TRACE, "rt") as file:
        rows = [row for row in csv.DictReader(file) if row["cluster"] == "6c71a0"]
    found = [
        (datetime.fromisoformat(row["timestamp"]).replace(tzinfo=UTC).timestamp(), row["duration"], row["num_gpus"])
        for row in rows
    ]
    found.sort(key=lambda row: row[0])
    return [(at - found[0][0], max(1.0, float(lasts)), int(gpus)) for at, lasts, gpus in found[:first]]


def parts(gpus: int) -> tuple[Part, ...]:
    if gpus <= 8:
        return (Part(1, Ask(gpus=gpus)),)
    rest = (Part(1, Ask(gpus=gpus % 8)),) if gpus % 8 else ()
    return (Part(gpus // 8, Ask(gpus=8)), *rest)


def fleet(count: int, gpus: int = 8) -> list[NodeState]:
    return [NodeState(f"n{i}", gpus=tuple(Gpu(f"g{at}") for at in range(gpus))) for i in range(count)]


def replay(jobs: list[Job], policy: Policy) -> tuple[float, float, float, float]:
    """Mean completion, mean wait, P95 wait, makespan. At one instant: releases, then arrivals, then starts."""
    scheduler = Scheduler(Setup(policy=policy))
    for node in fleet(16):
        scheduler.put_node(node)
    ends: list[tuple[float, int]] = []
    waits = [0.0] * len(jobs)
    arrived, last = 0, 0.0
    while arrived < len(jobs) or ends:
        now = min([jobs[arrived][0]] if arrived < len(jobs) else [], default=ends[0][0] if ends else 0.0)
        now = min(now, ends[0][0]) if ends else now
        while ends and ends[0][0] <= now:
            scheduler.end(str(heapq.heappop(ends)[1]), now)
        while arrived < len(jobs) and jobs[arrived][0] <= now:
            at, lasts, gpus = jobs[arrived]
            scheduler.submit(Workload(str(arrived), "", at, parts(gpus), estimate_s=lasts, seq=arrived))
            arrived += 1
        for admit in scheduler.plan(now).admit:
            job = int(admit.id)
            waits[job] = now - jobs[job][0]
            last = max(last, now + jobs[job][1])
            heapq.heappush(ends, (now + jobs[job][1], job))
    count = len(jobs)
    wait = sum(waits) / count
    completion = wait + sum(job[1] for job in jobs) / count
    return round(completion, 1), round(wait, 1), sorted(waits)[int(0.95 * count)], last


@pytest.mark.parametrize(
    ("first", "most", "policy", "expected"),
    [
        (2000, 128, Policy(), (40604.5, 8161.0, 83960, 3050648)),
        (2000, 128, Policy(order="sjf"), (37670.8, 5227.3, 59282, 3050648)),
        (2000, 8, Policy(), (40661.5, 8173.3, 83960, 3050648)),
        (None, 128, Policy(), (17867.9, 1832.4, 2210, 7749024)),
    ],
    ids=["fifo", "sjf", "fifo, at most 8 GPUs", "fifo, the whole virtual cluster"],
)
def test_golden_philly(first: int | None, most: int, policy: Policy, expected: tuple[float, ...]) -> None:
    assert replay([job for job in philly(first) if job[2] <= most], policy) == expected


def scheduler_of(policy: Policy, nodes: list[NodeState]) -> Scheduler:
    scheduler = Scheduler(Setup(policy=policy))
    for node in nodes:
        scheduler.put_node(node)
    return scheduler


def job(
    name: str, gpus: int, seq: int, *, priority: int = 0, topology: Topology | None = None, groups: int = 1
) -> Workload:
    return Workload(name, name, 0.0, (Part(groups, Ask(gpus=gpus)),), seq=seq, priority=priority, topology=topology)


def test_strict_waits_behind_the_head_and_skip_does_not() -> None:
    for blocking, expected in (("strict", ["a"]), ("skip", ["a", "c"])):
        scheduler = scheduler_of(Policy(blocking=blocking), fleet(1))
        for seq, (name, gpus) in enumerate([("a", 4), ("b", 8), ("c", 4)]):
            scheduler.submit(job(name, gpus, seq))
        decision = scheduler.plan(0.0)
        assert [admit.id for admit in decision.admit] == expected
        assert decision.blocked_by == "b"
        assert scheduler.plan(0.0).admit == ()


def test_a_higher_priority_comes_first() -> None:
    scheduler = scheduler_of(Policy(), fleet(1))
    scheduler.submit(job("low", 8, 0))
    scheduler.submit(job("high", 8, 1, priority=1))
    assert [admit.id for admit in scheduler.plan(0.0).admit] == ["high"]


def test_who_could_never_run_stands_aside_until_the_fleet_grows() -> None:
    scheduler = scheduler_of(Policy(), fleet(1))
    scheduler.submit(job("huge", 8, 0, groups=2))
    scheduler.submit(job("small", 8, 1))
    assert [admit.id for admit in scheduler.plan(0.0).admit] == ["small"]
    scheduler.end("small", 1.0)
    scheduler.put_node(fleet(2)[1])
    assert [share.node for share in scheduler.plan(1.0).admit[0].shares] == ["n0", "n1"]


def test_rack_1_of_two_blocks_are_two_racks() -> None:
    nodes = [
        NodeState(f"n{i}", gpus=(Gpu("g"),), topology=(f"block-{i}", "rack-1")) for i in range(2)
    ]  # fmt: skip
    scheduler = scheduler_of(Policy(), nodes)
    scheduler.submit(job("one-rack", 1, 0, topology=Topology("rack", required=True), groups=2))
    scheduler.submit(job("rather", 1, 1, topology=Topology("rack"), groups=2))
    assert [admit.id for admit in scheduler.plan(0.0).admit] == ["rather"]


def test_shares_fill_a_gpu_before_another_is_opened() -> None:
    scheduler = scheduler_of(Policy(), fleet(2, 2))
    for seq in range(3):
        scheduler.submit(Workload(f"s{seq}", "", 0.0, (Part(1, Ask(gpu_milli=400)),), seq=seq))
    places = [admit.shares for admit in scheduler.plan(0.0).admit]
    ask = Ask(gpu_milli=400)
    assert places == [(Share("n0", ask, (gpu,)),) for gpu in ("g0", "g0", "g1")]
