"""Who bears what of the bill. Pure, and exact: the bill follows from capacity and commitments, the rows are shares of it.

The bill: what was up (node, resource, from, until) at its price, and commitments at theirs whether used or not. A row
is *used* (an interval of the usage ledger), *idle* (up, nobody's) or *unused* (committed, but not up). Commitments
for GPUs of a model cover the first GPUs of it that are up; all of that model then bear the blend of both prices.
Usage where no capacity was recorded counts as capacity. All arithmetic is on whole numbers: microseconds, millionths
of a unit, 1e-12 of the currency; every division rounds down, so that idle, which takes the rest, is never negative.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import pairwise
from typing import Literal, NamedTuple

from penstock.cost.quota import Weights
from penstock.cost.spec import CPUS, GIB, GPUS, MEMORY, Prices
from penstock.cost.terms import Commitment, Terms

KEY = ("project", "user", "job", "node", "queue")  # what the parts of a row's key are, where ledgers make it
Kind = Literal["used", "idle", "unused"]
Pool = tuple[
    str, str
]  # how it is paid for: ("on_demand" | "spot", resource), ("node", name), ("reserved", commitment/node)
_MICRO = 10**6
_PART = 10**6  # of a unit: fine enough that sevenths of a GPU never add up to more than it
_PICO = 10**12
_HOUR = 3600 * _MICRO
_TO_NANOS = _HOUR * _PART * (_PICO // 10**9)


class Interval(NamedTuple):
    """``quantity`` units of ``resource`` on ``node`` between two times (epoch s). Capacity has no ``key`` and no id."""

    node: str
    resource: str
    quantity: float
    start: float
    end: float
    key: tuple[str, ...] = ()
    id: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the bill: ``pool`` says how it is paid for, ``intervals`` which usage it stands for."""

    kind: Kind
    key: tuple[str, ...]
    pool: Pool
    nanos: int
    intervals: tuple[str, ...] = ()
    units: int = 0  # millionths of a unit times microseconds
    per: str = (
        ""  # of a node that is paid for as a whole, what its units are: "gpus", "cpus", or "nodes" that were not there
    )

    @property
    def hours(self) -> float:
        """GPU-hours, core-hours, GiB-hours; node-hours of a node that is paid for as a whole and was not there."""
        return self.units / (_PART * _HOUR)


@dataclass(frozen=True, slots=True)
class Statement:
    rows: tuple[Row, ...]
    nanos: int  # the bill, from capacity and commitments alone


@dataclass(slots=True)
class _Share:
    """What is gathered under one key."""

    cost: int = 0
    units: int = 0
    ids: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Pool:
    """``steps`` of what is up and used, by time; pieces of use are kept only where their price hangs on the time."""

    rate: int  # picos an hour of one unit; ``flat``: of the whole
    flat: bool = False
    commitments: list[tuple[int, int, int, int]] = field(default_factory=list)  # start, end, millionths, picos
    up: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    used: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    present: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # whether anything is there: if ``flat``
    shares: dict[tuple[str, ...], _Share] = field(default_factory=dict)
    pieces: list[tuple[int, int, int, _Share]] = field(default_factory=list)

    @property
    def plain(self) -> bool:
        """Whether a unit costs ``rate`` at all times, whatever else is there."""
        return not self.flat and not self.commitments

    def put(self, steps: dict[int, int], start: int, end: int, units: int) -> None:
        steps[start] += units
        steps[end] -= units
        if self.flat:
            self.present[start] += 1
            self.present[end] -= 1

    def use(self, start: int, end: int, units: int, interval: Interval) -> None:
        self.put(self.used, start, end, units)
        share = self.shares.get(interval.key)
        if share is None:
            share = self.shares[interval.key] = _Share()
        much = units * (end - start)
        share.units += much
        if self.plain:
            share.cost += self.rate * much
        else:
            self.pieces.append((start, end, units, share))
        if interval.id:
            share.ids.append(interval.id)


