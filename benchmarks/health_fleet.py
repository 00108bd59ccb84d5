"""A made-up fleet's weeks: what agents find on nodes of eight GPUs, most of it noise, and what is really broken. Seeded.

Most rates of true faults are those of Llama 3's table (in 54 days on 16,384 GPUs 148 of GPUs, 72 HBM3, 19 SRAM, 17 GSP, 35 switches
and cables); those that it does not have so (NVLink, a GPU that is gone, page faults, heat, disks) are ours, 55 in that time. Together
they are some three in 1,000 node-days; their Xids are those that Delta's study (arXiv 2503.11901) counts. Nobody publishes rates of
noise as findings: those here are ours, chosen high (some 3.5 a node and day, of which some are told several times). What many nodes share (a leaf switch that starts anew, cooling of a rack, an application that fails on all its GPUs) comes too.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random

from penstock.engines.simulated.shape import PER_RACK as RACK
from penstock.telemetry.rules import AGAIN_S
from penstock.telemetry.spec import Finding, Severity

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0
JOB_S = 6 * HOUR  # on average, until a node runs another
LLAMA_NODE_DAYS = 16_384 / 8 * 54

# a true fault: how often it comes in 54 days on 16,384 GPUs, and what is found then (rule, code, source)
TRUE: Mapping[str, tuple[float, tuple[str, str, str]]] = {
    "off the bus": (90, ("Xid", "79", "kmsg")),
    "GPU hangs": (58, ("Xid", "119", "kmsg")),
    "HBM3": (50, ("Xid", "48", "kmsg")),
    "HBM3, not contained": (22, ("Xid", "95", "kmsg")),
    "SRAM": (19, ("Xid", "140", "kmsg")),
    "GSP": (17, ("Xid", "120", "kmsg")),
    "NVLink": (15, ("Xid", "74", "kmsg")),
    "cable": (35, ("LinkDown", "mlx5_0/1", "infiniband")),
    "a GPU is gone": (10, ("GpuMissing", "", "nvml")),
    "bad GPU, as page faults": (10, ("Xid", "31", "kmsg")),
    "too hot": (10, ("GpuThermalThrottle", "", "nvml")),
    "disk": (10, ("FileSystemReadOnly", "/", "kmsg")),
}

# noise: how many a node and day
NOISE: Mapping[str, float] = {
    "thermal blip": 0.8,
    "corrected memory error": 0.6,
    "row remapped": 0.02,
    "application's xid": 0.5,
    "the same job again and again": 0.05,
    "all GPUs of a job": 0.05,
    "link flap": 0.2,
    "lanes sleep": 0.3,
    "one read without a GPU": 0.05,
    "nvml hangs": 0.05,
    "agent silent": 0.1,
    "node reboots": 0.02,
    "clock jumps": 0.01,
    "corrected again and again": 0.02,
    "out of memory": 0.2,
    "machine is busy": 0.5,
    "old lines read again": 0.02,
    "xid nobody knows": 0.01,
}
# what a whole fleet of 50 nodes meets in a day
SHARED: Mapping[str, float] = {"leaf switch": 0.05, "cooling of a rack": 0.03, "driver upgrade": 0.02}


@dataclass(slots=True)
class Node:
    name: str
    boot: int = 0
    job: str = ""
    problems: dict[str, str] = field(default_factory=dict)
    fault: str = ""  # what is really broken
    out: bool = False
    ahead_s: float = 0.0  # its clock
    silent: bool = False  # its agent tells nothing, and all of it later
    waiting: dict[tuple[str, str, str, str], Finding] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """What a node's agent pushes at a time."""

    node: Node
    findings: tuple[Finding, ...] = ()


Happening = Callable[[float], Iterator[Told]]


