"""One full scheduling cycle, P99: 8-GPU nodes, 5,000 queued, 1% of nodes changed before each cycle.

    .venv/bin/python -m benchmarks.scheduling_cycle

Quotas that borrow, fair share and EASY backfill (depth 100) are on. Timed: telling the scheduler of the changes
(ends, arrivals, cordons), the decision, and reading its admissions. The fleet is full, as a fleet with a queue is.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from dataclasses import replace

from benchmarks.harness import Bar, alone, percentile, say, spread
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.spec import Cohort, Queue, Quota, Setup
from penstock.scheduling.state import Ask, Gpu, NodeState, Part, Policy, Workload

QUEUED, CYCLES, QUEUES, CHANGED = 5000, 200, 8, 0.01
SIZES = (1, 1, 1, 1, 2, 2, 4, 8, 8, 16, 32, 64)


class Fleet:
    """A fleet under load, and what happens to it between two cycles."""

    def __init__(self, nodes: int, seed: int = 7) -> None:
        self.chance = random.Random(seed)
        share = nodes * 8 / QUEUES
        queues = {
            f"q{n}": Queue(f"q{n}", "all", {"default": {"gpus": Quota(share)}}, weight=1 + n % 3) for n in range(QUEUES)
        }
        policy = Policy(order="fairshare", backfill="easy", depth=100)
        self.scheduler = Scheduler(Setup(policy=policy, queues=queues, cohorts={"all": Cohort("all")}))
        gpus = tuple(Gpu(f"g{at}", "H100") for at in range(8))
        self.nodes = [
            NodeState(f"n{i}", 96.0, 1 << 40, gpus, topology=(f"block-{i // 128}", f"rack-{i // 16}"))
            for i in range(nodes)
        ]
        for node in self.nodes:
            self.scheduler.put_node(node)
        self.count, self.now = 0, 0.0
        self.parts = {size: self._parts(size) for size in set(SIZES)}
        while self.waiting < QUEUED:  # the first ones fill the fleet
            for _ in range(QUEUED - self.waiting):
                self.arrive()
            self.scheduler.plan(self.now)

    @property
    def waiting(self) -> int:
        return len(self.scheduler.lines)

    @staticmethod
    def _parts(gpus: int) -> tuple[Part, ...]:
        each = min(gpus, 8)
        return (Part(max(1, gpus // 8), Ask(cpus=8.0 * each, memory=each << 36, gpus=each)),)

    def arrive(self) -> None:
        self.count += 1
        self.scheduler.submit(
            Workload(
                f"w{self.count}",
                f"w{self.count}",
                self.now,
                self.parts[self.chance.choice(SIZES)],
                f"q{self.chance.randrange(QUEUES)}",
                f"user{self.chance.randrange(20)}",
                limit_s=self.chance.choice((600.0, 3600.0, 86400.0)),
                seq=self.count,
            )
        )

    def cycle(self) -> float:
        """Seconds that one took, changes included. What changes is chosen before the clock starts."""
        self.now += 10.0
        scheduler, changed = self.scheduler, max(1, int(len(self.nodes) * CHANGED))
        ends = self.chance.sample(sorted(scheduler.held), min(changed, len(scheduler.held)))
        flips = self.chance.sample(range(len(self.nodes)), max(1, changed // 10))
        gc.collect()
        began = time.perf_counter()
        for id_ in ends:
            scheduler.end(id_, self.now)
        for i in flips:
            node = self.nodes[i] = replace(self.nodes[i], open=not self.nodes[i].open)
            scheduler.put_node(node)
        while self.waiting < QUEUED:
            self.arrive()
        scheduler.plan(self.now)
        return time.perf_counter() - began


def measured(nodes: int, limit: float, cycles: int) -> Bar:
    fleet = Fleet(nodes)
    say(f"   {nodes} nodes, {fleet.waiting} queued, {len(fleet.scheduler.held)} held")
    taken = [fleet.cycle() * 1000 for _ in range(cycles)]
    note = f"{spread(taken, ' ms')}; no database: the live side is measured with the server"
    return Bar(f"scheduling cycle P99, {nodes} nodes", percentile(taken, 0.99), limit, "ms", note=note)


def measure() -> list[Bar]:
    return [measured(2000, 100.0, CYCLES), measured(10_000, 500.0, CYCLES)]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