def allocate(
    used: Iterable[Interval], up: Iterable[Interval], prices: Prices, terms: Terms, *, since: float, until: float
) -> Statement:
    """The bill of one period and its rows; what lies outside the period is cut off."""
    window = (_micros(since), max(_micros(since), _micros(until)))
    up = list(up)
    with_gpus = {each.node for each in up if each.resource.startswith(GPUS)}
    if terms.whole_nodes:  # what bears such a node's price hangs on whether it has GPUs: that must be known first
        used = list(used)
        with_gpus |= {each.node for each in used if each.resource.startswith(GPUS)}
    pools: dict[Pool, _Pool] = {}
    _commit(pools, prices, terms, window)
    places = _Places(terms, window)
    for interval in up:
        for name, start, end in places.of(interval):
            pool = _pool(pools, name, prices, terms)
            pool.put(pool.up, start, end, _units(interval, name, with_gpus))
    for interval in used:
        for name, start, end in places.of(interval):
            _pool(pools, name, prices, terms).use(start, end, _units(interval, name, with_gpus), interval)
    rows: list[Row] = []
    bill = 0
    for name in sorted(pools):
        made, nanos = _settle(name, pools[name])
        rows += [replace(row, per=_per(row, with_gpus)) for row in made] if name[0] in ("node", "reserved") else made
        bill += nanos
    return Statement(tuple(rows), bill)


def _per(row: Row, with_gpus: Collection[str]) -> str:
    if row.kind == "unused":
        return "nodes"
    return "gpus" if row.pool[1].rsplit("/", 1)[-1] in with_gpus else "cpus"


def _micros(time: float) -> int:
    return round(time * _MICRO)


def _picos(rate: Decimal) -> int:
    return int(rate * _PICO)


def _units(interval: Interval, pool: Pool, with_gpus: Collection[str]) -> int:
    """Millionths of a unit; of a node that is paid for as a whole its GPUs bear the price, or its cores if it has none."""
    quantity = interval.quantity / GIB if interval.resource == MEMORY else interval.quantity
    whole = pool[0] in ("node", "reserved")
    if whole and not (interval.resource.startswith(GPUS) if interval.node in with_gpus else interval.resource == CPUS):
        return 0
    return max(round(quantity * _PART), 0)


@dataclass(slots=True)
class _Places:
    """Which pool an interval belongs to. What follows from a node and a resource is worked out once."""

    terms: Terms
    window: tuple[int, int]
    committed: dict[str, list[Commitment]] = field(default_factory=dict)
    usual: dict[tuple[str, str], Pool] = field(default_factory=dict)

    def of(self, interval: Interval) -> Sequence[tuple[Pool, int, int]]:
        """The interval cut where a commitment for its node begins or ends, each piece with its pool."""
        node, resource = interval.node, interval.resource
        start = max(round(interval.start * _MICRO), self.window[0])
        end = min(round(interval.end * _MICRO), self.window[1])
        committed = self.committed.get(node)
        if committed is None:
            committed = self.committed[node] = self.terms.of_node(node)
        usual = self.usual.get((node, resource))
        if usual is None:
            usual = self.usual[node, resource] = _usual(interval, self.terms)
        if not committed:
            return ((usual, start, end),) if start < end else ()
        return list(self._cut(interval.node, usual, committed, start, end))

    def _cut(
        self, node: str, usual: Pool, committed: Sequence[Commitment], start: int, end: int
    ) -> Iterable[tuple[Pool, int, int]]:
        for commitment in committed:
            if start >= end:
                return
            first, last = max(start, _micros(commitment.start)), min(end, _micros(commitment.end))
            if first >= last:
                continue
            if start < first:
                yield usual, start, first
            yield ("reserved", f"{commitment.name}/{node}"), first, last
            start = last
        if start < end:
            yield usual, start, end


def _usual(interval: Interval, terms: Terms) -> Pool:
    if interval.node in terms.node_hour:
        return ("node", interval.node)
    return ("spot" if terms.is_spot(interval.node) else "on_demand", interval.resource)


def _pool(pools: dict[Pool, _Pool], name: Pool, prices: Prices, terms: Terms) -> _Pool:
    if name not in pools:
        if name[0] == "node":
            pools[name] = _Pool(_picos(terms.node_hour[name[1]]), flat=True)
        else:
            pools[name] = _Pool(_picos(_rate(name, prices, terms)))
    return pools[name]


def _rate(name: Pool, prices: Prices, terms: Terms) -> Decimal:
    how, resource = name
    if resource == CPUS:
        return prices.cpu_hour
    if resource == MEMORY:
        return prices.memory_gib_hour
    if not resource.startswith(GPUS):
        return Decimal(0)
    model = resource.removeprefix(GPUS)
    return terms.spot_gpu(model, prices) if how == "spot" else prices.gpu(model)


