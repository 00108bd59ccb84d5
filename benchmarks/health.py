"""Health: a fleet's weeks through the real room and planner; and from a line of the kernel's log to a job that runs elsewhere.

The replay goes through all of health's: findings are taken in as the telemetry room hands them on, written down, decided of by the
shipped policy, and done to a simulated fleet, in the fleet's own time.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sqlalchemy.engine import Connection

from benchmarks.harness import Bar, alone, say
from benchmarks.health_fleet import HOUR, MINUTE, Made, Node, Told
from benchmarks.health_live import line_to_restart
from penstock.engines.several import Engines
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.simulated.shape import Fleet
from penstock.fleet import inventory
from penstock.health import shipped
from penstock.health.orders import Asked
from penstock.health.room import Health
from penstock.store.store import Store
from penstock.telemetry.push import Order

START = 1_795_000_000.0
NODES, DAYS = 50, 20.0  # 1,000 node-days
SEEDS = range(1, 6)
TICK_S = 10 * MINUTE  # between two looks when nothing new is told
_MEMORY = "/dev/shm"
REPAIR_S = (2 * HOUR, 24 * HOUR)


@dataclass(slots=True)
class Outcome:
    findings: int = 0
    true: int = 0
    caught: int = 0
    false: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    most_out: int = 0
    returned: int = 0
    waits: list[float] = field(default_factory=list)  # from a fault to the node's leaving


def _passed(node: str) -> Asked:
    """As when the node's agent has told that a check passed."""
    return Asked(Order(node, ("clock",)), node, "after a repair", 0.0, {"clock": "passed"}, {"clock": "passed"})


class Site(SimulatedEngine):
    """Notes which of its nodes are cordoned, and why (None: let back)."""

    def __init__(self, fleet: Fleet, clock: Callable[[], float]) -> None:
        super().__init__(fleet, clock=clock)
        self.told: list[tuple[str, str | None]] = []

    async def cordon(self, node: str, why: str | None, *, force: bool = False) -> None:
        await super().cordon(node, why, force=force)
        self.told.append((node, why))


class Replay:
    """One fleet's time. ``now`` is its clock."""

    def __init__(self, seed: int, nodes: int = NODES, days: float = DAYS) -> None:
        self.now = START
        self.engine = Site(Fleet(nodes, 8), clock=lambda: self.now)
        self.made = Made([offer.name for offer in self.engine.nodes()], days, seed, START)
        self.by_name = {node.name: node for node in self.made.nodes}
        self.outcome = Outcome()
        self.woken = False
        self._caught: set[tuple[str, float]] = set()
        self._checks: list[str] = []  # that have passed, and are to be told

    def run(self) -> Outcome:
        with tempfile.TemporaryDirectory(
            prefix="penstock-bench-", dir=_MEMORY if os.path.isdir(_MEMORY) else None
        ) as folder:
            asyncio.run(self._run(f"sqlite:///{folder}/p.db"))
        return self.outcome

    async def _run(self, url: str) -> None:
        store = Store.open(url, clock=lambda: self.now)
        await store.write(lambda tx: inventory.sync(tx, self.engine.name, self.engine.nodes()))
        health = Health(store, Engines(self.engine), lambda _tx: 1, self._jobs, self._wake)
        due = math.inf
        for at, told in self.made.run():
            while due <= at:
                self.now = due
                due = await self._look(health)
            self.now = at
            await self._push(health, told)
            if self.woken:
                due = await self._look(health)
        for when, node, fault in self.made.faults:
            if (node.name, when) not in self._caught:
                self.outcome.missed.append(f"missed: {fault} on {node.name}")
        self.outcome.true = len(self.made.faults)
        await store.close()

    async def _push(self, health: Health, told: Told) -> None:
        node = told.node
        self.outcome.findings += len(told.findings)
        sources = {"kmsg": "", "nvml": "", **node.problems}
        sent = self.now + node.ahead_s
        await health.take(told.findings, node=node.name, sources=sources, boot_id=str(node.boot), sent_at=sent)
        while self._checks:
            await health.checked(_passed(self._checks.pop()))

    async def _look(self, health: Health) -> float:
        self.woken = False
        after = await health.reconcile("all")
        for name, why in self.engine.told:
            self._changed(self.by_name[name], left=why is not None, why=why or "")
        self.engine.told.clear()
        self.outcome.most_out = max(self.outcome.most_out, sum(node.out for node in self.made.nodes))
        return math.inf if after is None else self.now + TICK_S

    def _changed(self, node: Node, *, left: bool, why: str) -> None:
        if node.out == left:  # cordoned before, and drained now
            return
        node.out = left
        if not left:
            self.outcome.returned += 1
            return
        if node.fault:
            when = max(at for at, one, _ in self.made.faults if one is node)
            self.outcome.caught += 1
            self.outcome.waits.append(self.now - when)
            self._caught.add((node.name, when))
        else:
            self.outcome.false.append(f"{node.name}: {why}")
        mended = self.now + self.made.chance.uniform(*REPAIR_S)
        self.made.at(mended, lambda _at: self._mend(node))

    def _mend(self, node: Node) -> Iterator[Told]:
        """Whoever repairs it starts it anew, and lets a check run."""
        self.made.mended(node)
        self._checks.append(node.name)
        yield Told(node)

    def _jobs(self, _conn: Connection, _since: float, _until: float) -> dict[str, list[str]]:
        return {node.name: [node.job] for node in self.made.nodes if not node.out}

    def _wake(self) -> None:
        self.woken = True


def replay() -> list[Bar]:
    found = []
    for seed in SEEDS:
        one = Replay(seed).run()
        found.append(one)
        say(
            f"   seed {seed}: {one.findings} findings, {one.caught} of {one.true} faults, {len(one.false)} false, most out {one.most_out}"
        )
        for words in (*one.false, *one.missed):
            say(f"      {words}")
    true, caught = sum(one.true for one in found), sum(one.caught for one in found)
    budget = shipped.load(None).budget.of(NODES)
    note = f"{len(found)} fleets of {NODES} nodes x {DAYS:g} days, {sum(one.findings for one in found):,} findings; the worst"
    waits = sorted(wait for one in found for wait in one.waits)
    late = f"median {waits[len(waits) // 2]:.0f} s, worst {waits[-1] / MINUTE:.0f} min" if waits else "none"
    return [
        Bar("false drains in 1,000 node-days", max(len(one.false) for one in found), 1, "nodes", note=note),
        Bar(
            "nodes out at once, at most",
            max(one.most_out for one in found),
            budget,
            "nodes",
            note=f"the budget of {NODES}",
        ),
        Bar(
            "true faults whose node left service",
            caught / true if true else None,
            0.95,
            "share",
            "at least",
            f"{caught} of {true}; {late}",
        ),
    ]


def measure() -> list[Bar]:
    return [*replay(), line_to_restart()]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
