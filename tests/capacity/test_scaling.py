"""A queue file for another fleet: shares stay, and it still fits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.capacity.scaling import scaled
from penstock.scheduling.spec import parse_setup

FILE = """
policy: {order: fairshare, backfill: easy}
cohorts: [{name: fleet}]
queues:
  - {name: a, cohort: fleet, quotas: {default: {gpus: {nominal: 200, borrowing_limit: 100}, memory: 64Gi}}}
  - {name: b, cohort: fleet, quotas: {default: {gpus: 312}}}
"""


def test_quotas_of_gpus_grow_with_the_fleet_and_nothing_else_changes() -> None:
    assert scaled(FILE, 1.0) == FILE
    assert scaled("", 2.0) == ""
    before, after = parse_setup(FILE), parse_setup(scaled(FILE, 1.2))
    assert after.policy == before.policy
    quota = after.queues["a"].quotas["default"]
    assert (quota["gpus"].nominal, quota["gpus"].borrowing_limit) == (240, 120)
    assert quota["memory"] == before.queues["a"].quotas["default"]["memory"]
    assert after.queues["b"].quotas["default"]["gpus"].nominal == 374


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=6), st.integers(1, 4000))
def test_quotas_that_fitted_still_fit(quotas: list[int], gpus: int) -> None:
    whole = max(sum(quotas), 1)
    queues = ", ".join(f"{{name: q{n}, quotas: {{default: {{gpus: {quota}}}}}}}" for n, quota in enumerate(quotas))
    text = scaled(f"queues: [{queues}]", gpus / whole)
    parse_setup(text, capacity={"default": {"gpus": float(gpus)}})
