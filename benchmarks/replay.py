"""Replays of Philly: exactness of the golden cases, speed, and `capacity plan`. CPU seconds of one core: machines are shared."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.harness import Bar, alone
from penstock.capacity import traces
from penstock.capacity.metrics import Metrics, answer
from penstock.capacity.replay import Cluster, Replay, TraceJob
from penstock.capacity.scenario import Scenario, Source, replayed
from penstock.capacity.sizing import parse_target, planned
from penstock.capacity.traces import Findings, Selection
from penstock.scheduling.spec import Cohort, Queue, Quota, Setup
from penstock.scheduling.state import Policy

PHILLY = str(Path(__file__).resolve().parent.parent / "data/traces/philly_82k_jobs.csv.xz")
VC = "6c71a0"
# Virtual cluster, first, at most so many GPUs, nodes, order, blocking -> mean completion, mean wait, P95, makespan (s).
# The fourth: docs/decisions/0004.
GOLDEN = (
    ((VC, 2000, None, 16, "fifo", "strict"), (40604.5, 8161.0, 83960, 3050648)),
    ((VC, 2000, None, 16, "sjf", "strict"), (37670.8, 5227.3, 59282, 3050648)),
    ((VC, 2000, 8, 16, "fifo", "strict"), (40661.5, 8173.3, 83960, 3050648)),
    ((VC, 2000, 8, 16, "fifo", "skip"), (39299.1, 6810.8, None, 3050648)),
    ((None, None, None, 80, "fifo", "strict"), (124485.4, 111349.5, 222759, 9408754)),
    ((None, None, None, 60, "sjf", "strict"), (29018.7, 15882.8, 37230, 11176931)),
    ((VC, None, None, 16, "fifo", "strict"), (17867.9, 1832.4, 2210, 7749024)),
)


def _jobs(select: Selection) -> list[TraceJob]:
    return list(traces.read(PHILLY, "philly", select, Findings()))


def _cpu_s(jobs: list[TraceJob], nodes: int, setup: Setup) -> float:
    metrics = Metrics()
    run = Replay(jobs, Cluster(nodes, 8), setup, sink=metrics.add)
    began = time.process_time()
    run.run()
    answer(metrics, run, 0.0)
    return time.process_time() - began


def golden() -> Bar:
    exact = 0
    for (cluster, first, most, nodes, order, blocking), want in GOLDEN:
        source = Source(PHILLY, "philly", Selection(cluster, first, most))
        found = replayed(Scenario(nodes, 8, order, blocking), source, time.perf_counter)
        p95 = None if want[2] is None else found["p95_wait_s"]
        exact += (found["mean_completion_s"], found["mean_wait_s"], p95, found["makespan_s"]) == want
    return Bar("golden Philly replays, exact", exact, len(GOLDEN), "cases", "at least", "makespan of the 4th: 0004")


def everything(jobs: list[TraceJob]) -> Setup:
    """A queue for each virtual cluster, with its share of the pool as its quota, all in one cohort."""
    work: dict[str, float] = {}
    for job in jobs:
        work[job.queue] = work.get(job.queue, 0.0) + job.gpus * job.duration
    total = sum(work.values())
    queues = {
        name: Queue(name, "all", {"default": {"gpus": Quota(float(int(640 * part / total)))}})
        for name, part in work.items()
    }
    return Setup(Policy("fairshare", "strict", "easy", depth=100), queues, {"all": Cohort("all")})


def measure() -> list[Bar]:
    first, whole = _jobs(Selection(VC, 2000)), _jobs(Selection())
    speed = max(len(first) / _cpu_s(first, 16, Setup()) for _ in range(5))
    fifo = min(_cpu_s(whole, 80, Setup()) for _ in range(2))
    full = _cpu_s(whole, 80, everything(whole))
    target, began = parse_target("p95-wait=1h"), time.process_time()
    source = Source(PHILLY, "philly")
    found = planned(Scenario(1, 8), source, target, force=False, note=lambda _: None, clock=time.perf_counter)
    took = time.process_time() - began
    again = replayed(Scenario(found["nodes"], 8), source, time.perf_counter)
    return [
        golden(),
        Bar("first golden case, one core", speed, 20_000, "jobs/s", "at least", "Lucid 18; best of 5, CPU time"),
        Bar("82,247 jobs, FIFO, 80 nodes", fifo, 3.0, "s CPU"),
        Bar("the same, quotas, fair share, EASY 100, gang", full, 60.0, "s CPU"),
        Bar("capacity plan on Philly, p95-wait=1h", took, 60.0, "s CPU", note=f"{found['nodes']} nodes"),
        Bar("its answer, replayed: P95 wait", again["p95_wait_s"], 3600.0, "s"),
    ]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
