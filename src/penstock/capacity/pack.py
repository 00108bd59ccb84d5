"""``penstock capacity pack``: a fleet filled with pods, one by one, none of which leaves; how much of it is put to use
under a placement policy, and how much is left in pieces that nobody wants (scheduling/fragmentation.py).

The pods of a list are shuffled, then drawn again at random until GPU demand is ``tune`` x the fleet's, which is what
FGD's authors do. A score depends on a pod's class and a node's state alone: it is remembered by both, and one placement
makes one node's scores old.
"""

from __future__ import annotations

import csv
import lzma
import random
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.base.errors import InvalidInput, Problem
from penstock.base.text import one_line
from penstock.capacity.traces import opened
from penstock.scheduling import fragmentation
from penstock.scheduling.fragmentation import WHOLE, Fragmentation, Free, Models, Scale, Shape, outcomes, popularity

POLICIES = ("random", "bestfit", "packing", "dotprod", "fgd")
SHOWN = 20  # problems told with their lines
_MOST = 5_000_000  # pods in a run
_MEMO = 1 << 20
_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Pod:
    shape: Shape  # cores in thousandths
    memory: int = 0  # MiB

    @property
    def milli(self) -> int:
        return self.shape.gpus * self.shape.milli


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    cpus: int  # thousandths of a core
    memory: int  # MiB
    gpus: int
    model: str = ""


# -- files


class _Table:
    """A CSV file's rows as mappings; keeps the first problems, counts all."""

    def __init__(self, path: str, needed: Sequence[str]) -> None:
        self.path, self.needed = path, needed
        self.problems: list[Problem] = []
        self.count = 0

    def bad(self, line: int, column: str, what: str) -> None:
        self.count += 1
        if len(self.problems) < SHOWN:
            self.problems.append(Problem(column, what, line))

    def rows(self) -> Iterator[tuple[int, Mapping[str, str]]]:
        try:
            with opened(self.path) as text:
                reader = csv.DictReader(text)
                missing = [name for name in self.needed if name not in (reader.fieldnames or ())]
                if missing:
                    raise InvalidInput(f"{self.path} has no column {', '.join(missing)}")
                for row in reader:
                    yield reader.line_num, row
        except (csv.Error, EOFError, OSError, lzma.LZMAError, zlib.error) as exc:
            raise InvalidInput(f"{self.path} cannot be read: {exc}") from exc

    def whole(self, row: Mapping[str, str], line: int, column: str, most: int = 1 << 50) -> int:
        """A count. What is not one is told of, and 0."""
        text = (row.get(column) or "").strip()
        digits = text.removesuffix(".0")  # as pandas writes a column with a gap in it
        value = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else -1
        if not 0 <= value <= most:
            self.bad(line, column, f"{one_line(text, 40)!r} is not a whole number from 0 to {most}")
            return 0
        return value

    def done(self) -> None:
        if self.count:
            raise InvalidInput(f"{self.count} problems in {self.path}", details=self.problems)


def read_nodes(path: str) -> list[Node]:
    """Columns ``sn`` (or ``name``), ``cpu_milli``, ``memory_mib``, ``gpu``; ``model`` may be missing."""
    table = _Table(path, ("cpu_milli", "memory_mib", "gpu"))
    nodes: list[Node] = []
    seen: dict[str, int] = {}
    for line, row in table.rows():
        name = row.get("sn") or row.get("name") or ""
        if not name:
            table.bad(line, "sn", "the node has no name")
        elif name in seen:
            table.bad(line, "sn", f"{one_line(name, 60)!r} is on line {seen[name]} already")
        seen.setdefault(name, line)
        cpus, memory = table.whole(row, line, "cpu_milli"), table.whole(row, line, "memory_mib")
        nodes.append(Node(name, cpus, memory, table.whole(row, line, "gpu", 64), (row.get("model") or "").strip()))
    table.done()
    if not any(node.gpus for node in nodes):
        raise InvalidInput(f"{path} has no node with a GPU")
    return nodes


def read_pods(path: str) -> list[Pod]:
    """Columns ``cpu_milli``, ``num_gpu``, ``gpu_milli``; ``memory_mib`` and ``gpu_spec`` (``A|B``) may be missing."""
    table = _Table(path, ("cpu_milli", "num_gpu", "gpu_milli"))
    pods: list[Pod] = []
    known: dict[Pod, Pod] = {}  # a list has few kinds
    for line, row in table.rows():
        cpus, gpus = table.whole(row, line, "cpu_milli"), table.whole(row, line, "num_gpu", 64)
        milli = table.whole(row, line, "gpu_milli", WHOLE)
        memory = table.whole(row, line, "memory_mib") if row.get("memory_mib") else 0
        if gpus and not milli:
            table.bad(line, "gpu_milli", "a pod with GPUs must say how much of each, from 1 to 1000")
        elif gpus > 1 and milli < WHOLE:
            table.bad(line, "gpu_milli", "a share is of one GPU; several must be whole (1000)")
        models = tuple(sorted({name.strip() for name in (row.get("gpu_spec") or "").split("|") if name.strip()}))
        pod = Pod(Shape(cpus, gpus, milli, models) if gpus else Shape(cpus), memory)
        pods.append(known.setdefault(pod, pod))
    table.done()
    if not any(pod.milli for pod in pods):
        raise InvalidInput(f"{path} has no pod that asks for a GPU")
    return pods


