"""Shares and their memory: decay against the closed form, dominant shares, and Slurm's Fair Tree."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.fairshare import FairShare, multifactor
from penstock.scheduling.spec import Cohort, Queue, Setup
from penstock.scheduling.state import Ask, Gpu, NodeState, Part, Policy, Workload

HALF = 100.0


def test_use_of_a_half_life_ago_counts_half() -> None:
    fair = FairShare(HALF)
    fair.take(("a",), {"gpus": 2.0}, 0.0)
    fair.give(("a",), {"gpus": 2.0}, 1.0)
    account = fair.account(("a",))
    account.settle(1.0, HALF)
    after = account.decayed
    assert after == pytest.approx(2.0, rel=0.01)  # two GPU-seconds, hardly faded
    account.settle(101.0, HALF)
    assert account.decayed == pytest.approx(after / 2)


@given(st.lists(st.tuples(st.floats(0.01, 500.0), st.integers(0, 8)), min_size=1, max_size=12), st.integers(1, 4))
def test_decay_does_not_depend_on_when_one_looks(intervals: list[tuple[float, int]], looks: int) -> None:
    """Against the integral of what was held, weighed by 0.5^(age / half-life)."""
    fair, now = FairShare(HALF), 0.0
    spans: list[tuple[float, float, int]] = []
    for lasts, gpus in intervals:
        fair.take(("a",), {"gpus": float(gpus)}, now)
        for look in range(1, looks):
            fair.rank(("a",), now + lasts * look / looks)
        spans.append((now, now + lasts, gpus))
        now += lasts
        fair.give(("a",), {"gpus": float(gpus)}, now)
    exact = sum(
        gpus * HALF / math.log(2) * (0.5 ** ((now - end) / HALF) - 0.5 ** ((now - start) / HALF))
        for start, end, gpus in spans
    )
    assert fair.account(("a",)).decayed == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_the_dominant_resource_counts() -> None:
    fair = FairShare(HALF)
    fair.capacity = {"gpus": 10.0, "cpus": 100.0}
    fair.take(("a",), {"gpus": 1.0, "cpus": 50.0}, 0.0)  # half of the CPUs
    fair.take(("b",), {"gpus": 4.0, "cpus": 4.0}, 0.0)  # two fifths of the GPUs
    assert fair.rank(("b",), 0.0) < fair.rank(("a",), 0.0)
    fair.account(("a",)).weight = 2.0
    fair.take(("c",), {"cpus": 0.0}, 0.0)
    assert fair.rank(("a",), 1e-9) < fair.rank(("b",), 1e-9)


tree = st.dictionaries(
    st.tuples(st.sampled_from("AB"), st.sampled_from("pqr"), st.sampled_from("uvwx")),
    st.tuples(st.integers(0, 5), st.sampled_from([1.0, 2.0])),
    min_size=1,
)


@given(tree)
def test_fair_tree(users: dict[tuple[str, str, str], tuple[int, float]]) -> None:
    """If A has the larger share for its use, everybody of A is before everybody of B; at every level, ties together."""
    fair = FairShare(HALF)
    for path, (used, weight) in users.items():
        fair.account(path, weight)
        fair.take(path, {"gpus": float(used)}, 0.0)
        fair.give(path, {"gpus": float(used)}, 10.0)
    factors = {path: fair.fair_tree(path, 10.0, anew=True) for path in users}
    assert max(factors.values()) == 1.0
    assert min(factors.values()) >= 1 / len(users)
    for depth in (1, 2, 3):
        for one in users:
            for other in users:
                if one[: depth - 1] == other[: depth - 1] and one[:depth] != other[:depth]:
                    mine, theirs = (_level(fair, path[:depth]) for path in (one, other))
                    if mine > theirs * (1 + 1e-9):
                        assert factors[one] > factors[other]


def _level(fair: FairShare, path: tuple[str, ...]) -> float:
    account = fair.account(path)
    return math.inf if account.decayed <= 0 else account.weight / account.decayed


def test_slurms_example_of_ties() -> None:
    """Two users that tie share the rank, and the next one's is lower by two."""
    fair = FairShare(HALF)
    for user, used in (("a", 1.0), ("b", 1.0), ("c", 5.0)):
        fair.take(("q", user), {"gpus": used}, 0.0)
    assert [fair.fair_tree(("q", user), 10.0, anew=True) for user in "abc"] == [1.0, 1.0, pytest.approx(1 / 3)]


