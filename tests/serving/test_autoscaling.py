"""The planner of replicas: what must hold of every decision, whatever came before; and a few days in its life."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.autoscaling import HOUR, Decision, Memory, Seen, Why, memory_of, plan
from penstock.serving.profile import Curve, Point
from penstock.serving.spec import Autoscaling, Objective

CURVE = Curve((Point(1, 10, 0.1), Point(8, 40, 0.2), Point(32, 60, 0.6)), 10.0, "measured")
CURVES = st.sampled_from([CURVE, Curve(), Curve((Point(2, 3, 0.7),), 60.0, "learned")])
SEEN = st.builds(
    Seen,
    active=st.sampled_from([0, 0, 0, 1, 5, 40, 300]),
    arrived=st.sampled_from([0, 0, 0, 1, 30, 500]),
    ready=st.integers(0, 8),
    p95=st.one_of(st.none(), st.floats(0.01, 5)),
    samples=st.sampled_from([0, 10, 500]),
    most=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 12)),
)
CONFIG = st.builds(
    Autoscaling,
    min=st.integers(0, 3),
    max=st.integers(3, 15),
    objective=st.sampled_from([Objective(), Objective(p95=0.3)]),
    concurrency=st.sampled_from([None, None, 4.0]),
    up_after=st.sampled_from([0, 5]),
    down_after=st.sampled_from([0, 10, 60]),
    dead_band=st.sampled_from([0.0, 0.1, 0.5]),
    flaps=st.integers(0, 6),
    idle_after=st.sampled_from([5.0, 30.0]),
)
STEPS = st.lists(st.tuples(SEEN, st.sampled_from([1.0, 1.0, 3.0, 40.0, 900.0])), min_size=1, max_size=40)


def _lived(
    config: Autoscaling, curve: Curve, steps: list[tuple[Seen, float]]
) -> list[tuple[float, Seen, Decision, Memory]]:
    """Each look with what was decided; a look's `replicas` is what the one before decided."""
    memory, now, replicas, rows = Memory(), 1_000_000.0, config.min, []
    for seen, seconds in steps:
        now += seconds
        look = replace(seen, seconds=seconds, replicas=replicas)
        decision, memory = plan(config, curve, look, memory, now)
        rows.append((now, look, decision, memory))
        replicas = decision.replicas
    return rows


@given(CONFIG, CURVES, STEPS)
def test_it_stays_within_bounds_and_quota(config: Autoscaling, curve: Curve, steps: list[tuple[Seen, float]]) -> None:
    for _, seen, decision, _ in _lived(config, curve, steps):
        most = config.max if seen.most is None else min(config.max, seen.most)
        assert min(config.min, most) <= decision.replicas <= most


@given(CONFIG, CURVES, STEPS, st.floats(0, 200), st.floats(0, 500), st.floats(0, 3))
def test_more_load_never_gives_fewer(
    config: Autoscaling, curve: Curve, steps: list[tuple[Seen, float]], active: float, arrived: float, p95: float
) -> None:
    rows = _lived(config, curve, steps)
    now, seen, decision, _ = rows[-1]
    memory = rows[-2][3] if len(rows) > 1 else Memory()
    slower = None if seen.p95 is None else seen.p95 + p95
    more = replace(seen, active=seen.active + active, arrived=seen.arrived + arrived, p95=slower)
    assert plan(config, curve, more, memory, now)[0].replicas >= decision.replicas


@given(CONFIG, CURVES, STEPS)
def test_down_waits_for_stabilisation_and_for_the_end_of_panic(
    config: Autoscaling, curve: Curve, steps: list[tuple[Seen, float]]
) -> None:
    up_at = None
    for now, seen, decision, memory in _lived(config, curve, steps):
        bounded = decision.reason is Why.BOUNDED
        if decision.replicas < seen.replicas and not bounded:
            assert memory.panic_at is None or now - memory.panic_at >= 60
            if decision.replicas > 0:
                assert up_at is None or now - up_at >= config.down_after
        if decision.replicas > seen.replicas:
            up_at = now


