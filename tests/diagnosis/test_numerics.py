"""Losses that leave their course, parameters that differ, and what happened near."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.diagnosis.numerics import Anomaly, Kind, checksums, losses, near
from penstock.diagnosis.state import Counters, Evidence, Happened, NodeEvidence, Rank, Step
from penstock.telemetry.spec import Finding

Losses = Callable[[int, int], float]  # rank, step


def falling(seed: int = 1) -> Losses:
    chance = random.Random(seed)
    noise = [[chance.gauss(0, 0.03) for _ in range(400)] for _ in range(8)]
    return lambda rank, step: 2.0 + 2.0 * math.exp(-step / 80) + noise[rank][step]


def evidence(
    loss: Losses,
    *,
    ranks: int = 4,
    steps: int = 200,
    sums: Mapping[int, Sequence[tuple[int, int, float]]] | None = None,
    happened: tuple[Happened, ...] = (),
    findings: tuple[Finding, ...] = (),
    wrapper: str = "ddp",
) -> Evidence:
    told = tuple(
        Rank(
            rank,
            f"node-{rank // 2}",
            tuple(Step(step, 1000.0 + step, 1.0, loss=loss(rank, step)) for step in range(steps)),
            tuple(
                Counters(1000.0 + step, {"checksum": value, "checksum_step": step, "checksum_part": part})
                for step, part, value in (sums or {}).get(rank, ())
            ),
            {"wrapper": wrapper},
        )
        for rank in range(ranks)
    )
    return Evidence("job", "p", "Running", 1300.0, told, (NodeEvidence("node-0", findings=findings),), happened)


def only(told: Evidence) -> Anomaly:
    found = losses(told)
    assert len(found) == 1, found
    return found[0]


def test_a_loss_that_falls_with_its_noise_is_well() -> None:
    for seed in range(20):
        assert losses(evidence(falling(seed))) == ()


def test_a_spike_on_all_ranks_is_nobodys_alone() -> None:
    usual = falling()
    found = only(evidence(lambda rank, step: usual(rank, step) + (4.0 if step == 120 else 0.0)))
    assert (found.kind, found.cause, found.step, found.ranks) == (Kind.SPIKE, "loss_spike", 120, ())
    assert found.z is not None
    assert found.z > 20


def test_a_spike_of_one_rank_names_it() -> None:
    usual = falling()
    found = only(evidence(lambda rank, step: usual(rank, step) + (4.0 if (rank, step) == (2, 90) else 0.0)))
    assert (found.kind, found.step, found.ranks) == (Kind.SPIKE, 90, (2,))


def test_a_rise_that_stays_is_a_divergence() -> None:
    usual = falling()
    found = only(evidence(lambda rank, step: usual(rank, step) + (0.2 * (step - 140) if step >= 140 else 0.0)))
    assert found.kind is Kind.DIVERGENCE
    assert 140 <= found.step <= 145


def test_another_level_from_a_restart_on() -> None:
    usual = falling()
    restart = Happened(1119.5, "RanksRestarted", "rank 1 exited")
    found = only(evidence(lambda rank, step: usual(rank, step) + (1.5 if step >= 120 else 0.0), happened=(restart,)))
    assert (found.kind, found.step) == (Kind.JUMP, 120)
    assert found.ties[0].what == "RanksRestarted"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_names_where_it_began(value: float) -> None:
    usual = falling()

    def loss(rank: int, step: int) -> float:
        return value if step > 100 or (rank, step) == (3, 100) else usual(rank, step)

    found = only(evidence(loss))
    assert (found.kind, found.cause, found.step, found.ranks) == (Kind.NOT_FINITE, "nan_loss", 100, (3,))


def test_a_memory_error_before_it_is_told() -> None:
    usual = falling()
    error = Finding("Xid", "node-0", 1099.0, 1099.0, "Xid 94 on 0000:3b:00", code="94")
    old = Finding("Xid", "node-0", 500.0, 500.0, "Xid 31 on 0000:3b:00", code="31")
    found = only(evidence(lambda r, s: math.nan if s >= 100 else usual(r, s), findings=(old, error)))
    assert [tie.words for tie in found.ties] == ["Xid 94 on 0000:3b:00"]
    assert found.ties[0].hardware
    assert "node-0 told of Xid" in found.words


# -- checksums ---------------------------------------------------------------------------------------------------------


def sums(values: Mapping[int, Sequence[float]], every: int = 10) -> dict[int, list[tuple[int, int, float]]]:
    return {
        rank: [(index * every, index % 2, value) for index, value in enumerate(own)] for rank, own in values.items()
    }


def test_equal_parameters_are_well() -> None:
    assert checksums(evidence(falling(), sums=sums({rank: [1.0, 2.0, 3.0] for rank in range(4)}))) is None
    assert checksums(evidence(falling())) is None


def test_the_minority_from_one_step_on_is_corrupt() -> None:
    told = {rank: [1.0, 2.0, 3.0, 4.0, 5.0] for rank in range(4)} | {2: [1.0, 2.0, 3.0, 9.0, 8.0]}
    found = checksums(evidence(falling(), sums=sums(told)))
    assert found is not None
    assert (found.cause, found.step, found.agreed, found.ranks) == ("sdc", 30, 10, (2,))


def test_from_the_first_comparison_on_it_is_the_program() -> None:
    told = {rank: [1.0, 2.0, 3.0] for rank in range(4)} | {1: [7.0, 8.0, 9.0]}
    found = checksums(evidence(falling(), sums=sums(told)))
    assert found is not None
    assert (found.cause, found.step, found.agreed, found.ranks) == ("param_desync", 0, None, (1,))


def test_of_two_ranks_the_one_without_rank_0_is_named_for_a_desync() -> None:
    found = checksums(evidence(falling(), ranks=2, sums=sums({0: [1.0, 2.0], 1: [5.0, 6.0]})))
    assert found is not None
    assert (found.cause, found.ranks) == ("param_desync", (1,))


def test_of_two_ranks_the_one_whose_loss_jumped_is_the_suspect() -> None:
    usual = falling()
    told = {0: [1.0] * 12, 1: [1.0] * 10 + [2.0] * 2}
    jumped = evidence(lambda r, s: usual(r, s) + (3.0 if r == 1 and s >= 95 else 0.0), ranks=2, sums=sums(told))
    found = checksums(jumped)
    assert found is not None
    assert (found.cause, found.step, found.ranks) == ("sdc", 100, (1,))
    unknown = checksums(evidence(usual, ranks=2, sums=sums(told)))
    assert unknown is not None
    assert unknown.ranks == ()


def moves(told: Evidence, rank: int, step: int, *, written: bool) -> Evidence:
    values = {"moved_step": float(step), "moved_part": 0.0, "moved_written": float(written)}
    ranks = [
        replace(one, counters=(*one.counters, Counters(1000.5 + step, values))) if one.rank == rank else one
        for one in told.ranks
    ]
    return replace(told, ranks=tuple(ranks))


@pytest.mark.parametrize(("written", "cause"), [(True, "param_desync"), (False, "sdc")])
def test_who_changed_while_no_optimizer_ran_is_the_one_also_of_two(written: bool, cause: str) -> None:
    told = evidence(falling(), ranks=2, sums=sums({0: [1.0] * 12, 1: [1.0] * 10 + [2.0] * 2}))
    found = checksums(moves(told, 0, 90, written=written))
    assert found is not None
    assert (found.cause, found.step, found.agreed, found.ranks) == (cause, 100, 90, (0,))
    assert ("the program wrote to them" in found.words) == written


def test_what_all_ranks_do_to_their_parameters_is_meant() -> None:
    told = evidence(falling(), ranks=2, sums=sums({0: [1.0] * 12, 1: [1.0] * 12}))
    for rank in (0, 1):
        told = moves(told, rank, 50, written=True)
    assert checksums(told) is None
    differ = evidence(falling(), ranks=2, sums=sums({0: [1.0] * 12, 1: [1.0] * 10 + [2.0] * 2}))
    found = checksums(moves(moves(differ, 0, 90, written=True), 1, 90, written=True))
    assert found is not None
    assert (found.cause, found.ranks) == ("sdc", ())


def test_parameters_that_are_split_need_not_be_equal() -> None:
    told = {rank: [float(rank)] for rank in range(4)}
    assert checksums(evidence(falling(), sums=sums(told), wrapper="fsdp")) is None


def test_a_rank_that_tells_none_is_no_suspect() -> None:
    told = {0: [1.0, 2.0, 3.0], 1: [1.0, 2.0, 3.0], 2: [1.0]}
    assert checksums(evidence(falling(), sums=sums(told))) is None


_LOSS = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 10))


@given(st.lists(st.lists(st.tuples(_LOSS, _LOSS), max_size=40), max_size=3))
def test_whatever_the_numbers_are_the_answer_is_sound(ranks: list[list[tuple[float | None, float | None]]]) -> None:
    told = tuple(
        Rank(
            number,
            "node-0",
            tuple(Step(index, float(index), 1.0, loss=one, grad_norm=two) for index, (one, two) in enumerate(own)),
            tuple(
                Counters(float(index), {"checksum": two, "checksum_step": float(index)})
                for index, (_, two) in enumerate(own)
                if two is not None
            ),
        )
        for number, own in enumerate(ranks)
    )
    whole = Evidence("job", "p", "Running", 100.0, told)
    found = losses(whole)
    assert [anomaly.step for anomaly in found] == sorted(anomaly.step for anomaly in found)
    for anomaly in found:
        assert set(anomaly.ranks) < {rank.rank for rank in told} or len(told) == 1
        assert anomaly.words
    compared = checksums(whole)
    assert compared is None or (compared.cause in {"sdc", "param_desync"} and compared.words)
    assert near(whole, 50.0) == ()