def _commit(pools: dict[Pool, _Pool], prices: Prices, terms: Terms, window: tuple[int, int]) -> None:
    for commitment in terms.commitments:
        start, end = max(_micros(commitment.start), window[0]), min(_micros(commitment.end), window[1])
        if start >= end:
            continue
        for name, units in _bought(commitment):
            pool = (
                pools.setdefault(name, _Pool(0, flat=True)) if commitment.nodes else _pool(pools, name, prices, terms)
            )
            pool.commitments.append((start, end, units, _picos(commitment.rate)))


def _bought(commitment: Commitment) -> Iterable[tuple[Pool, int]]:
    if not commitment.nodes:
        yield ("on_demand", GPUS + commitment.model), commitment.gpus * _PART
    for node in commitment.nodes:
        yield ("reserved", f"{commitment.name}/{node}"), _PART


@dataclass(slots=True)
class _Sweep:
    """The pool's account while time goes on; ``price`` is the integral of what one millionth costs."""

    times: list[int] = field(default_factory=list)
    price: list[int] = field(default_factory=list)
    covering: int = 0  # what was up cost
    unused: int = 0
    covering_units: int = 0
    unused_units: int = 0


def _settle(name: Pool, pool: _Pool) -> tuple[list[Row], int]:
    sweep = _swept(pool)
    for start, end, units, share in pool.pieces:
        share.cost += units * (_at(sweep, end) - _at(sweep, start))
    taken = sum(share.cost for share in pool.shares.values())
    held = sum(share.units for share in pool.shares.values())
    shares: dict[tuple[Kind, tuple[str, ...]], _Share] = {("used", key): share for key, share in pool.shares.items()}
    shares["idle", ()] = _Share(sweep.covering - taken, sweep.covering_units - held)
    shares["unused", ()] = _Share(sweep.unused, sweep.unused_units)
    nanos = _rounded(sweep.covering + sweep.unused)
    parts = apportion(nanos, [share.cost for share in shares.values()])
    rows = [
        Row(kind, key, name, part, tuple(share.ids), share.units)
        for ((kind, key), share), part in zip(shares.items(), parts, strict=True)
        if part or share.ids
    ]
    return rows, nanos


def _rounded(cost: int) -> int:
    return (2 * cost + _TO_NANOS) // (2 * _TO_NANOS)


def _at(sweep: _Sweep, time: int) -> int:
    return sweep.price[bisect_left(sweep.times, time)]


def _swept(pool: _Pool) -> _Sweep:
    up, used, present = pool.up, pool.used, pool.present
    edges = {t for start, end, _, _ in pool.commitments for t in (start, end)}
    sweep = _Sweep(times=sorted(up.keys() | used.keys() | edges))
    plain, rate = pool.plain, pool.rate
    now_up = now_used = now_present = integral = 0
    for time, following in pairwise(sweep.times):
        sweep.price.append(integral)
        now_up += up.get(time, 0)
        now_used += used.get(time, 0)
        there = max(now_up, now_used)
        for_this = following - time
        sweep.covering_units += there * for_this
        if plain:
            continue
        now_present += present.get(time, 0)
        covering, unused, missing = _cost(pool, time, there, bool(now_present))
        sweep.covering += covering * for_this
        sweep.unused += unused * for_this
        sweep.unused_units += missing * for_this
        integral += covering * for_this // there if there else 0
    sweep.price.append(integral)
    if plain:
        sweep.covering = rate * sweep.covering_units
    return sweep


