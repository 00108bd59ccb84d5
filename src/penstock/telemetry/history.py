"""The last hours of nodes' samples, in memory: rings of half floats, coarser as they get older.

A node costs its series times 168 slots times two bytes: with eight GPUs some 50 kB. What comes in cannot make it grow: series
are of a closed list (``kept.py``), so many a node, and when all nodes' rings are larger than ``most_bytes``, the node that was
not heard of for longest goes. A restart of the server begins anew; Prometheus is for what must be kept.
"""

from __future__ import annotations

import math
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import NamedTuple

from penstock.telemetry.kept import KEPT, place
from penstock.telemetry.push import Row
from penstock.telemetry.push import Series as Sent

MOST_BYTES = 120 << 20  # 2,000 nodes with eight GPUs and all that is kept of them
MOST_SERIES = 192  # of one node; the first that were told of
_NAN = math.nan
_LARGEST = 65504.0  # that half a float holds
_PLANS = 512  # kinds of node that are remembered


class Tier(NamedTuple):
    step: float  # seconds that one slot is of
    slots: int


TIERS = (Tier(10.0, 60), Tier(60.0, 60), Tier(600.0, 48))
_FIRST = tuple(sum(tier.slots for tier in TIERS[:number]) for number in range(len(TIERS)))  # slot of each ring
_SLOTS = sum(tier.slots for tier in TIERS)


class Recent(NamedTuple):
    """Samples of one value of a node or one of its devices, by time. A counter's are its rates per second."""

    name: str
    device: str
    samples: tuple[tuple[float, float], ...]  # epoch seconds, value in base units


class _Column(NamedTuple):
    """One number of a row: where it goes, and how."""

    sent: int
    kept: int
    scale: float
    counter: bool


class _Ring:
    """All series of one node."""

    __slots__ = ("at", "data", "devices", "digest", "last", "newest", "numbers", "plan", "row", "sent")

    def __init__(self) -> None:
        self.digest = ""
        self.sent = 0  # numbers in a row of that digest
        self.plan: tuple[_Column, ...] = ()
        self.numbers = array("H")  # of ``KEPT``
        self.devices: list[str] = []
        self.row = Struct("<0e")
        self.data = bytearray()
        self.last = array("d")  # counters as they were last
        self.at = 0.0  # of the newest row
        self.newest = [-1] * len(TIERS)  # the newest slot of each ring, counted since the epoch

    def __len__(self) -> int:
        return len(self.numbers)

    def widen(self, found: Sequence[tuple[int, str]]) -> None:
        """Make room for further series; those that nothing is known of any more make way."""
        rows = [self.row.unpack_from(self.data, slot * self.row.size) for slot in range(_SLOTS)] if self.data else []
        alive = [i for i in range(len(self)) if not all(math.isnan(row[i]) for row in rows)]
        wanted = set(found)
        alive = [i for i in alive if (self.numbers[i], self.devices[i]) in wanted or len(alive) < MOST_SERIES]
        have = {(self.numbers[i], self.devices[i]) for i in alive}
        fresh = [one for one in dict.fromkeys(found) if one not in have][: MOST_SERIES - len(alive)]
        blank = (_NAN,) * len(fresh)
        self.numbers = array("H", [self.numbers[i] for i in alive] + [number for number, _ in fresh])
        self.devices = [self.devices[i] for i in alive] + [device for _, device in fresh]
        self.last = array("d", [self.last[i] for i in alive] + list(blank))
        self.row = Struct(f"<{len(self)}e")
        self.data = bytearray(self.row.pack(*(_NAN for _ in alive), *blank) * _SLOTS)
        for slot, row in enumerate(rows if alive else ()):
            self.row.pack_into(self.data, slot * self.row.size, *(row[i] for i in alive), *blank)

    def write(self, tier: int, slot: int, values: Sequence[float]) -> None:
        """Put ``values`` into a slot of a ring; slots that were passed over hold nothing."""
        first, count = _FIRST[tier], TIERS[tier].slots
        for passed in range(max(self.newest[tier] + 1, slot - count + 1), slot):
            self._put(first + passed % count, (_NAN,) * len(self))
        self.newest[tier] = slot
        self._put(first + slot % count, values)

    def _put(self, place: int, values: Sequence[float]) -> None:
        try:
            self.row.pack_into(self.data, place * self.row.size, *values)
        except OverflowError:
            self.row.pack_into(self.data, place * self.row.size, *(max(-_LARGEST, min(_LARGEST, v)) for v in values))

    def read(self, tier: int, slot: int) -> tuple[float, ...]:
        return self.row.unpack_from(self.data, (_FIRST[tier] + slot % TIERS[tier].slots) * self.row.size)

    def slots(self, tier: int) -> Iterator[int]:
        """Those that a ring holds, by time."""
        newest = self.newest[tier]
        return iter(range(max(0, newest - TIERS[tier].slots + 1), newest + 1) if newest >= 0 else ())


