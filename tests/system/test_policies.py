"""Every named policy on a real server: what can run, runs; and what must not pass a blocked head, does not."""

from __future__ import annotations

import itertools

import pytest

from tests.system.house import House

POLICIES = list(
    itertools.product(("fifo", "sjf", "fairshare", "multifactor"), ("strict", "skip"), ("none", "easy", "conservative"))
)


@pytest.mark.parametrize(("order", "blocking", "backfill"), POLICIES, ids=lambda word: word)
def test_all_of_it_runs_in_the_end(house: House, order: str, blocking: str, backfill: str) -> None:
    """Behind a head that needs both nodes: a short one overtakes it by backfill or by skip, and otherwise does not."""
    weights = ", weights: {age: 1000, fairshare: 1000}" if order == "multifactor" else ""
    policy = f"policy: {{order: {order}, blocking: {blocking}, backfill: {backfill}{weights}}}"
    house.client.apply_queues(policy.encode())
    cpus = min(node["capacity"]["cpus"] for node in house.get("nodes")["items"])
    runs = house.run(["sleep", "1.5"], resources={"cpus": cpus}, time_limit="30s")
    house.reach(runs, "Running")
    head = house.run(["true"], resources={"cpus": cpus}, nodes=2, time_limit="20s", priority=1)
    short = house.run(["true"], resources={"cpus": cpus / 2}, time_limit="10s")
    for name in (runs, head, short):
        assert house.ended(name)["status"]["phase"] == "Succeeded"
    overtook = house.job(short)["status"]["started_at"] < house.job(head)["status"]["started_at"]
    assert overtook is (blocking == "skip" or backfill != "none")


def test_a_time_limit_ends_what_it_says(house: House) -> None:
    house.client.apply_queues(b"policy: {backfill: easy}")
    late = house.run(["sleep", "60"], time_limit="1s", grace_period="1s")
    assert house.ended(late)["status"]["reason"] == "TimeLimit"


def test_a_higher_priority_evicts_a_lower_one(house: House) -> None:
    house.client.apply_queues(b"policy: {preemption: true}")
    cpus = min(node["capacity"]["cpus"] for node in house.get("nodes")["items"])
    low = [house.run(["sleep", "60"], resources={"cpus": cpus}, grace_period="1s") for _ in range(2)]
    for name in low:
        house.reach(name, "Running")
    high = house.run(["true"], resources={"cpus": cpus}, priority=9)
    assert house.ended(high)["status"]["phase"] == "Succeeded"
    assert sorted(house.reasons(name).count("Preempted") for name in low) == [0, 1]
    for name in low:
        house.client.jobs.cancel(name)
        house.ended(name)