class Made:
    """``run`` yields pushes in order; whoever follows it says by ``mended``, and by a node's ``out``, what became of it."""

    def __init__(self, names: Sequence[str], days: float, seed: int, start: float) -> None:
        self.chance = Random(seed)
        self.nodes = [Node(name, job=f"p{number % 5}/first-{number}#1") for number, name in enumerate(names)]
        self.faults: list[tuple[float, Node, str]] = []  # when, where, what
        self._end = start + days * DAY
        self._due: list[tuple[float, int, Happening]] = []
        self._order, self._jobs = count(), count()
        self._counts: dict[tuple[str, str, str, str], int] = {}
        self._plan(start)

    def run(self) -> Iterator[tuple[float, Told]]:
        while self._due and self._due[0][0] < self._end:
            at, _, happening = heapq.heappop(self._due)
            for told in happening(at):
                if told.node.silent:  # of each finding the newest word, as an agent's outbox keeps it
                    told.node.waiting |= {one.key: one for one in told.findings}
                else:
                    yield at, told

    def at(self, when: float, happening: Happening) -> None:
        heapq.heappush(self._due, (when, next(self._order), happening))

    def mended(self, node: Node) -> None:
        node.fault, node.boot = "", node.boot + 1

    # -- what happens when

    def _plan(self, start: float) -> None:
        def often(rate: float, make: Callable[[], Happening]) -> None:
            when = start
            while (when := when + self.chance.expovariate(rate / DAY)) < self._end:
                self.at(when, make())

        for node in self.nodes:
            often(DAY / JOB_S, partial(self._next_job, node))
            for name, rate in NOISE.items():
                often(rate, partial(self._noise, node, name))
            for name, (times, said) in TRUE.items():
                often(times / LLAMA_NODE_DAYS, partial(self._breaks, node, name, *said))
        for name, rate in SHARED.items():
            often(rate * len(self.nodes) / 50, partial(self._shared, name))

    def _next_job(self, node: Node) -> Happening:
        def happens(_at: float) -> Iterator[Told]:
            number = next(self._jobs)
            node.job = f"p{number % 5}/job-{number}#1"
            yield Told(node)

        return happens

    def _breaks(self, node: Node, name: str, rule: str, code: str, source: str) -> Happening:
        def happens(at: float) -> Iterator[Told]:
            if node.fault or node.out:
                return
            node.fault = name
            self.faults.append((at, node, name))
            device = f"GPU-{node.name}-{self.chance.randrange(8)}" if source != "infiniband" else code
            if name == "bad GPU, as page faults":  # each job that meets it dies of it
                for number in range(4):
                    self.at(at + number * 2 * HOUR, self._page_fault(node, device))
                return
            yield Told(node, (self._found(at, node, (rule, code, device, source), severity=Severity.CRITICAL),))
            if source != "kmsg":
                self._goes_on(at, node, (rule, code, device, source), lambda _now: node.fault == name)

        return happens

    def _page_fault(self, node: Node, device: str) -> Happening:
        def happens(at: float) -> Iterator[Told]:
            if node.fault and not node.out:
                yield from self._next_job(node)(at)
                yield Told(node, (self._found(at, node, ("Xid", "31", device, "kmsg")),))

        return happens

    def _goes_on(
        self,
        at: float,
        node: Node,
        what: tuple[str, str, str, str],
        still: Callable[[float], bool],
        until: float = math.inf,
    ) -> None:
        """A state is told again as agents do, and its end once: at ``until``, or when it is no more."""

        def again(now: float) -> Iterator[Told]:
            on = still(now)
            yield Told(node, (self._found(now, node, what, first=at, active=on, new=False),))
            if on:
                self.at(min(now + AGAIN_S, until), again)

        self.at(min(at + AGAIN_S, until), again)

    # -- noise

    def _noise(self, node: Node, name: str) -> Happening:
        chance = self.chance
        gpu = f"GPU-{node.name}-{chance.randrange(8)}"
        makers: Mapping[str, Callable[[float], Iterator[Told]]] = {
            "thermal blip": lambda at: self._for(
                at, node, chance.uniform(5, 400), "GpuThermalThrottle", "", gpu, "nvml"
            ),
            "corrected memory error": lambda at: self._once(at, node, "EccCorrectable", "", gpu, "nvml"),
            "row remapped": lambda at: self._once(at, node, "Xid", "63", gpu, "kmsg"),
            "application's xid": lambda at: self._once(
                at, node, "Xid", chance.choice(["13", "31", "43", "45", "68", "31", "13"]), gpu, "kmsg"
            ),
            "the same job again and again": lambda at: self._repeated(at, node, "Xid", "13", gpu, 5, 6 * MINUTE),
            "all GPUs of a job": lambda at: self._all_gpus(at, node),
            "link flap": lambda at: self._repeated(
                at, node, "LinkFlap", "mlx5_0/1", "mlx5_0/1", chance.choice([1, 1, 2, 3]), 5 * MINUTE
            ),
            "lanes sleep": lambda at: self._for(at, node, chance.uniform(10, 300), "PcieWidth", "", gpu, "nvml"),
            "one read without a GPU": lambda at: self._for(at, node, 30, "GpuMissing", "", "", "nvml"),
            "nvml hangs": lambda at: self._doubtful(at, node, gpu),
            "agent silent": lambda at: self._silent(at, node),
            "node reboots": lambda _at: self._reboot(node),
            "clock jumps": lambda at: self._clock(at, node, gpu),
            "corrected again and again": lambda at: self._repeated(at, node, "Xid", "92", gpu, 10, 3 * MINUTE),
            "out of memory": lambda at: self._once(at, node, "OutOfMemory", "", "", "kmsg"),
            "machine is busy": lambda at: self._once(at, node, "CpuThrottle", "", "", "host"),
            "old lines read again": lambda at: self._once(at, node, "Xid", "79", gpu, "kmsg", old=2 * DAY),
            "xid nobody knows": lambda at: self._once(at, node, "Xid", "777", gpu, "kmsg"),
        }
        return makers[name]

    def _once(
        self, at: float, node: Node, rule: str, code: str, device: str, source: str, old: float = 0.0
    ) -> Iterator[Told]:
        yield Told(node, (self._found(at - old, node, (rule, code, device, source)),))

    def _repeated(
        self, at: float, node: Node, rule: str, code: str, device: str, times: int, gap: float
    ) -> Iterator[Told]:
        job = node.job

        def again(now: float) -> Iterator[Told]:
            if rule != "Xid" or node.job == job:
                yield from self._once(now, node, rule, code, device, "kmsg")

        for number in range(1, times):
            self.at(at + number * gap, again)
        yield from again(at)

    def _all_gpus(self, at: float, node: Node) -> Iterator[Told]:
        devices = [f"GPU-{node.name}-{number}" for number in range(8)]
        yield Told(node, tuple(self._found(at, node, ("Xid", "31", device, "kmsg")) for device in devices))

    def _for(
        self, at: float, node: Node, lasts: float, rule: str, code: str, device: str, source: str
    ) -> Iterator[Told]:
        what, until = (rule, code, device, source), at + lasts
        self._goes_on(at, node, what, lambda now: now < until, until)
        yield Told(node, (self._found(at, node, what),))

    def _doubtful(self, at: float, node: Node, gpu: str) -> Iterator[Told]:
        """NVML hangs for a quarter of an hour, and says nonsense before."""

        def well(now: float) -> Iterator[Told]:
            node.problems.pop("nvml", None)
            yield Told(
                node, (self._found(now, node, ("GpuMissing", "", gpu, "nvml"), first=at, active=False, new=False),)
            )

        node.problems["nvml"] = "nvmlDeviceGetCount has not answered for 20s"
        self.at(at + 15 * MINUTE, well)
        yield Told(node, (self._found(at, node, ("GpuMissing", "", gpu, "nvml")),))

    def _reboot(self, node: Node) -> Iterator[Told]:
        node.boot += 1
        yield Told(node)

    def _silent(self, at: float, node: Node) -> Iterator[Told]:
        """The node cannot reach the server for a while; what it finds meanwhile is told late, by its own times."""

        def again(_now: float) -> Iterator[Told]:
            node.silent, late = False, tuple(node.waiting.values())
            node.waiting.clear()
            yield Told(node, late)

        node.silent = True
        self.at(at + self.chance.uniform(1, 60) * MINUTE, again)
        yield from ()

    def _clock(self, at: float, node: Node, gpu: str) -> Iterator[Told]:
        """It jumps, and is set right ten minutes later; meanwhile a line of an earlier boot comes as if it were new."""

        def right(_now: float) -> Iterator[Told]:
            node.ahead_s = 0.0
            node.boot += 1
            yield Told(node)

        node.ahead_s = self.chance.choice([-3 * HOUR, 2 * HOUR])
        self.at(at + 10 * MINUTE, right)
        yield Told(node, (self._found(at, node, ("Xid", "79", gpu, "kmsg")),))

    def _shared(self, name: str) -> Happening:
        def happens(at: float) -> Iterator[Told]:
            first = self.chance.randrange(max(len(self.nodes) // RACK, 1)) * RACK
            rack = self.nodes[first : first + RACK]
            if name == "driver upgrade":
                for node in self.nodes:
                    yield from self._reboot(node)
            elif name == "leaf switch":
                lasts = self.chance.uniform(2, 20) * MINUTE
                for node in self.nodes[: max(len(self.nodes) // 3, RACK)]:
                    yield from self._for(at, node, lasts, "LinkDown", "mlx5_0/1", "mlx5_0/1", "infiniband")
            else:
                for node in rack:
                    begin = at + self.chance.uniform(0, 5) * MINUTE
                    lasts = self.chance.uniform(35, 45) * MINUTE
                    self.at(begin, partial(self._hot, node, lasts))

        return happens

    def _hot(self, node: Node, lasts: float, at: float) -> Iterator[Told]:
        yield from self._for(at, node, lasts, "GpuThermalThrottle", "", f"GPU-{node.name}-0", "nvml")

    def _found(
        self,
        at: float,
        node: Node,
        what: tuple[str, str, str, str],
        *,
        severity: Severity = Severity.WARNING,
        first: float | None = None,
        active: bool = True,
        new: bool = True,
    ) -> Finding:
        rule, code, device, source = what
        key = (node.name, rule, code, device)
        self._counts[key] = self._counts.get(key, 0) + (1 if new else 0)
        counted = max(self._counts[key], 1)
        since = at if first is None else first
        return Finding(rule, node.name, at, since, rule, severity, device, code, counted, source, active)
