"""Bills: rows add up, whatever they are grouped by and wherever a period is cut."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from penstock.cost.plan import NANOS, Usage, amount, price, shorten
from penstock.cost.spec import CPUS, GPUS, MEMORY, Prices

PRICES = Prices("USD", Decimal("0.04048"), Decimal("0.004445"), Decimal("2.4984"), {"H100": Decimal("3.9492")})
CENT = NANOS // 100

resources = st.sampled_from([CPUS, MEMORY, GPUS + "NVIDIA H100 80GB HBM3", GPUS + "unknown"])
seconds = st.floats(0, 1e7, allow_nan=False)
usages = st.lists(
    st.builds(
        Usage,
        st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")),
        resources,
        seconds.flatmap(lambda s: st.integers(1, 64).map(lambda n: s * n)),
    ),
    max_size=40,
)


def test_an_hour_of_each() -> None:
    gib = 1024**3
    bill = price(
        [
            Usage(("cpu",), CPUS, 2 * 3600.0),
            Usage(("mem",), MEMORY, 8 * gib * 1800.0),
            Usage(("gpu",), GPUS + "NVIDIA H100 80GB HBM3", 3600.0),
            Usage(("other",), GPUS + "TPU", 3600.0),
            Usage(("strange",), "bandwidth", 3600.0),
        ],
        PRICES,
    )
    assert [(line.key[0], amount(line.nanos)) for line in bill.lines] == [
        ("gpu", 3.9492),
        ("other", 2.4984),
        ("cpu", 0.08096),
        ("mem", 0.01778),
        ("strange", 0.0),
    ]
    assert amount(bill.nanos) == 6.54634
    by_key = {line.key[0]: line for line in bill.lines}
    assert (by_key["cpu"].cpu_hours, by_key["mem"].memory_gib_hours, by_key["gpu"].gpu_hours) == (2.0, 4.0, 1.0)


@given(usages)
def test_rows_add_up_to_the_total_exactly(found: list[Usage]) -> None:
    bill = price(found, PRICES)
    assert sum(line.nanos for line in bill.lines) == bill.nanos
    assert all(line.nanos >= 0 for line in bill.lines)
    assert len({line.key for line in bill.lines}) == len(bill.lines)
    assert [line.nanos for line in bill.lines] == sorted((line.nanos for line in bill.lines), reverse=True)


@given(usages)
def test_grouping_by_anything_gives_the_same_total_to_the_cent(found: list[Usage]) -> None:
    parts = (slice(None), slice(1), slice(1, None), slice(0))
    totals = [price([Usage(u.key[part], u.resource, u.unit_seconds) for u in found], PRICES).nanos for part in parts]
    assert max(totals) - min(totals) < CENT


@given(usages, st.floats(0, 1))
def test_a_period_cut_in_two_costs_the_same_to_the_cent(found: list[Usage], at: float) -> None:
    first = [Usage(u.key, u.resource, u.unit_seconds * at) for u in found]
    second = [Usage(u.key, u.resource, u.unit_seconds - u.unit_seconds * at) for u in found]
    assert abs(price(first, PRICES).nanos + price(second, PRICES).nanos - price(found, PRICES).nanos) < CENT


@given(usages, st.integers(1, 10))
def test_a_shortened_bill_keeps_its_total(found: list[Usage], limit: int) -> None:
    whole = price(found, PRICES)
    short, folded = shorten(whole, limit)
    assert short.nanos == whole.nanos == sum(line.nanos for line in short.lines)
    assert len(short.lines) <= limit
    assert len(short.lines) + max(folded - 1, 0) == len(whole.lines)


@given(seconds.map(lambda s: -s), resources)
def test_usage_that_ended_before_it_began_costs_nothing(negative: float, resource: str) -> None:
    assert price([Usage(("x",), resource, negative)], PRICES).nanos == 0
