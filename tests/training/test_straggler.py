"""Who is slow, and that noise is nobody's fault."""

from __future__ import annotations

import math
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.training import straggler
from penstock.training.straggler import STEPS


def made(
    seed: int, world: int, slow: dict[int, float], noise: float = 0.2, steps: int = 60
) -> dict[int, dict[int, float]]:
    chance = random.Random(seed)
    return {
        step: {rank: slow.get(rank, 1.0) * math.exp(chance.gauss(0, noise)) for rank in range(world)}
        for step in range(steps)
    }


@given(st.integers(), st.integers(2, 16), st.floats(0.0, 0.4))
def test_noise_makes_nobody_a_straggler(seed: int, world: int, noise: float) -> None:
    assert straggler.find(made(seed, world, {}, noise), world) == ()


@given(st.integers(), st.integers(2, 16), st.data())
def test_a_rank_half_again_as_slow_is_found(seed: int, world: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, world - 1))
    found = straggler.find(made(seed, world, {rank: 1.6}, 0.05), world)
    assert [one.rank for one in found] == [rank]
    assert 1.4 < found[0].slower < 1.8


def test_too_few_steps_and_half_of_the_ranks_tell_nothing() -> None:
    assert straggler.find(made(1, 4, {2: 2.0}, steps=STEPS - 1), 4) == ()
    assert straggler.find(made(1, 4, {0: 2.0, 1: 2.0, 2: 2.0}, 0.01), 4) == ()


def test_who_straggled_does_so_until_it_is_clearly_over() -> None:
    busy = made(1, 4, {2: 2.0}, 0.01)
    recovering = {step: {**ranks, 2: 1.0} if step % 5 == 0 else ranks for step, ranks in busy.items()}
    assert straggler.find(recovering, 4) == ()
    assert [one.rank for one in straggler.find(recovering, 4, known=(2,))] == [2]
    assert straggler.find(made(1, 4, {}, 0.01), 4, known=(2,)) == ()


def test_an_odd_stage_of_one_step_is_none() -> None:
    busy = made(1, 4, {}, 0.05)
    assert straggler.find({**busy, 40: {**busy[40], 1: 50.0}}, 4) == ()


def test_reports_are_read_by_step_and_rank() -> None:
    points: list[dict[str, Any]] = [
        {"at": 5.0, "rank": 0, "step": 1, "metrics": {"busy_s": 0.5}},
        {"at": 5.0, "rank": 1, "step": 1, "metrics": {"busy_s": None}},
        {"at": 1.0, "rank": 1, "step": 1, "metrics": {"busy_s": 9.0}},
        {"at": 6.0, "rank": 1, "step": None, "metrics": {"busy_s": 1.0}},
    ]
    assert straggler.times(points, 2.0) == {1: {0: 0.5}}
