"""What is lent is what is borrowed: by any history of use that the quotas allow."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given

from penstock.scheduling import lending
from penstock.scheduling.quota import Quotas
from penstock.scheduling.spec import Setup
from tests.scheduling.test_quota import setups, steps


def test_two_lenders_share_what_one_borrows() -> None:
    """As a simulated fleet of 64 showed it: 10 borrowed, and 3 + 8 lent."""
    stakes = {"a": lending.Stake(25, 35), "b": lending.Stake(19, 16), "c": lending.Stake(20, 12)}
    found = lending.lent(stakes, 0)
    assert found == pytest.approx({"a": 0, "b": 30 / 11, "c": 80 / 11})
    assert sum(found.values()) == pytest.approx(10)


def test_nobody_lends_more_than_its_limit_nor_what_the_cohort_has_itself() -> None:
    stakes = {"a": lending.Stake(0, 6), "b": lending.Stake(8, 0, limit=2), "c": lending.Stake(4, 0)}
    assert lending.lent(stakes, 3) == {"a": 0, "b": 1, "c": 2}
    assert lending.lent(stakes, 6) == {"a": 0, "b": 0, "c": 0}
    assert lending.lent({"a": lending.Stake(0, 9), "b": lending.Stake(4, 0)}, 0) == {"a": 0, "b": 4}


@given(setups(), steps)
def test_what_is_lent_and_the_cohorts_own_is_what_is_borrowed(setup: Setup, done: Any) -> None:
    quotas = Quotas(setup)
    for at, flavor, asked, _ in done:
        queue = f"q{at % len(setup.queues)}"
        if quotas.fits(queue, flavor, asked):
            quotas.take(queue, flavor, asked)
    trees: dict[Any, dict[str, lending.Stake]] = defaultdict(dict)
    for name, node in quotas.queues.items():
        for cell, quota in node.quotas.items():
            stake = lending.Stake(quota.nominal, node.usage.get(cell, 0.0), quota.lending_limit)
            trees[node.path()[-1].name, cell][name] = stake
    for (root, cell), stakes in trees.items():
        own = (one for one in quotas.cohorts.values() if one.path()[-1].name == root and cell in one.quotas)
        common = sum(one.quotas[cell].nominal for one in own)
        borrowed = sum(one.borrowed for one in stakes.values())
        found = lending.lent(stakes, common)
        assert sum(found.values()) + min(borrowed, common) == pytest.approx(borrowed)
        assert all(0 <= found[name] <= stakes[name].lendable + 1e-9 for name in stakes)
