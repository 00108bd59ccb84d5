"""The invariant of the bill: used + idle + unused = what capacity and commitments cost, to the last billionth and cent."""

from __future__ import annotations

import itertools
from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from penstock.cost.allocation import Interval, Statement, allocate, apportion, in_cents, on_nodes, share_out, summed
from penstock.cost.quota import Weights
from penstock.cost.spec import CPUS, GIB, GPUS, MEMORY, Prices
from penstock.cost.terms import Commitment, Terms

H100 = GPUS + "H100"
PRICES = Prices("USD", Decimal("0.04048"), Decimal("0.004445"), Decimal("2.5"), {"H100": Decimal("3.9492")})
HOUR = 3600.0

times = st.floats(0, 1e6, allow_nan=False)
nodes = st.sampled_from(["n0", "n1", "n2", "spot-0"])
rates = st.decimals(0, 100, places=4)
sizes = {CPUS: st.floats(0, 256), MEMORY: st.floats(0, 2048 * GIB), H100: st.floats(0, 8), GPUS + "T4": st.floats(0, 4)}
quantities = st.sampled_from(sorted(sizes)).flatmap(lambda name: st.tuples(st.just(name), sizes[name]))


@st.composite
def intervals(draw: st.DrawFn, *, keyed: bool) -> Interval:
    resource, quantity = draw(quantities)
    key = (draw(st.sampled_from("abc")),) if keyed else ()
    return Interval(draw(nodes), resource, quantity, draw(times), draw(times), key, str(draw(st.integers(0, 99))))


@st.composite
def commitments(draw: st.DrawFn) -> Commitment:
    start, end = draw(times), draw(times)
    if draw(st.booleans()):
        return Commitment("c", draw(rates), start, end, gpus=draw(st.integers(0, 32)), model="H100")
    return Commitment("r", draw(rates), start, end, nodes=tuple(draw(st.lists(nodes, unique=True, min_size=1))))


terms = st.builds(
    Terms,
    st.lists(commitments(), max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(["n2"]), rates),
    st.just(("spot-*",)),
    st.dictionaries(st.just("H100"), rates),
)
cases = st.tuples(
    st.lists(intervals(keyed=True), max_size=12), st.lists(intervals(keyed=False), max_size=12), terms, times, times
)


@given(cases, st.sampled_from(["usage", "quota", "own"]))
def test_all_rows_are_the_bill(case: tuple[list[Interval], list[Interval], Terms, float, float], rule: str) -> None:
    used, up, deal, since, until = case
    found = allocate(used, up, PRICES, deal, since=since, until=until)
    shared = share_out(found, rule, quotas=Weights(gpus={"a": 3, "b": 1, "none": 0}))
    for statement in (found, shared):
        assert sum(row.nanos for row in statement.rows) == statement.nanos
        assert all(row.nanos >= 0 for row in statement.rows)
        cents, total = in_cents(statement.rows, statement.nanos)
        assert sum(cents) == total
        assert abs(total * 10**7 - statement.nanos) <= 5 * 10**6
    assert {i for row in found.rows for i in row.intervals} <= {interval.id for interval in used}


@given(st.lists(intervals(keyed=False), max_size=12), st.lists(intervals(keyed=True), max_size=12), times, times)
def test_the_bill_is_that_of_an_independent_sum(
    up: list[Interval], used: list[Interval], since: float, until: float
) -> None:
    """On demand alone: at every instant the larger of what is up and what is used, at its price."""
    bill = allocate(used, up, PRICES, Terms(), since=since, until=until).nanos
    expected = Fraction(0)
    for resource in sizes:
        edges = sorted({round(t * 10**6) for i in (*up, *used) for t in (i.start, i.end, since, until)})
        unit = GIB if resource == MEMORY else 1
        rate = {CPUS: PRICES.cpu_hour, MEMORY: PRICES.memory_gib_hour}.get(resource) or PRICES.gpu(resource)
        for a, b in itertools.pairwise(edges):
            if round(since * 10**6) <= a and b <= round(until * 10**6):
                held = max(
                    sum(
                        round(i.quantity / unit * 10**6)
                        for i in side
                        if i.resource == resource and round(i.start * 10**6) <= a and b <= round(i.end * 10**6)
                    )
                    for side in (up, used)
                )
                expected += Fraction(rate) * held * (b - a) / (3600 * 10**12)
    assert abs(bill - expected * 10**9) <= len(sizes)