# -- the run


def inflated(pods: Sequence[Pod], milli: float, rng: random.Random) -> list[Pod]:
    """All pods shuffled, then more of them at random up to a demand of ``milli``; or fewer, where they are too many."""
    found = list(pods)
    rng.shuffle(found)
    demand = sum(pod.milli for pod in found)
    if milli / demand * len(found) > _MOST:
        raise InvalidInput(f"to reach that demand more than {_MOST} pods would be needed: lower --tune")
    while demand > milli and found:
        demand -= found.pop().milli
    while demand < milli:
        pod = rng.choice(pods)
        demand += pod.milli
        if demand > milli:
            break
        found.append(pod)
    return found


@dataclass(slots=True)
class Curve:
    """After each arrival, by whole % of the fleet's GPUs asked for so far: means of what was then so."""

    sums: dict[int, list[float]] = field(default_factory=dict)

    def add(self, arrived: float, allocated: float, fragmented: float) -> None:
        entry = self.sums.setdefault(round(arrived), [0.0, 0.0, 0.0])
        entry[0] += 1
        entry[1] += allocated
        entry[2] += fragmented

    def points(self) -> list[tuple[int, float, float]]:
        """(% arrived, % allocated, % fragmented), by arrival."""
        return [(at, round(a / n, 3), round(f / n, 3)) for at, (n, a, f) in sorted(self.sums.items())]


class Fleet:
    """Nodes, what is free on each, and each pod class' score of each node."""

    def __init__(self, nodes: Sequence[Node], pods: Sequence[Pod], policy: str, rng: random.Random) -> None:
        self.policy, self.rng = policy, rng
        self.cpus = [node.cpus for node in nodes]
        self.memory = [node.memory for node in nodes]
        self.free: list[Free] = [(WHOLE,) * node.gpus for node in nodes]
        self.models: list[Models] = [(node.model,) for node in nodes]
        self.capacity = WHOLE * sum(node.gpus for node in nodes)
        self.scale = Scale(max(self.cpus), max(node.gpus for node in nodes))
        self.measure = Fragmentation(popularity(Counter(pod.shape for pod in pods)))
        self._each = [self.measure.of(*state) for state in zip(self.models, self.cpus, self.free, strict=True)]
        self.fragmented = sum(self._each)
        self.allocated = 0
        self._scores: dict[Pod, list[float]] = {}
        self._seen: dict[Pod, int] = {}  # how much of the log its scores know of
        self._log: list[int] = []  # nodes, as they changed
        self._memo: dict[Pod, dict[tuple[Models, int, Free], float]] = {}

    def place(self, pod: Pod) -> int | None:
        """Place it on the best node, the first among equals; None where it fits nowhere."""
        scores = self._current(pod)
        best = min(scores)
        if best == _NEVER:
            return None
        at = scores.index(best)
        if self.policy == "random":
            at = self.rng.choice([i for i, score in enumerate(scores) if score == best])
        self.free[at] = self._chosen(pod, at)
        self.cpus[at] -= int(pod.shape.cpus)
        self.memory[at] -= pod.memory
        self.allocated += pod.milli
        self._log.append(at)
        now = self.measure.of(self.models[at], self.cpus[at], self.free[at])
        self.fragmented += now - self._each[at]
        self._each[at] = now
        return at

    def _current(self, pod: Pod) -> list[float]:
        scores = self._scores.get(pod)
        if scores is None:
            self._memo[pod] = {}
            scores = self._scores[pod] = [self._score(pod, i) for i in range(len(self.cpus))]
        else:
            for i in set(self._log[self._seen[pod] :]):
                scores[i] = self._score(pod, i)
        self._seen[pod] = len(self._log)
        return scores

    def _score(self, pod: Pod, i: int) -> float:
        cpus, free, models = self.cpus[i], self.free[i], self.models[i]
        if cpus < pod.shape.cpus or self.memory[i] < pod.memory:
            return _NEVER
        memo = self._memo[pod]
        key = (models, cpus, free)
        score = memo.get(key)
        if score is None:
            if len(memo) >= _MEMO:
                memo.clear()
            score = memo[key] = self.score(pod.shape, models, cpus, free)
        return score

    def score(self, shape: Shape, models: Models, cpus: int, free: Free) -> float:
        """The policy's, the lower the better; infinite without room."""
        if self.policy == "fgd":
            found = fragmentation.fgd(self.measure, shape, models, cpus, free, self.scale)
            return _NEVER if found is None else found
        if not outcomes(shape, models, cpus, free):
            return _NEVER
        if self.policy == "bestfit":
            return fragmentation.bestfit(shape, cpus, free, self.scale)
        if self.policy == "dotprod":
            return fragmentation.dotprod(shape, cpus, free, self.scale)
        return fragmentation.packing(shape, free) if self.policy == "packing" else 0.0

    def _chosen(self, pod: Pod, at: int) -> Free:
        """FGD takes the GPU that adds least to F, random any, the others the fullest."""
        shape, models, free = pod.shape, self.models[at], self.free[at]
        if self.policy == "fgd":
            found = self.measure.least_increase(shape, models, self.cpus[at], free)
            assert found is not None, "a finite score: it fits"
            return found[1]
        if self.policy == "random" and 0 < shape.milli < WHOLE:
            lowest = bisect_left(free, shape.milli)
            at = self.rng.randrange(lowest, len(free))
            return tuple(sorted((*free[:at], free[at] - shape.milli, *free[at + 1 :])))
        return outcomes(shape, models, self.cpus[at], free)[0]


