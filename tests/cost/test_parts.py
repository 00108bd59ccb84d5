"""Shares and MIG instances: priced by their part of the GPU, and all parts of one never cost more than it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.cost.allocation import Interval, allocate
from penstock.cost.spec import GPUS
from penstock.cost.terms import Terms
from penstock.scheduling.devices import geometries, part
from tests.cost.test_allocation import HOUR, PRICES
from tests.cost.test_ledger import ADMIN, ended, intervals, ledgers, report, started
from tests.stores import Clock

MODELS = ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "NVIDIA A30")


@pytest.mark.parametrize(
    ("model", "milli", "mig", "expected"),
    [
        ("T4", 0, "", 1.0),
        ("T4", 250, "", 0.25),
        ("NVIDIA H100 80GB HBM3", 0, "3g.40gb", 3 / 7),
        ("NVIDIA H100 80GB HBM3", 0, "7g.80gb", 1.0),
        ("NVIDIA A30", 0, "1g.6gb", 0.25),
        ("one that nobody knows", 0, "2g.10gb", 2 / 7),
    ],
)
def test_a_part_is_its_thousandths_or_its_compute_slices(model: str, milli: int, mig: str, expected: float) -> None:
    assert part(model, milli, mig) == expected


@given(st.sampled_from(MODELS).flatmap(lambda m: st.tuples(st.just(m), st.sampled_from(sorted(geometries(m))))))
def test_the_instances_of_a_gpu_and_what_is_left_of_it_cost_the_gpu(cut: tuple[str, tuple[str, ...]]) -> None:
    model, geometry = cut
    used = [Interval("n0", GPUS + model, part(model, 0, mig), 0, HOUR, (f"j{at}",)) for at, mig in enumerate(geometry)]
    found = allocate(used, [Interval("n0", GPUS + model, 1, 0, HOUR)], PRICES, Terms(), since=0, until=HOUR)
    assert found.nanos == round(PRICES.gpu(model) * 10**9)
    assert sum(row.nanos for row in found.rows) == found.nanos
    assert all(row.nanos >= 0 for row in found.rows)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30))
def test_shares_that_fit_on_a_gpu_cost_at_most_the_gpu(shares: list[int]) -> None:
    while sum(shares) > 1000:
        shares.pop()
    used = [Interval("n0", GPUS + "T4", part("T4", milli), 0, HOUR, (str(at),)) for at, milli in enumerate(shares)]
    found = allocate(used, [Interval("n0", GPUS + "T4", 1, 0, HOUR)], PRICES, Terms(), since=0, until=HOUR)
    assert sum(row.nanos for row in found.rows) == found.nanos == round(PRICES.gpu("T4") * 10**9)


def test_the_ledger_counts_parts(sqlite_url: str) -> None:
    async def story() -> tuple[list[Any], dict[str, Any]]:
        clock = Clock()
        async with ledgers(sqlite_url, clock) as store:
            model = "NVIDIA H100 80GB HBM3"
            held = [{"id": "0", "model": model, "milli": 250}, {"id": "1:0", "model": model, "mig": "3g.40gb"}]
            group = [{"node": "n0", "cpus": 0, "memory": 0, "gpus": held}]
            await store.write(lambda tx: started(tx, "a", groups=group))
            clock.now += 3600
            await store.write(lambda tx: ended(tx, "a"))
            return await store.read(intervals), await report(store, ADMIN, by="job")

    (row,), found = asyncio.run(story())
    assert row[4] == 0.25 + 3 / 7
    assert abs(found["total"] - 20 * (0.25 + 3 / 7)) < 1e-6
