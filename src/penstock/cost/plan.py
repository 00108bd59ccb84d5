"""Usage -> money. Pure, and exact: amounts are whole billionths of the currency, so rows always add up to the total."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

from penstock.cost.spec import CPUS, GIB, GPUS, MEMORY, Prices

NANOS = 10**9  # parts of one unit of the currency
_HOUR = Decimal(3600)


@dataclass(frozen=True, slots=True)
class Usage:
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
    lines: dict[tuple[str | int, ...], Line] = {}
    for usage in usages:
        line = _line(usage, prices)
        before = lines.get(usage.key)
        lines[usage.key] = before.plus(line) if before else line
    ordered = sorted(lines.values(), key=lambda line: (-line.nanos, tuple(map(str, line.key))))
    return Bill(tuple(ordered), sum(line.nanos for line in ordered))


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


def _line(usage: Usage, prices: Prices) -> Line:
    hours = Decimal(repr(max(usage.unit_seconds, 0.0))) / _HOUR
    if usage.resource == CPUS:
        return Line(usage.key, _nanos(hours * prices.cpu_hour), cpu_hours=float(hours))
    if usage.resource == MEMORY:
        gib_hours = hours / GIB
        return Line(usage.key, _nanos(gib_hours * prices.memory_gib_hour), memory_gib_hours=float(gib_hours))
    if usage.resource.startswith(GPUS):
        rate = prices.gpu(usage.resource.removeprefix(GPUS))
        return Line(usage.key, _nanos(hours * rate), gpu_hours=float(hours))
    return Line(usage.key, 0)


def _nanos(value: Decimal) -> int:
    return int((value * NANOS).to_integral_value(ROUND_HALF_EVEN))