@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**12), min_size=1))
def test_parts_add_up(total: int, weights: list[int]) -> None:
    assert sum(apportion(total, weights)) == total


def by_kind(found: Statement) -> dict[str, float]:
    sums = dict.fromkeys(("used", "idle", "unused"), 0.0)
    for row in found.rows:
        sums[row.kind] += row.nanos / 1e9
    return {kind: round(value, 6) for kind, value in sums.items()}


def test_used_idle_and_a_commitment_in_part_unused() -> None:
    """16 H100 committed at 2, 8 up for an hour, of which 2 are used: 4 used, 12 idle, 16 unused."""
    deal = Terms((Commitment("c", Decimal(2), 0, HOUR, gpus=16, model="H100"),))
    found = allocate(
        [Interval("n0", H100, 2, 0, HOUR, ("ann",), "j.1")],
        [Interval("n0", H100, 8, 0, HOUR)],
        PRICES,
        deal,
        since=0,
        until=HOUR,
    )
    assert by_kind(found) == {"used": 4.0, "idle": 12.0, "unused": 16.0}
    assert next(row for row in found.rows if row.kind == "used").intervals == ("j.1",)


def test_what_is_up_beyond_the_commitment_is_on_demand_and_all_bear_the_blend() -> None:
    deal = Terms((Commitment("c", Decimal(2), 0, HOUR, gpus=4, model="H100"),))
    found = allocate(
        [Interval("n0", H100, 4, 0, HOUR, ("ann",))],
        [Interval("n0", H100, 8, 0, HOUR)],
        PRICES,
        deal,
        since=0,
        until=HOUR,
    )
    assert by_kind(found) == {"used": 11.8984, "idle": 11.8984, "unused": 0.0}


def test_a_reserved_node_costs_also_when_it_is_down() -> None:
    deal = Terms((Commitment("r", Decimal(30), 0, 4 * HOUR, nodes=("n0",)),))
    found = allocate(
        [Interval("n0", H100, 4, 0, HOUR, ("ann",))],
        [Interval("n0", H100, 8, 0, HOUR), Interval("n0", CPUS, 64, 0, HOUR)],
        PRICES,
        deal,
        since=0,
        until=3 * HOUR,
    )
    assert by_kind(found) == {"used": 15.0, "idle": 15.0, "unused": 60.0}


def test_idle_is_shared_in_proportion_to_use() -> None:
    used = [Interval("n0", H100, 3, 0, HOUR, ("ann",)), Interval("n0", H100, 1, 0, HOUR, ("bob",))]
    found = allocate(used, [Interval("n0", H100, 8, 0, HOUR)], PRICES, Terms(), since=0, until=HOUR)
    shared = share_out(found, "usage")
    idle = {row.key: row.nanos for row in shared.rows if row.kind == "idle"}
    assert idle[("ann",)] == 3 * idle[("bob",)]


def test_idle_by_node_is_the_nodes_own() -> None:
    """Two nodes of 8 cores up for 2 h: one used whole, one for an hour with 2 cores; a third one paid for as a whole."""
    hour = 3600.0
    up = [Interval(node, CPUS, 8.0, 0, 2 * hour) for node in ("n0", "n1", "n2")]
    used = [
        Interval("n0", CPUS, 8.0, 0, 2 * hour, ("p", "u", "j", "n0", "q"), "a"),
        Interval("n1", CPUS, 2.0, 0, hour, ("p", "u", "j", "n1", "q"), "b"),
    ]
    deal = Terms(node_hour={"n2": Decimal(5)})
    found = allocate(used, up, PRICES, deal, since=0, until=2 * hour)
    placed = on_nodes(found, used, up, deal, since=0, until=2 * hour)
    assert sum(row.nanos for row in placed.rows) == placed.nanos == found.nanos
    idle = {each.name: each.nanos for each in summed(placed, "node") if each.kind == "idle"}
    assert idle == {"n1": int(14 * PRICES.cpu_hour * 10**9), "n2": 10 * 10**9}


@given(cases)
def test_by_node_all_rows_are_the_bill(
    case: tuple[list[Interval], list[Interval], Terms, float, float],
) -> None:
    used, up, deal, since, until = case
    found = allocate(used, up, PRICES, deal, since=since, until=until)
    placed = on_nodes(found, used, up, deal, since=since, until=until)
    assert sum(row.nanos for row in placed.rows) == found.nanos
    assert {row.kind for row in placed.rows} == {row.kind for row in found.rows if row.nanos or row.kind == "used"}