def test_multifactor_is_the_weighted_sum() -> None:
    assert multifactor({"age": 1000, "fairshare": 100, "qos": 5}, {"age": 0.5, "fairshare": 1.0}) == 600.0


def _scheduler(policy: Policy) -> Scheduler:
    queues = {
        "a": Queue("a", "lab", user_weights={"heavy": 4.0}),
        "b": Queue("b", "lab", qos=1.0),
        "c": Queue("c", "shop", partition=1.0),
    }
    view = Scheduler(Setup(policy, queues, {"lab": Cohort("lab"), "shop": Cohort("shop")}))
    view.put_node(NodeState("n0", gpus=tuple(Gpu(f"g{at}") for at in range(4))))
    return view


def _job(name: str, queue: str, user: str, seq: int, at: float = 0.0) -> Workload:
    return Workload(name, name, at, (Part(1, Ask(gpus=1)),), queue=queue, user=user, seq=seq)


def test_fairshare_serves_cohorts_then_queues_then_users() -> None:
    view = _scheduler(Policy(order="fairshare"))
    for seq, (queue, user) in enumerate([("a", "x"), ("a", "x"), ("a", "x"), ("a", "y"), ("b", "z"), ("c", "w")]):
        view.submit(_job(f"{queue}{user}{seq}", queue, user, seq))
    assert [admit.id for admit in view.plan(0.0).admit] == ["ax0", "cw5", "bz4", "ay3"]


@pytest.mark.parametrize(("weights", "first"), [
    ({"qos": 10.0, "partition": 1.0}, "b"), ({"qos": 1.0, "partition": 10.0}, "c"), ({"age": 1.0}, "old"),
])  # fmt: skip
def test_multifactor_orders_by_its_weights(weights: dict[str, float], first: str) -> None:
    view = _scheduler(Policy(order="multifactor", weights=tuple(weights.items())))
    view.plan(1000.0)
    for seq, (name, queue, at) in enumerate(
        [("a", "a", 900.0), ("b", "b", 900.0), ("c", "c", 900.0), ("old", "a", 10.0)]
    ):
        view.submit(_job(name, queue, name, seq, at))
    assert view.plan(1000.0).admit[0].id == first


def test_multifactor_lets_who_used_less_go_first() -> None:
    view = _scheduler(Policy(order="multifactor", weights=(("fairshare", 1000.0), ("age", 1.0))))
    view.submit(_job("before", "a", "greedy", 0))
    view.plan(0.0)
    view.end("before", 5000.0)
    view.submit(_job("greedy", "a", "greedy", 1, 5000.0))
    view.submit(_job("modest", "a", "modest", 2, 5001.0))
    assert [admit.id for admit in view.plan(5400.0).admit] == ["modest", "greedy"]


def test_multifactor_books_what_each_user_of_a_queue_used() -> None:
    view = _scheduler(Policy(order="multifactor", weights=(("fairshare", 1000.0),)))
    for user in ("first", "second"):
        view.submit(_job(user, "b", user, 0))
    view.plan(0.0)
    view.end("first", 10.0)
    view.end("second", 30.0)
    used = {path[-1]: account.decayed for path, account in view.fair.accounts.items() if len(path) == 3}
    assert used["heavy"] == 0.0, "it is enrolled, though it never came"
    assert used["second"] == pytest.approx(3 * used["first"], rel=0.01)


@given(st.lists(st.sampled_from(["x", "y", "z"]), min_size=4, max_size=30))
def test_nobody_is_served_twice_before_another_once(users: list[str]) -> None:
    """Equal workloads: at every moment the GPUs held by two users that both still wait differ by one at the most."""
    view = _scheduler(Policy(order="fairshare"))
    for seq, user in enumerate(users):
        view.submit(_job(f"{user}-{seq}", "a", user, seq))
    admitted = [admit.id[0] for admit in view.plan(0.0).admit]
    waiting = {entry.w.user for entry in view.lines.entries.values()}
    held = sorted(admitted.count(user) for user in waiting)
    assert all(more - less <= 1 for less, more in pairwise(held))
