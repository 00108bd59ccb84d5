"""What ranks said, as evidence: whatever a job's user writes there."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.reasons import Reason
from penstock.diagnosis import reading, steplines
from penstock.diagnosis.lines import KEPT, telling
from penstock.diagnosis.state import LogLine

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def event(name: str, at: float = 10.0, rank: int = 0, **data: Any) -> dict[str, Any]:
    return {"at": at, "rank": rank, "step": None, "metrics": {}, "event": name, "data": {"life": 1.0, **data}}


def steps(*numbers: int, rank: int = 0, **data: Any) -> dict[str, Any]:
    columns = {"at_ms": [100 * n for n in range(len(numbers))], "total": [100_000] * len(numbers)}
    return event("steps", rank=rank, at0=10.0, step=list(numbers), **{**columns, **data})


def test_columns_are_steps() -> None:
    rank = reading.watched([steps(0, 1, data=[1000, 2000], loss=[0.5, "nan"])])[0]
    assert [(step.step, step.total, step.data, step.compute) for step in rank.steps] == [
        (0, 0.1, 0.001, 0.0),
        (1, 0.1, 0.002, 0.0),
    ]
    assert rank.steps[0].loss == 0.5 and rank.steps[1].loss is not None and math.isnan(rank.steps[1].loss)
    assert rank.steps[1].at == pytest.approx(10.1)


def test_only_the_newest_life_counts_and_ranks_that_died_before_it_are_not_told() -> None:
    old = steps(0, 1) | {"at": 11.0}
    dead = steps(0, 1, rank=1) | {"at": 11.0}
    new = steps(7, 8, life=50.0) | {"at": 51.0}
    found = reading.watched([old, dead, new])
    assert [step.step for step in found[0].steps] == [7, 8] and 1 not in found


def test_one_rank_that_reports_aligns_all() -> None:
    found = reading.watched([steps(0, 1, shift=500), steps(0, 1, rank=1)])
    assert [step.step for step in found[1].steps] == [500, 501]


@given(
    st.lists(
        st.dictionaries(st.sampled_from(["life", "at0", "step", "at_ms", "total", "data", "loss", "shift"]), ANY),
        max_size=4,
    )
)
def test_whatever_is_written_is_read(data: list[dict[str, Any]]) -> None:
    events = [
        {"at": 10.0, "rank": 0, "event": name, "data": each}
        for each in data
        for name in ("steps", "counters", "watched")
    ]
    for rank in reading.watched(events).values():
        assert all(step.total >= 0 and isinstance(step.step, int) for step in rank.steps)


def test_many_steps_are_bounded() -> None:
    told = [steps(*range(n, n + 20)) for n in range(0, 4000, 20)]
    found = reading.watched(told)[0].steps
    assert len(found) == reading.FIRST + reading.NEWEST and found[0].step == 0 and found[-1].step == 3999


def test_reports_alone_tell_how_long_steps_took() -> None:
    points = [{"at": 10.0 + n, "rank": 0, "step": 2 * n, "metrics": {"loss": 1.0}} for n in range(3)]
    [rank] = reading.reported(points, 0.0).values()
    assert [(step.step, step.total) for step in rank.steps] == [(2, 0.5), (4, 0.5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            " iteration      100/  500 | consumed samples: 12 | elapsed time per iteration (ms): 532.1 | lm loss: 2.5E+00 |",
            (100, 0.5321, 2.5),
        ),
        ("iter 10: loss 3.1000, time 312.01ms, mfu 3.2%", (10, 0.31201, 3.1)),
        ("step  12 | loss: 3.2 | lr 6e-4 | norm: 0.3 | dt: 120.5ms | tok/sec: 100", (12, 0.1205, 3.2)),
        (" 30%|###   | 300/1000 [01:40<03:53,  3.00it/s, loss=0.5]", (300, 1 / 3.0, 0.5)),
        (" 30%|###   | 300/1000 [01:40<03:53,  2.50s/it]", (300, 2.5, None)),
        ("Train: 0 [  50/1251 (  4%)]  Loss: 6.9 (6.94)  Time: 0.312s,  820/s", (50, 0.312, 6.9)),
        ("[titan] step: 10  loss:  8.1  grad_norm: 1.2  memory: 3GiB", (10, None, 8.1)),
        ("step 40 loss 0.123456", (40, None, 0.123456)),
        ("step=7 took 0.25 s", (7, 0.25, None)),
        ("saved checkpoint to /data/step_40.pt", None),
        ("nothing of the kind", None),
    ],
)
def test_lines_of_common_trainers(text: str, said: tuple[int, float | None, float | None] | None) -> None:
    found = steplines.read(text)
    if said is None:
        assert found is None
    else:
        assert found is not None and (found.step, found.loss) == (said[0], said[2])
        assert found.seconds == (None if said[1] is None else pytest.approx(said[1]))


@given(st.text(max_size=200))
def test_any_line_is_read(text: str) -> None:
    steplines.read(text)


def test_a_log_without_times_is_timed_by_its_lines() -> None:
    lines = [LogLine(100.0 + 4 * n, f"step {40 * n} loss 0.5", 0) for n in range(3)]
    assert [(step.step, step.total) for step in reading.logged(lines)] == [(40, 0.1), (80, 0.1)]


def test_lines_that_may_matter_are_few_and_the_first_are_among_them() -> None:
    lines = [LogLine(float(n), "step 1 loss 2" if n % 2 else f"NCCL WARN {n}", 0) for n in range(5000)]
    found = telling(lines)
    assert len(found) == KEPT and found[0].text == "NCCL WARN 0" and found[-1].text == "NCCL WARN 4998"
    frames = telling(
        [LogLine(1.0, text, 0) for text in ("Traceback (most recent call last):", '  File "x.py", line 1', "fine")]
    )
    assert len(frames) == 2


def test_events_that_explain_and_exits_of_this_life() -> None:
    told: list[tuple[float, str, str, dict[str, Any]]] = [
        (1.0, Reason.RankExited, "rank 0 exited", {"rank": 0, "exit_code": 1, "signal": None}),
        (5.0, Reason.RankExited, "rank 1 exited", {"rank": 1, "exit_code": None, "signal": 9}),
        (6.0, Reason.Progressing, "", {}),
    ]
    assert [one.what for one in reading.happened(told)] == [Reason.RankExited, Reason.RankExited]
    assert reading.exits(told, 2.0) == {1: (None, 9)}
