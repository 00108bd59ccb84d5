"""Start estimates: what is promised, what is worked out, what is guessed, and how their error is measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.estimates import ErrorSummary, Estimate, Record, error_summary, estimates
from penstock.scheduling.spec import Queue, Quota, Setup
from penstock.scheduling.state import Ask, Gpu, NodeState, Part, Policy, Workload


def node(name: str, gpus: int = 8) -> NodeState:
    return NodeState(name, 16.0, 1 << 36, tuple(Gpu(f"{name}-{n}") for n in range(gpus)))


def job(n: int, gpus: int, limit: float | None, queue: str = "default", estimate: float | None = None) -> Workload:
    parts = (Part(1, Ask(gpus=gpus)),)
    return Workload(f"j{n}", f"j{n}", 0.0, parts, queue, limit_s=limit, estimate_s=estimate, seq=n)


def full(policy: Policy, *jobs: Workload, setup: Setup | None = None) -> Scheduler:
    view = Scheduler(setup or Setup(policy=policy))
    view.put_node(node("n0"))
    for each in jobs:
        view.submit(each)
    view.plan(0.0)
    return view


@pytest.mark.parametrize("backfill", ["none", "easy", "conservative"])
def test_those_in_line_start_one_after_the_other(backfill: str) -> None:
    view = full(Policy(backfill=backfill), job(1, 8, 100.0), job(2, 8, 50.0), job(3, 8, 10.0))
    before = view.snapshot()
    found = estimates(view, 0.0)
    firm = {"none": (False, False), "easy": (True, False), "conservative": (True, True)}[backfill]
    assert found == {"j2": Estimate(100.0, firm[0]), "j3": Estimate(150.0, firm[1])}
    assert view.snapshot() == before
    assert view.why("j3", 0.0).start_estimate == 150.0


def test_without_backfill_nobody_is_estimated_to_overtake() -> None:
    view = full(Policy(), job(1, 6, 100.0), job(2, 8, 50.0), job(3, 2, 10.0))
    assert [one.start for one in estimates(view, 0.0).values()] == [100.0, 150.0]


def test_an_expected_run_time_counts_for_more_than_the_limit() -> None:
    view = full(
        Policy(backfill="easy"), job(1, 8, 100.0), job(2, 8, 1000.0), job(3, 8, 500.0, estimate=20.0), job(4, 8, 5.0)
    )
    assert [one.start for one in estimates(view, 0.0).values()] == [100.0, 1100.0, 1120.0]


def test_those_further_back_wait_for_the_work_before_them() -> None:
    view = full(Policy(backfill="easy"), *(job(n, 8, 100.0) for n in range(6)))
    assert [one.start for one in estimates(view, 0.0, first=2).values()] == [100.0, 200.0, 200.0, 300.0, 400.0]


def test_behind_endless_work_nothing_is_known() -> None:
    view = full(Policy(backfill="easy"), job(1, 8, None), job(2, 8, 5.0))
    assert estimates(view, 0.0) == {}
    assert view.why("j2", 0.0).start_estimate is None


def test_who_lacks_quota_waits_until_enough_of_it_ends() -> None:
    setup = Setup(Policy(backfill="easy"), {"a": Queue("a", None, {"default": {"gpus": Quota(4.0)}})})
    view = full(Policy(), job(1, 2, 40.0, "a"), job(2, 2, 60.0, "a"), job(3, 4, 5.0, "a"), setup=setup)
    assert estimates(view, 0.0) == {"j3": Estimate(60.0)}


@given(st.lists(st.tuples(st.integers(1, 8), st.sampled_from([5.0, 20.0, 70.0])), max_size=20))
def test_conservative_estimates_come_true_when_limits_do(load: list[tuple[int, float]]) -> None:
    """Everybody within the depth is promised a start, and starts no later."""
    view = full(Policy(backfill="conservative"), *(job(n, gpus, limit) for n, (gpus, limit) in enumerate(load)))
    told = estimates(view, 0.0)
    assert all(one.firm for one in told.values())
    while view.wake_at() < math.inf:
        now = view.wake_at()
        for id_, holding in list(view.held.items()):
            if holding.end <= now:
                view.end(id_, holding.end)
        for admit in view.plan(now).admit:
            assert now <= told[admit.id].start
    assert not view.lines.entries


def test_the_error_of_estimates() -> None:
    assert error_summary([]) is None
    assert error_summary([(0.0, 0.0)]) == ErrorSummary(1, 0.0, 0.0, 0.0)
    pairs = [(100.0, 100.0 + n) for n in range(-5, 5)] + [(0.0, 1000.0)]
    assert error_summary(pairs) == ErrorSummary(11, 3.0, 5.0, 1 / 11, 995 / 11)


def test_the_first_that_was_told_is_what_counts() -> None:
    record = Record()
    for id_, start in [("a", 10.0), ("a", 99.0), ("b", 20.0), ("c", 30.0)]:
        record.tell(id_, start)
    record.forget("c")
    for id_ in "abc":
        record.started(id_, 90.0)
    assert record.summary() == ErrorSummary(2, 70.0, 80.0, 1.0, 75.0)
