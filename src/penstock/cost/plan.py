"""Usage -> money. Pure, and exact: amounts are whole billionths of the currency, so rows always add up to the total."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from penstock.cost.spec import CPUS, GIB, GPUS, MEMORY, Prices

NANOS = 10**9  # parts of one unit of the currency
_HOUR = 3600


class Usage(NamedTuple):
    """``unit_seconds`` of one resource (core-seconds, byte-seconds, GPU-seconds) under one key."""

    key: tuple[str | int, ...]
    resource: str
    unit_seconds: float


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a bill; ``nanos`` is the amount in billionths of the currency."""

    key: tuple[str | int, ...]
    nanos: int
    cpu_hours: float = 0.0
    memory_gib_hours: float = 0.0
    gpu_hours: float = 0.0

    def plus(self, other: Line) -> Line:
        return Line(
            self.key,
            self.nanos + other.nanos,
            self.cpu_hours + other.cpu_hours,
            self.memory_gib_hours + other.memory_gib_hours,
            self.gpu_hours + other.gpu_hours,
        )


@dataclass(frozen=True, slots=True)
class Bill:
    """Lines, the dearest first, and their sum."""

    lines: tuple[Line, ...]
    nanos: int


def price(usages: Iterable[Usage], prices: Prices) -> Bill:
    """One line per key. Usage that ends before it began (a clock set back) counts as none."""
    sums: dict[tuple[str | int, ...], list[float]] = {}  # nanos, core-seconds, byte-seconds, GPU-seconds
    rates: dict[str, tuple[int, float]] = {}
    for usage in usages:
        at, rate = rates.get(usage.resource) or rates.setdefault(usage.resource, _rate(usage.resource, prices))
        line = sums.get(usage.key)
        if line is None:
            line = sums[usage.key] = [0, 0.0, 0.0, 0.0]
        if at and usage.unit_seconds > 0:
            line[0] += round(usage.unit_seconds * rate)
            line[at] += usage.unit_seconds
    lines = [
        Line(key, int(nanos), cores / _HOUR, held / _HOUR / GIB, gpus / _HOUR)
        for key, (nanos, cores, held, gpus) in sums.items()
    ]
    lines.sort(key=lambda line: (-line.nanos, tuple(map(str, line.key))))
    return Bill(tuple(lines), sum(line.nanos for line in lines))


def _rate(resource: str, prices: Prices) -> tuple[int, float]:
    """Where a resource's amount is summed (0: it costs nothing), and what one unit-second of it costs, in nanos."""
    if resource == CPUS:
        return 1, float(prices.cpu_hour * NANOS / _HOUR)
    if resource == MEMORY:
        return 2, float(prices.memory_gib_hour * NANOS / GIB / _HOUR)
    if resource.startswith(GPUS):
        return 3, float(prices.gpu(resource.removeprefix(GPUS)) * NANOS / _HOUR)
    return 0, 0.0


def shorten(bill: Bill, limit: int) -> tuple[Bill, int]:
    """At most ``limit`` lines: those beyond are folded into the last, and counted. The total stays."""
    if len(bill.lines) <= limit:
        return bill, 0
    kept, folded = bill.lines[: limit - 1], bill.lines[limit - 1 :]
    rest = Line(("",) * len(folded[0].key), 0)
    for line in folded:
        rest = rest.plus(line)
    return Bill((*kept, rest), bill.nanos), len(folded)


def amount(nanos: int) -> float:
    """In units of the currency, for JSON."""
    return nanos / NANOS