@given(CONFIG, CURVES, STEPS)
def test_its_flaps_stay_within_the_budget(config: Autoscaling, curve: Curve, steps: list[tuple[Seen, float]]) -> None:
    turns: list[float] = []
    direction = 0
    for now, seen, decision, _ in _lived(config, curve, steps):
        moved = (decision.replicas > seen.replicas) - (decision.replicas < seen.replicas)
        if not moved or decision.reason is Why.BOUNDED:
            continue
        if direction not in (0, moved):
            turns.append(now)
        direction = moved
        assert sum(1 for at in turns if now - HOUR < at <= now) <= max(config.flaps, 1)


@given(CONFIG, CURVES, STEPS)
def test_zero_only_when_idle(config: Autoscaling, curve: Curve, steps: list[tuple[Seen, float]]) -> None:
    busy_at = None
    for now, seen, decision, _ in _lived(config, curve, steps):
        if seen.active or seen.arrived or busy_at is None:
            busy_at = now
        if decision.replicas == 0 and seen.replicas > 0 and decision.reason is not Why.BOUNDED:
            assert config.min == 0
            assert now - busy_at >= config.idle_after
        if seen.replicas == 0 and (seen.active or seen.arrived) and seen.most != 0:
            assert decision.replicas >= 1


@given(CONFIG, CURVES, STEPS)
def test_it_is_deterministic_and_its_memory_is_bounded_and_survives_json(
    config: Autoscaling, curve: Curve, steps: list[tuple[Seen, float]]
) -> None:
    rows = _lived(config, curve, steps)
    assert rows == _lived(config, curve, steps)
    for (_, _, _, memory), (now, seen, decision, after) in pairwise(rows):
        kept = memory_of(json.loads(json.dumps(memory.to_dict())))
        assert kept == memory
        assert plan(config, curve, seen, kept, now) == (decision, after)
        assert len(after.looks) <= 61
        assert len(after.peaks) <= 63


def _steady(
    config: Autoscaling, rate: float, active: float, seconds: int, memory: Memory, start: float, replicas: int
) -> tuple[list[Decision], Memory, int]:
    decisions = []
    for second in range(seconds):
        seen = Seen(active, rate, 1.0, replicas, replicas)
        decision, memory = plan(config, CURVE, seen, memory, start + second)
        replicas = decision.replicas
        decisions.append(decision)
    return decisions, memory, replicas


CALM = Autoscaling(min=1, max=20, objective=Objective(p95=0.6), down_after=60.0)


def test_a_steady_load_gets_what_its_rate_needs_and_no_change_more() -> None:
    decisions, memory, replicas = _steady(CALM, 150, 40, 300, Memory(), 0.0, 1)
    assert replicas == 3  # 150 a second at 60 a replica, 15% above it
    assert [one.replicas for one in decisions[100:]] == [3] * 200
    assert memory.turns == ()


def test_a_load_that_fell_is_followed_once_and_late() -> None:
    _, memory, replicas = _steady(CALM, 150, 40, 100, Memory(), 0.0, 1)
    decisions, _, replicas = _steady(CALM, 40, 10, 300, memory, 100.0, replicas)
    assert replicas == 1
    first = next(i for i, one in enumerate(decisions) if one.replicas < 3)
    assert 60 <= first <= 130
    assert decisions[first].reason is Why.LOAD_FELL


def test_idle_goes_to_zero_and_one_request_wakes_it() -> None:
    config = CALM.model_copy(update={"min": 0, "idle_after": 30.0})
    _, memory, replicas = _steady(config, 1, 1, 5, Memory(), 0.0, 1)
    decisions, memory, replicas = _steady(config, 0, 0, 60, memory, 5.0, replicas)
    assert replicas == 0
    assert next(i for i, one in enumerate(decisions) if one.replicas == 0) == 29
    decision, _ = plan(config, CURVE, Seen(1, 1, 1.0, 0, 0), memory, 65.0)
    assert (decision.replicas, decision.reason) == (1, Why.WOKEN)