class History:
    """Of all nodes. ``rows`` are taken in the order of their times, each once."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._nodes: OrderedDict[str, _Ring] = OrderedDict()  # the node that was heard of last is last
        self._plans: OrderedDict[tuple[_Column, ...], tuple[_Column, ...]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._nodes)

    def nodes(self) -> tuple[str, ...]:
        return tuple(self._nodes)

    @property
    def series_count(self) -> int:
        return sum(map(len, self._nodes.values()))

    def knows(self, node: str, digest: str) -> bool:
        """Whether rows of this digest can be read."""
        ring = self._nodes.get(node)
        return ring is not None and ring.digest == digest

    def width(self, node: str) -> int:
        """How many numbers a row of the node has."""
        return self._nodes[node].sent

    def learn(self, node: str, digest: str, series: Sequence[Sent]) -> None:
        """What the columns of rows of this digest are."""
        ring = self._nodes.get(node)
        if ring is None:
            ring = self._nodes[node] = _Ring()
        elif ring.digest == digest:
            return
        found = [(sent, where) for sent, one in enumerate(series) if (where := place(one)) is not None]
        have = set(zip(ring.numbers, ring.devices, strict=True))
        before = len(ring.data)
        if any(where not in have for _, where in found):
            ring.widen([where for _, where in found])
        self.bytes += len(ring.data) - before
        ring.digest, ring.sent, ring.plan = digest, len(series), self._shared(_columns(ring, found))
        self._bound(node)

    def take(self, node: str, rows: Sequence[Row]) -> int:
        """How many were newer than what is known."""
        ring = self._nodes[node]
        self._nodes.move_to_end(node)
        return sum(_take(ring, row) for row in rows)

    def forget(self, node: str) -> None:
        ring = self._nodes.pop(node, None)
        self.bytes -= len(ring.data) if ring is not None else 0

    def series(self, node: str, since: float, until: float) -> tuple[Recent, ...]:
        """What is known of a node in that time, each moment from the finest ring that has it."""
        ring = self._nodes.get(node)
        if ring is None:
            return ()
        found: list[list[tuple[float, float]]] = [[] for _ in range(len(ring))]
        for at, row in _rows(ring, since, until):
            for column, value in zip(found, row, strict=True):
                if not math.isnan(value):
                    column.append((at, value))
        kinds = [KEPT[number] for number in ring.numbers]
        return tuple(
            Recent(kind.name, device, tuple((at, value * kind.scale) for at, value in samples))
            for kind, device, samples in zip(kinds, ring.devices, found, strict=True)
            if samples
        )

    def _shared(self, plan: tuple[_Column, ...]) -> tuple[_Column, ...]:
        """Nodes of one kind have one plan."""
        known = self._plans.setdefault(plan, plan)
        self._plans.move_to_end(plan)
        if len(self._plans) > _PLANS:
            self._plans.popitem(last=False)
        return known

    def _bound(self, node: str) -> None:
        self._nodes.move_to_end(node)
        while self.bytes > self._most and len(self._nodes) > 1:
            self.forget(next(iter(self._nodes)))


def _columns(ring: _Ring, found: Sequence[tuple[int, tuple[int, str]]]) -> tuple[_Column, ...]:
    where = {one: index for index, one in enumerate(zip(ring.numbers, ring.devices, strict=True))}
    return tuple(
        _Column(sent, where[one], KEPT[one[0]].scale, KEPT[one[0]].counter) for sent, one in found if one in where
    )


def _take(ring: _Ring, row: Row) -> bool:
    at, values = row
    if at <= ring.at or at < 0:
        return False
    passed = at - ring.at
    kept, last = [_NAN] * len(ring), ring.last
    for sent, index, scale, counter in ring.plan:
        value = values[sent]
        if value is None:
            last[index] = _NAN
            continue
        if counter:
            value, last[index] = value - last[index], value
            if not value >= 0:  # it began anew, or is new
                continue
            value /= passed
        kept[index] = value / scale
    ring.at = at
    slot = int(at // TIERS[0].step)
    if slot > ring.newest[0] >= 0:
        _roll(ring, slot)
    ring.write(0, slot, kept)
    return True


def _roll(ring: _Ring, slot: int) -> None:
    """The finest ring goes on to ``slot``: what that ends of the coarser ones is worked out from the finer ones."""
    for tier in range(1, len(TIERS)):
        ratio = int(TIERS[tier].step // TIERS[tier - 1].step)
        ended = ring.newest[tier - 1] // ratio
        slot //= ratio
        if slot <= ended:
            return
        held = set(ring.slots(tier - 1))
        rows = [ring.read(tier - 1, fine) for fine in range(ended * ratio, ended * ratio + ratio) if fine in held]
        ring.write(tier, ended, [_mean(column) for column in zip(*rows, strict=True)])


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else _NAN


def _rows(ring: _Ring, since: float, until: float) -> Iterator[tuple[float, tuple[float, ...]]]:
    """By time: what only coarser rings still have comes first."""
    found: list[tuple[float, tuple[float, ...]]] = []
    begins = math.inf  # of what is found so far
    for tier in range(len(TIERS)):
        step = TIERS[tier].step
        slots = [slot for slot in ring.slots(tier) if slot * step < begins]
        found = [(slot * step, ring.read(tier, slot)) for slot in slots if since <= slot * step <= until] + found
        begins = min([begins, *(slot * step for slot in slots[:1])])
    return iter(found)
