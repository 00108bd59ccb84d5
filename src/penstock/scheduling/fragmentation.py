"""Fragmentation as FGD measures it, and placements that are judged by it.

Weng et al., "Beware of Fragmentation: Scheduling GPU-Sharing Workloads with Fragmentation Gradient Descent", USENIX
ATC 2023. The fragmentation of a node is F = sum over shapes of popularity x the free GPU thousandths there that the
shape cannot use: all of them where it does not fit at all (GPUs, cores or model lacking, or it asks for no GPU), else
those on GPUs with less left than it needs. F of a fleet is the sum over its nodes; memory is not part of it.

Free GPUs are tuples of thousandths (0..1000). ``models`` names each GPU's model in the same order, or has one entry
where all are alike; then the tuple is sorted, so that nodes in one state are one entry in the memo. Cores may be in any
unit, the same throughout. Every score here is better the lower it is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.scheduling.devices import share_gpus
from penstock.scheduling.models import any_means

if TYPE_CHECKING:
    from penstock.scheduling.pool import Pool
    from penstock.scheduling.state import Ask, Part, Share

WHOLE = 1000  # thousandths of a GPU
COVERED = 0.95  # the most frequent shapes that make up this much are looked at, as FGD's authors do
# Best fit's say beside F, in thousandths of a GPU. With none, ties and near ties open up fresh nodes: on openb 94.1% of
# the GPUs are allocated in the end, with 40 to 80 it is 95.3 to 95.5 (published: 95.39), with 200 it is 95.2 again.
TIGHTNESS = 50.0
_MEMO = 1 << 17  # states remembered

Models = tuple[str, ...]
Free = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """What one pod or group wants on a node: ``gpus`` GPUs, ``milli`` thousandths of each (below 1000: of one only)."""

    cpus: float
    gpus: int = 0
    milli: int = 0
    models: tuple[str, ...] = ()  # empty: any


@dataclass(frozen=True, slots=True)
class Scale:
    """The largest node of the fleet, so that cores and GPUs can be added up."""

    cpus: float
    gpus: int


def popularity(counts: Mapping[Shape, float], covered: float = COVERED) -> dict[Shape, float]:
    """The most frequent shapes that make up ``covered`` of all, with their shares, which sum to 1."""
    total = sum(counts.values())
    chosen: dict[Shape, float] = {}
    reached = 0.0
    for shape, count in sorted(counts.items(), key=lambda item: (-item[1], repr(item[0]))):
        if reached >= covered * total:
            break
        chosen[shape] = count
        reached += count
    return {shape: count / reached for shape, count in chosen.items()}


class Fragmentation:
    """F under one popularity. Remembers, per state of a node's GPUs, what each number of free cores makes usable."""

    def __init__(self, shapes: Mapping[Shape, float]) -> None:
        self.shapes = dict(shapes)
        self._wanting = sorted((shape.cpus, repr(shape), shape, share) for shape, share in shapes.items() if shape.gpus)
        self._memo: dict[tuple[Models, Free], tuple[int, list[float], list[float]]] = {}

    def of(self, models: Models, cpus: float, free: Free) -> float:
        """F of one node, in thousandths of a GPU."""
        known = self._memo.get((models, free)) or self._table(models, free)
        total, cores, usable = known
        return total - usable[bisect_right(cores, cpus)]

    def _table(self, models: Models, free: Free) -> tuple[int, list[float], list[float]]:
        """What is free, and the share of it that is usable by all shapes of at most so many cores, summed up."""
        cores: list[float] = []
        usable = [0.0]
        for cpus, _, shape, share in self._wanting:
            fitting = [left for left, _ in _fitting(shape, models, free)]
            if len(fitting) >= shape.gpus:
                cores.append(cpus)
                usable.append(usable[-1] + share * sum(fitting))
        if len(self._memo) >= _MEMO:
            self._memo.clear()
        found = self._memo[models, free] = (sum(free), cores, usable)
        return found

    def least_increase(self, shape: Shape, models: Models, cpus: float, free: Free) -> tuple[float, Free] | None:
        """How much F grows on this node at least if the shape is placed there, and what is then free; None: no room."""
        before = self.of(models, cpus, free)
        best: tuple[float, Free] | None = None
        for left in outcomes(shape, models, cpus, free):
            grows = self.of(models, cpus - shape.cpus, left) - before
            if best is None or grows < best[0]:
                best = (grows, left)
        return best


def _fitting(shape: Shape, models: Models, free: Free) -> Iterable[tuple[int, int]]:
    """(what is free, position) of the GPUs that the shape could use."""
    allowed, alike = shape.models, len(models) == 1
    for at, left in enumerate(free):
        if left >= shape.milli and (not allowed or any_means(allowed, models[0 if alike else at])):
            yield left, at


def outcomes(shape: Shape, models: Models, cpus: float, free: Free) -> list[Free]:
    """What may be free once the shape is placed: for a share one outcome for each different GPU, the fullest first."""
    if cpus < shape.cpus:
        return []
    if not shape.gpus:
        return [free]
    fitting = sorted(_fitting(shape, models, free))
    if len(fitting) < shape.gpus:
        return []
    if shape.gpus > 1 or shape.milli == WHOLE:
        return [_less(models, free, [at for _, at in fitting[: shape.gpus]], shape.milli)]
    found: list[Free] = []
    for _, at in fitting:
        left = _less(models, free, [at], shape.milli)
        if left not in found:
            found.append(left)
    return found


def _less(models: Models, free: Free, positions: Sequence[int], milli: int) -> Free:
    left = list(free)
    for at in positions:
        left[at] -= milli
    if len(models) == 1:
        left.sort()
    return tuple(left)


