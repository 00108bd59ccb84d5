"""Reservations and maintenance windows: nothing overlaps one, but what names it; early release gives back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.spec import Setup
from penstock.scheduling.state import Ask, Decision, Gpu, NodeState, Part, Policy, Reservation, Workload


def job(n: int, limit: float | None, names: frozenset[str] = frozenset()) -> Workload:
    return Workload(f"j{n}", f"j{n}", 0.0, (Part(1, Ask(gpus=4)),), limit_s=limit, reservations=names, seq=n)


def view(*reservations: Reservation, nodes: int = 1, backfill: str = "easy") -> Scheduler:
    made = Scheduler(Setup(policy=Policy(backfill=backfill), reservations=reservations))
    for n in range(nodes):
        made.put_node(NodeState(f"n{n}", 16.0, 1 << 36, tuple(Gpu(f"n{n}-{at}") for at in range(8))))
    return made


def started(decision: Decision) -> list[str]:
    return [admit.id for admit in decision.admit]


def window(*, maintenance: bool = False, start: float = 100.0, end: float = 200.0, node: str = "n0") -> Reservation:
    return Reservation("r", start, end, frozenset({node}), maintenance)


@pytest.mark.parametrize(("limit", "starts"), [(99.0, True), (100.0, True), (101.0, False), (None, False)])
def test_only_what_ends_before_a_window_starts_before_it(limit: float | None, starts: bool) -> None:
    made = view(window())
    made.submit(job(1, limit))
    assert bool(started(made.plan(0.0))) is starts


def test_other_nodes_are_used_instead() -> None:
    made = view(window(), nodes=2)
    made.submit(job(1, None))
    assert made.plan(0.0).admit[0].shares[0].node == "n1"


def test_who_names_it_may_use_its_nodes_but_not_in_maintenance() -> None:
    for maintenance in (False, True):
        made = view(window(maintenance=maintenance))
        made.submit(job(1, None, frozenset({"r"})))
        assert bool(started(made.plan(0.0))) is not maintenance


@pytest.mark.parametrize("backfill", ["easy", "conservative"])
def test_a_start_is_promised_after_the_window_and_kept(backfill: str) -> None:
    made = view(window(maintenance=True), backfill=backfill)
    made.submit(job(1, 150.0))
    decision = made.plan(0.0)
    assert [promise.start for promise in decision.promises] == [200.0]
    assert made.wake_at() == 100.0
    assert not made.plan(100.0).admit
    assert made.wake_at() == 200.0
    assert started(made.plan(200.0)) == ["j1"]


def test_an_early_release_frees_its_nodes() -> None:
    made = view(window(end=10_000.0))
    made.submit(job(1, 500.0))
    assert not made.plan(150.0).admit
    made.drop_reservation("r")
    assert started(made.plan(160.0)) == ["j1"]


def test_a_new_window_takes_a_promise_back_and_says_so() -> None:
    made = view()
    for n in range(3):
        made.submit(job(n, 50.0))
    assert [promise.start for promise in made.plan(0.0).promises] == [50.0]
    made.put_reservation(window(start=60.0, end=90.0))
    assert [promise.start for promise in made.plan(1.0).promises] == [90.0]
    made.put_reservation(window(start=95.0, end=120.0))
    assert [promise.start for promise in made.plan(2.0).promises] == [120.0]


def test_a_window_under_way_keeps_everybody_out_until_its_end() -> None:
    made = view(window())
    made.submit(job(1, 1.0))
    assert not made.plan(150.0).admit
    assert started(made.plan(200.0)) == ["j1"]


@pytest.mark.parametrize("known_before", [True, False])
def test_a_long_head_does_not_speak_for_a_short_one_of_its_kind(known_before: bool) -> None:
    made = Scheduler(Setup(policy=Policy(blocking="skip"), reservations=(window(),) if known_before else ()))
    made.put_node(NodeState("n0", 16.0, 1 << 36, tuple(Gpu(f"n0-{at}") for at in range(8))))
    made.submit(job(1, None))
    made.submit(job(2, 50.0))
    if not known_before:
        made.put_reservation(window())
    assert started(made.plan(0.0)) == ["j2"]


def test_a_reservation_may_be_for_some_projects_and_users_alone() -> None:
    made = view(
        Reservation("r", 0.0, 100.0, frozenset({"n0"}), projects=frozenset({"vision"}), users=frozenset({"ann"})),
        backfill="none",
    )
    for n, (project, user) in enumerate([("speech", "bob"), ("speech", "ann"), ("vision", "bob")]):
        made.submit(replace(job(n, None, frozenset({"r"})), project=project, user=user, queue="default"))
    assert started(made.plan(0.0)) == []  # strict: bob's of speech is first, and may not
    made.withdraw("j0")
    assert started(made.plan(0.0)) == ["j1", "j2"]