def holds(node: Node, pod: Pod) -> bool:
    """Whether the empty node has room for it."""
    room = outcomes(pod.shape, (node.model,), node.cpus, (WHOLE,) * node.gpus)
    return bool(room) and node.memory >= pod.memory


def run(
    nodes: Sequence[Node], pods: Sequence[Pod], *, policy: str, tune: float, seed: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """One filling. ``clock`` gives ``wall_s``, which leaves reading the files out."""
    began = clock()
    rng = random.Random(seed)
    fleet = Fleet(nodes, pods, policy, rng)
    curve, arrived, placed = Curve(), 0, 0
    cap = fleet.capacity / 100
    order = inflated(pods, tune * fleet.capacity, rng)
    for pod in order:
        arrived += pod.milli
        placed += fleet.place(pod) is not None
        curve.add(arrived / cap, fleet.allocated / cap, fleet.fragmented / cap)
    if not order:  # so little is asked for that no pod arrives
        curve.add(0.0, 0.0, fleet.fragmented / cap)
    points = curve.points()
    never = sum(times for pod, times in Counter(order).items() if not any(holds(node, pod) for node in nodes))
    return {
        "policy": policy,
        "tune": tune,
        "seed": seed,
        "nodes": len(nodes),
        "gpus": fleet.capacity // WHOLE,
        "pods": len(order),
        "placed": placed,
        "never_fit": never,
        "allocated_pct": round(fleet.allocated / cap, 2),
        "fragmented_pct_at_90": next((round(f, 2) for at, _, f in points if at == 90), None),
        "fragmented_pct_end": round(fleet.fragmented / cap, 2),
        "wall_s": round(clock() - began, 3),
        "curve": points,
    }


def run_files(
    pods: str, nodes: str, *, policy: str, tune: float, seed: int, clock: Callable[[], float]
) -> dict[str, Any]:
    """The command: every wrong option and row is told at once. Raises InvalidInput."""
    wrong: list[Problem] = []
    if policy not in POLICIES:
        wrong.append(Problem("--policy", f"{policy!r} is none of {', '.join(POLICIES)}"))
    if not 0 < tune <= 100:
        wrong.append(Problem("--tune", f"{tune} is not above 0 and at most 100"))
    if wrong:
        raise InvalidInput("the options cannot be used", details=wrong)
    return run(read_nodes(nodes), read_pods(pods), policy=policy, tune=tune, seed=seed, clock=clock)


# -- the picture

_BARS = " ▁▂▃▄▅▆▇█"


def picture(found: Mapping[str, Any], width: int = 66) -> list[str]:
    """Lines for a terminal: allocated and fragmented against arrived, as sparklines and as a table of every 10%."""
    points = found["curve"]
    last = points[-1][0]
    shown = [points[min(bisect_left(points, (last * n / (width - 1),)), len(points) - 1)] for n in range(width)]
    lines = [f"{found['policy']} on {found['gpus']} GPUs: {found['placed']} of {found['pods']} pods placed"]
    if found["never_fit"]:
        lines.append(f"{found['never_fit']} pods fit on no node even when it is empty")
    for name, column in (("allocated", 1), ("fragmented", 2)):
        top = max(point[column] for point in points) or 1.0
        marks = "".join(_BARS[round(point[column] / top * (len(_BARS) - 1))] for point in shown)
        lines.append(f"{name:<11}{marks} {points[-1][column]:.2f}% (highest {top:.2f}%)")
    lines.append(f"{'arrived %':<11}0{last:>{width - 1}}")
    lines.append("")
    lines.append(f"{'ARRIVED %':>10}{'ALLOCATED %':>13}{'FRAGMENTED %':>14}")
    lines += [f"{at:>10}{a:>13.2f}{f:>14.2f}" for at, a, f in points if at % 10 == 0 or at == last]
    lines.append(
        f"allocated {found['allocated_pct']}%, fragmented {found['fragmented_pct_end']}%"
        f" (at 90% arrived: {found['fragmented_pct_at_90']}%) in {found['wall_s']} s"
    )
    return lines