def _cost(pool: _Pool, time: int, there: int, present: bool) -> tuple[int, int, int]:
    """What one microsecond costs now: of what is there, and of what is committed and not there (and how much that is)."""
    live = [(units, rate) for start, end, units, rate in pool.commitments if start <= time < end]
    if pool.flat:
        paid = sum(rate * _PART for _, rate in live) or (pool.rate * _PART if present else 0)
        return (paid, 0, 0) if present else (0, paid, sum(units for units, _ in live))
    covering = unused = missing = 0
    left = there
    for units, rate in sorted(live, key=lambda each: each[1]):
        covered = min(units, left)
        left -= covered
        covering += covered * rate
        unused += (units - covered) * rate
        missing += units - covered
    return covering + left * pool.rate, unused, missing


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Whole parts of ``total`` after ``weights`` by the largest remainder (ties: the first); they add up exactly."""
    whole = sum(weights)
    if not weights:
        return []
    if whole == 0:
        return [total, *([0] * (len(weights) - 1))]
    parts = [total * weight // whole for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for index in order[: total - sum(parts)]:
        parts[index] += 1
    return parts


def share_out(statement: Statement, rule: str, *, queue_at: int = 0, quotas: Weights | None = None) -> Statement:
    """Give idle and unused capacity to those who bear it: ``usage`` (in proportion to what they used of the same pool;
    a pool that nobody used keeps its row), ``quota`` (by the queues' nominal quota: rows whose key is the queue alone
    at ``queue_at``), or ``own`` (rows of their own).
    """
    if rule == "own":
        return statement
    rows: list[Row] = [row for row in statement.rows if row.kind == "used"]
    users: dict[Pool, list[Row]] = defaultdict(list)
    for row in rows:
        if row.nanos:
            users[row.pool].append(row)
    for row in statement.rows:
        if row.kind == "used":
            continue
        if rule == "quota":
            bearers = (quotas or Weights()).bearers(*row.pool)
            shares = {("",) * queue_at + (queue,): bearers[queue] for queue in sorted(bearers)}
            rows += _shared(row, list(shares.items()))
        else:
            rows += _shared(row, [(user.key, user.nanos) for user in users[row.pool]])
    return Statement(tuple(rows), statement.nanos)


def on_nodes(
    statement: Statement, used: Iterable[Interval], up: Iterable[Interval], terms: Terms, *, since: float, until: float
) -> Statement:
    """Idle and unused rows cut by the node that they arose on, in proportion to what stood idle of their pool there. What
    was committed for no node in particular, and not up, keeps its row.
    """
    places = _Places(terms, (_micros(since), max(_micros(since), _micros(until))))
    steps: dict[Pool, dict[str, dict[int, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    for intervals, sign in ((up, 1), (used, -1)):
        for interval in intervals:
            for pool, start, end in places.of(interval):
                if pool[0] in ("on_demand", "spot"):  # the others are named after their node
                    units = sign * _units(interval, pool, ())
                    steps[pool][interval.node][start] += units
                    steps[pool][interval.node][end] -= units
    rows: list[Row] = []
    for row in statement.rows:
        if row.kind == "used":
            rows.append(row)
        elif row.pool[0] in ("node", "reserved"):
            rows.append(replace(row, key=_of_node(row.pool[1].rsplit("/", 1)[-1])))
        elif row.kind == "idle":
            rows += _shared(
                row, [(_of_node(node), _stood_idle(steps[row.pool][node])) for node in sorted(steps[row.pool])]
            )
        else:
            rows.append(row)
    return Statement(tuple(rows), statement.nanos)


def _of_node(node: str) -> tuple[str, ...]:
    return ("",) * KEY.index("node") + (node,)


def _stood_idle(steps: Mapping[int, int]) -> int:
    """The integral of what is up and not used."""
    found = now = 0
    for time, following in pairwise(sorted(steps)):
        now += steps[time]
        found += max(now, 0) * (following - time)
    return found


def _shared(row: Row, bearers: Sequence[tuple[tuple[str, ...], int]]) -> list[Row]:
    """The row cut in proportion; whole where nobody bears it."""
    weights = [weight for _, weight in bearers]
    if sum(weights) <= 0:
        return [row]
    parts = zip(bearers, apportion(row.nanos, weights), apportion(row.units, weights), strict=True)
    return [Row(row.kind, key, row.pool, part, (), units, row.per) for (key, _), part, units in parts if part]


@dataclass(frozen=True, slots=True)
class Sum:
    """Rows of one kind added up under one part of their key; of what nobody used the name is empty."""

    kind: Kind
    name: str
    nanos: int
    hours: float  # of units of several kinds where rows are


def summed(statement: Statement, by: str) -> list[Sum]:
    """By a word of ``KEY`` (a job's name follows its project's); the dearest first."""
    at = KEY.index(by)
    nanos: dict[tuple[Kind, str], int] = defaultdict(int)
    hours: dict[tuple[Kind, str], float] = defaultdict(float)
    for row in statement.rows:
        name = row.key[at] if at < len(row.key) else ""
        who = (row.kind, f"{row.key[0]}/{name}" if by == "job" and name else name)
        nanos[who] += row.nanos
        hours[who] += row.hours
    made = [Sum(kind, name, nanos[kind, name], hours[kind, name]) for kind, name in nanos]
    return sorted(made, key=lambda each: (-each.nanos, each.kind, each.name))


def in_cents(rows: Sequence[Row], nanos: int) -> tuple[list[int], int]:
    """Rows as printed, in cents, and the bill in cents: they add up, because the largest remainders are rounded up."""
    cent = 10**7
    total = (2 * nanos + cent) // (2 * cent)
    return apportion(total, [row.nanos for row in rows]), total