# -- scores of one node for one shape that fits there; the lower the better


def fgd(measure: Fragmentation, shape: Shape, models: Models, cpus: float, free: Free, scale: Scale) -> float | None:
    """Least increase of F; among nodes much alike in that, best fit. None: no room."""
    found = measure.least_increase(shape, models, cpus, free)
    return None if found is None else found[0] + TIGHTNESS * remainder(shape, cpus, free, scale)


def remainder(shape: Shape, cpus: float, free: Free, scale: Scale) -> float:
    """What is left of cores and GPUs, each as a share of the largest node, averaged: 0 to 1."""
    gpus = (sum(free) - shape.gpus * shape.milli) / (scale.gpus * WHOLE) if scale.gpus else 0.0
    return ((cpus - shape.cpus) / scale.cpus + gpus) / 2 if scale.cpus else gpus / 2


def bestfit(shape: Shape, cpus: float, free: Free, scale: Scale) -> float:
    """The least remainder, in hundredths as its publishers score it."""
    return -int(100 * (1 - remainder(shape, cpus, free, scale)))


def dotprod(shape: Shape, cpus: float, free: Free, scale: Scale) -> float:
    """Tetris' alignment of demand and room: the least product, in hundredths."""
    aligned = cpus * shape.cpus / scale.cpus**2 if scale.cpus else 0.0
    if scale.gpus:
        aligned += sum(free) * shape.gpus * shape.milli / (scale.gpus * WHOLE) ** 2
    return -int(100 * (1 - aligned / 2))


def packing(shape: Shape, free: Free) -> float:
    """GPUs in use before free GPUs of a node in use before a node that is not: -100 to -50, to -33, to 0."""
    whole = sum(1 for left in free if left == WHOLE)
    if whole == len(free):
        return -max(33 - whole, whole)
    chosen = sorted(left for left in free if left >= shape.milli)[: shape.gpus]
    opened = chosen.count(WHOLE)
    if opened:
        return -max(50 - opened, 33)
    return -max(100 - sum(left // 10 for left in chosen) // 10, 50)


# -- in the live scheduler and in replay


def shape_of(ask: Ask) -> Shape:
    """MIG instances are devices of their own and count as no GPU here."""
    if ask.gpu_milli:
        return Shape(ask.cpus, 1, ask.gpu_milli, ask.gpu_models)
    if ask.gpus and not ask.mig:
        return Shape(ask.cpus, ask.gpus, WHOLE, ask.gpu_models)
    return Shape(ask.cpus)


class Scorer:
    """Pool's scorer for ``placement: fgd``. The weights are those of all that waits and runs, as ``weigh`` is told:
    a plan from a snapshot and a live scheduler then judge alike.
    """

    def __init__(self) -> None:
        self.last = 0.0  # how good the share is that was answered last
        self._counts: dict[tuple[Part, ...], int] = {}
        self._measure = Fragmentation({})

    def weigh(self, gangs: Iterable[tuple[Part, ...]]) -> None:
        counts = Counter(gangs)
        if counts == self._counts:
            return
        self._counts = counts
        shapes: Counter[Shape] = Counter()
        for parts, times in counts.items():
            for part in parts:
                shapes[shape_of(part.ask)] += times * part.count
        self._measure = Fragmentation(popularity(shapes))

    def __call__(self, pool: Pool, ask: Ask, i: int) -> Share | None:
        """A share on node ``i``, where the ask fits, with the GPU that leaves the least fragmentation."""
        node = pool.nodes[i]
        if node is None:
            return None
        models = tuple(gpu.model for gpu in node.gpus)
        alike = len(set(models)) <= 1
        free = pool.free_milli(i)
        shape, cpus = shape_of(ask), pool.free_cpus[i]
        scale = Scale(node.cpus, len(node.gpus))
        kind = (models[:1] or ("",)) if alike else models
        score = fgd(self._measure, shape, kind, cpus, tuple(sorted(free)) if alike else free, scale)
        if score is None:  # by a rounding error of a core: the pool says that it fits
            score = TIGHTNESS
        self.last = score
        return pool.share(ask, i) if not ask.gpu_milli else self._share(pool, ask, i, models, free)

    def _share(self, pool: Pool, ask: Ask, i: int, models: Models, free: Free) -> Share:
        """The share of the GPU that adds least to F; among equals the fullest, then the first."""
        shape, cpus = shape_of(ask), pool.free_cpus[i] - ask.cpus
        best: tuple[float, int, int] | None = None
        for left, at in share_gpus(free, ask.gpu_milli, models, ask.gpu_models):
            after = (*free[:at], left - shape.milli, *free[at + 1 :])
            key = (self._measure.of(models, cpus, after), left, at)
            best = key if best is None or key < best else best
        assert best is not None, "the pool says that it fits"
        return pool.share(ask, i, at=best[2])


class Spread:
    """Pool's scorer for ``placement: spread``: the node, and for shares the GPU, with the most free."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, pool: Pool, ask: Ask, i: int) -> Share | None:
        node = pool.nodes[i]
        if node is None:
            return None
        free = pool.free_milli(i)
        self.last = -float(sum(free)) - pool.free_cpus[i] * 1e-6  # cores decide among equals
        if not ask.gpu_milli:
            return pool.share(ask, i)
        left, at = share_gpus(free, ask.gpu_milli, [gpu.model for gpu in node.gpus], ask.gpu_models)[-1]
        return pool.share(ask, i, at=free.index(left) if not ask.gpu_models else at)


def scorer_for(placement: str) -> Scorer | Spread | None:
    """What ``Policy.placement`` asks of the pool; None: the pool's own ways, best fit and first fit."""
    if placement == "fgd":
        return Scorer()
    return Spread() if placement == "spread" else None
