"""Who the others wait for, and that chance, stages and odd steps make nobody that."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.training import sampling, waiting
from penstock.training.culprit import held
from penstock.training.state import Frame, Point
from penstock.training.waiting import LOOKS, SAMPLES, Sample, Tally

OWN = Frame("main", "/home/u/train.py", 20)
REDUCE = Frame("all_reduce", "/v/site-packages/torch/distributed/distributed_c10d.py", 3000)
BACKWARD = Frame("_engine_run_backward", "/v/site-packages/torch/autograd/graph.py", 979)
AT_WORK, WAITS = Sample("R", (OWN,)), Sample("S", (REDUCE, OWN))


def looked(chance: random.Random, world: int, slow: dict[int, float], noise: float, comm: float) -> Tally | None:
    """Samples at random moments of steps in which every rank works for a time and waits for the slowest, then for the wire."""
    samples: dict[int, list[Sample]] = {rank: [] for rank in range(world)}
    for _ in range(SAMPLES):
        work = [slow.get(rank, 1.0) * math.exp(chance.gauss(0, noise)) for rank in range(world)]
        moment = chance.uniform(0, max(work) + comm)
        for rank in range(world):
            samples[rank].append(AT_WORK if moment < work[rank] else WAITS)
    return waiting.tally(samples, world, stepped=False)


def looks(seed: int, world: int, slow: dict[int, float], noise: float, comm: float, count: int = 8) -> list[Tally]:
    chance = random.Random(seed)
    made = [looked(chance, world, slow, noise, comm) for _ in range(count)]
    return [one for one in made if one is not None]


@given(st.integers(), st.integers(2, 16), st.floats(0.0, 0.3), st.floats(0.0, 3.0))
def test_noise_makes_nobody_a_straggler(seed: int, world: int, noise: float, comm: float) -> None:
    assert waiting.find(looks(seed, world, {}, noise, comm)) == ()


@given(st.integers(), st.integers(2, 16), st.floats(0.0, 0.1), st.floats(0.0, 0.3), st.data())
def test_a_rank_twice_as_slow_is_found(seed: int, world: int, noise: float, comm: float, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, world - 1))
    made = looks(seed, world, {rank: 2.2}, noise, comm, 16)
    found = [[one.rank for one in waiting.find(made[:n])] for n in range(LOOKS, len(made) + 1)]
    assert [rank] in found
    assert all(each in ([], [rank]) for each in found)
    once = next(one for n in range(LOOKS, len(made) + 1) for one in waiting.find(made[:n]))
    assert once.slower > 1.3
    assert f"rank {rank} on n7 holds its peers up" in once.words("n7")


def test_who_straggled_does_so_until_it_is_clearly_over() -> None:
    still = looks(1, 4, {2: 1.25}, 0.02, 0.1)
    assert waiting.find(still) == ()
    assert [one.rank for one in waiting.find(still, known=(2,))] == [2]
    assert waiting.find(looks(1, 4, {}, 0.02, 0.1), known=(2,)) == ()


def test_half_of_the_ranks_are_no_exception() -> None:
    assert waiting.find(looks(1, 4, {0: 3.0, 1: 3.0, 2: 3.0}, 0.01, 0.1)) == ()


def test_one_rank_that_evaluates_while_the_others_wait_is_none() -> None:
    at_work = {0: [AT_WORK] * SAMPLES, 1: [WAITS] * SAMPLES, 2: [WAITS] * SAMPLES}
    tally = waiting.tally(at_work, 3, stepped=False)
    assert tally is not None
    assert waiting.find([tally] * 8) == ()
    assert not waiting.suspects([tally] * 8)
    stepped = waiting.tally(at_work, 3, stepped=True)
    assert stepped is not None
    assert [one.rank for one in waiting.find([stepped] * 8)] == [0]


def test_what_was_seen_of_some_ranks_alone_is_no_look() -> None:
    full = [AT_WORK] * SAMPLES
    assert waiting.tally({0: full}, 2, stepped=True) is None
    assert waiting.tally({0: full, 1: full[:5]}, 2, stepped=True) is None
    assert waiting.tally({0: full, 1: [Sample("S")] * SAMPLES}, 2, stepped=True) is None
    assert waiting.tally({0: full}, 1, stepped=True) is None


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (AT_WORK, False),
        (WAITS, True),
        (Sample("R", (REDUCE,)), True),  # NCCL spins
        (Sample("T", (REDUCE,)), False),
        (Sample("D", (REDUCE,)), False),
        (Sample("R", (BACKWARD,)), False),
        (Sample("S", (BACKWARD,)), True),
        (Sample("S"), True),
        (Sample("R"), False),
        (Sample("T"), False),
    ],
)
def test_who_waits(sample: Sample, expected: bool) -> None:
    assert waiting.waits(sample) is expected


def test_a_model_that_ddp_or_fsdp_calls_is_at_work() -> None:
    linear = Frame("forward", "/v/site-packages/torch/nn/modules/linear.py", 1)
    ddp = Frame("forward", "/v/site-packages/torch/nn/parallel/distributed.py", 2)
    functional = Frame("wait_tensor", "/v/site-packages/torch/distributed/_functional_collectives.py", 2)
    assert not held((linear, ddp, OWN))
    assert held((Frame("__call__", "/v/site-packages/torch/_ops.py", 1), functional, OWN))
    assert not held(())


def test_how_long_a_look_lasts_and_when_steps_have_become_slower() -> None:
    points = [Point(100.0 + n, 1, n) for n in range(50)] + [Point(100.0 + n, 0, n) for n in range(50)]
    pace = sampling.paces(points, 90.0)
    assert pace == [1.0] * 49
    assert sampling.lasts(pace) == 8.0
    assert sampling.lasts([]) == sampling.UNKNOWN_S
    assert sampling.lasts([90.0] * 40) == sampling.MOST_S
    assert not sampling.rose(pace)
    assert sampling.rose([1.0] * 60 + [1.3] * 30)
    assert not sampling.rose([1.0] * 60 + [1.1] * 30)
    assert sampling.paces(points, 200.0) == []
