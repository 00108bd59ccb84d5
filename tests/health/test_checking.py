"""Who is to be checked, and what came of it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.health.checking import BETWEEN, FIRST, REPAIR, due
from penstock.health.checks import known
from penstock.health.orders import MOST, NAMES, PATIENCE_S, Orders, Wanted
from penstock.health.plan import Held
from penstock.health.policy import _Checks
from penstock.health.rule import Checks
from penstock.health.state import Hold, NodeHealth, Verb
from penstock.telemetry.ordered import by_program, findings
from penstock.telemetry.push import Order

CHECKS = Checks(("clock", "dcgmi"), first=True, between_s=3600.0)


def node(name: str, jobs: tuple[str, ...] = (), checked_at: float | None = 0.0, *, ready: bool = True) -> NodeHealth:
    return NodeHealth(name, ready, cordoned=False, cordoned_by_us=False, jobs=jobs, checked_at=checked_at)


def test_every_check_can_be_asked_for() -> None:
    assert {check.name: check.busy for check in known.ALL} == NAMES
    assert _Checks.model_validate({"run": list(NAMES)}).run == tuple(NAMES)


def test_after_a_repair_before_first_use_and_between_jobs() -> None:
    nodes = [
        node("repaired", checked_at=9000.0),
        node("new", checked_at=None),
        node("idle", checked_at=6000.0),
        node("fresh", checked_at=9000.0),
        node("busy", ("p/j#1",), None),
        node("away", checked_at=None, ready=False),
    ]
    held = [Held("repaired", Verb.RETURN, Hold.CHECK, "", ()), Held("busy", Verb.RETURN, Hold.QUIET, "", ())]
    found = due(reversed(nodes), held, CHECKS, 10_000.0)
    assert [(one.node, one.why) for one in found] == [("idle", BETWEEN), ("new", FIRST), ("repaired", REPAIR)]


def test_what_wants_the_gpus_is_not_asked_beside_a_job() -> None:
    held = [Held("n", Verb.RETURN, Hold.CHECK, "", ())]
    (found,) = due([node("n", ("p/j#1",))], held, CHECKS, 0.0)
    assert found.checks == ("clock",)


@pytest.mark.parametrize(
    ("said", "passed"),
    [
        (["passed", "passed"], True),
        (["passed", "not run"], True),
        (["not run", "not run"], False),
        (["passed", "failed"], False),
    ],
)
def test_what_lets_a_node_back(said: list[str], passed: bool) -> None:
    orders = Orders()
    asked = orders.ask(Wanted("n", ("clock", "fio"), REPAIR), "1", 0.0)
    assert asked is not None
    lines = [json.dumps({"check": name, "result": word}) for name, word in zip(("clock", "fio"), said, strict=True)]
    told = list(findings(asked.order, "n", "\n".join(lines), 1.0))
    assert orders.told(told[:1]) == []
    assert [one.passed for one in orders.told(told[1:])] == [passed]
    assert orders.of("n") == ()
    assert orders.told(told) == []


def test_one_order_at_a_time_until_it_is_too_old() -> None:
    orders = Orders()
    wanted = Wanted("n", ("clock",), FIRST)
    assert orders.ask(wanted, "1", 0.0) is not None
    assert orders.ask(wanted, "2", PATIENCE_S - 1) is None
    assert orders.of("n") == (Order("1", ("clock",)),)
    assert orders.ask(wanted, "3", PATIENCE_S) is not None
    stale = findings(Order("1", ("clock",)), "n", '{"check": "clock", "result": "passed"}', 0.0)
    assert orders.told(list(stale)) == []


def test_orders_are_bounded() -> None:
    orders = Orders()
    for index in range(MOST + 5):
        orders.ask(Wanted(f"n{index}", ("clock",), FIRST), str(index), 0.0)
    assert len(orders.waiting) == MOST


@given(st.text())
def test_whatever_the_program_says_each_check_has_one_answer(said: str) -> None:
    found = list(findings(Order("1", ("clock", "fio")), "n", said, 0.0))
    assert [one.code for one in found] == ["clock", "fio"]
    assert not any(one.active for one in found)


def test_the_program_that_an_agent_runs_is_there_and_answers_for_each_check() -> None:
    (said,) = by_program("n")(Order("1", ("nosuch",)))
    assert said.message == "nosuch: not run: there is no such check in this version"