def test_a_missed_objective_adds_one_and_waits() -> None:
    memory, replicas, told = Memory(), 1, []
    for second in range(200):
        seen = Seen(20 * replicas, 30, 1.0, replicas, replicas, p95=0.9, samples=100)
        decision, memory = plan(CALM, CURVE, seen, memory, float(second))
        replicas = decision.replicas
        told.append(decision)
    missed = [second for second, one in enumerate(told) if one.reason is Why.OBJECTIVE_MISSED]
    assert missed[:2] == [0, 70]
    assert "150% of the objective" in told[0].message


def test_a_spent_budget_keeps_what_is_there() -> None:
    config = CALM.model_copy(update={"flaps": 2, "down_after": 5.0})
    memory, replicas, told = Memory(), 1, []
    for second in range(1800):
        busy = second // 150 % 2 == 0
        seen = Seen(40 if busy else 1, 150 if busy else 1, 1.0, replicas, replicas)
        decision, memory = plan(config, CURVE, seen, memory, float(second))
        replicas = decision.replicas
        told.append(decision)
    assert sum(1 for one in told if one.reason is Why.FLAP_BUDGET) > 300
    assert len(memory.turns) == 2


def test_what_was_learned_at_little_load_is_no_bound_on_throughput() -> None:
    """One request at a time, 100 a second: nobody has seen yet that a replica can do more, so its rate says nothing."""
    curve = Curve((Point(1, 100, 0.01),), 5.0, "learned")
    config = Autoscaling(min=1, max=20, objective=Objective(p95=0.1))
    decision, _ = plan(config, curve, Seen(3, 300, 1.0, 1, 1), Memory(), 0.0)
    assert decision.replicas == 1
    measured = replace(curve, source="measured")
    memory = Memory()
    for second in range(60):
        decision, memory = plan(config, measured, Seen(3, 300, 1.0, 1, 1), memory, float(second))
    assert decision.replicas == 4


def test_an_objective_that_nothing_holds_is_chased_no_further_than_replicas_with_little_to_do() -> None:
    config = Autoscaling(min=1, max=50, objective=Objective(p95=0.01))
    memory, replicas = Memory(), 1
    for second in range(7200):
        seen = Seen(100, 15, 1.0, replicas, replicas, p95=0.12, samples=100)
        decision, memory = plan(config, CURVE, seen, memory, float(second))
        replicas = decision.replicas
    assert 8 <= replicas <= 16  # 14 at once take three times what a lone one does


def test_replicas_that_do_a_third_of_what_the_curve_promises_are_found_out() -> None:
    """Each of them answers 20 a second at most, not 60; 100 come. What waits grows while too few are there."""
    memory, replicas, waits = Memory(), 1, 0.0
    for second in range(600):
        waits = max(5.0 * replicas, waits + 100 - 20 * replicas)
        decision, memory = plan(CALM, CURVE, Seen(waits, 100, 1.0, replicas, replicas), memory, float(second))
        replicas = decision.replicas
    assert 5 <= replicas <= 10
    assert waits <= 5 * replicas


def test_what_was_found_out_is_not_forgotten_with_the_looks_that_told_it() -> None:
    """A curve that promises three times too much: nothing waits any more, and for two hours nothing may again."""
    memory, replicas, waits, told = Memory(), 1, 0.0, []
    for second in range(7200):
        waits = max(5.0 * replicas, waits + 100 - 20 * replicas)
        decision, memory = plan(CALM, CURVE, Seen(waits, 100, 1.0, replicas, replicas), memory, float(second))
        told.append((replicas, waits))
        replicas = decision.replicas
    later = told[600:]
    assert min(count for count, _ in later) >= 5
    assert all(waiting <= 5 * count for count, waiting in later)


def test_a_replica_that_does_better_again_is_believed() -> None:
    memory = Memory(full=20.0)
    for second in range(60):
        decision, memory = plan(CALM, CURVE, Seen(90, 59, 1.0, 2, 2), memory, float(second))
    assert memory.full == 29.5
    for second in range(60, 200):
        decision, memory = plan(CALM, CURVE, Seen(90, 116, 1.0, 2, 2), memory, float(second))
    assert memory.full is None
    assert decision.numbers["rate"] < 2.1
