"""Where the wall time went: the parts sum to it exactly, and each second is counted for what it was."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.training import history
from penstock.training.goodput import Account, End, Knot, Life, Lives, Part, account, ratio

moments = st.integers(0, 100_000)
spans = st.lists(st.tuples(moments, st.integers(-10, 5000)), max_size=5).map(tuple)


@st.composite
def some_life(draw: st.DrawFn) -> Life:
    """Any life at all, also ones that no job has: times that go back, steps that do."""
    return Life(
        draw(st.integers(1, 4)),
        draw(moments),
        draw(st.none() | moments),
        draw(st.sampled_from(End)),
        tuple(draw(st.lists(st.builds(Knot, st.integers(0, 50), moments), max_size=8))),
        draw(st.none() | st.integers(0, 50)),
        draw(st.none() | moments),
        draw(st.none() | st.integers(0, 50)),
        draw(spans),
        draw(spans),
        draw(spans),
        draw(st.integers(0, 3000)),
        draw(st.integers(1, 10)),
    )


jobs = st.builds(Lives, moments, moments, st.booleans(), st.lists(some_life(), max_size=5).map(tuple))


def checked(job: Lives) -> Account:
    found = account(job)
    wall = max(job.until, job.submitted) - job.submitted
    assert sum(found.parts().values()) == wall == found.wall
    at = job.submitted
    for each in found.segments:
        assert each.begin == at < each.end
        at = each.end
    return found


@given(jobs)
def test_the_parts_sum_to_the_wall_time_exactly(job: Lives) -> None:
    found = checked(job)
    if not any(life.knots for life in job.lives):
        parts = found.parts()
        assert not found.measured and parts[Part.STEPS] == parts[Part.LOST] == parts[Part.HANG] == 0


@given(jobs, moments, moments)
def test_two_periods_that_meet_hold_what_both_hold(job: Lives, one: int, two: int) -> None:
    found = checked(job)
    low, middle, high = -1, *sorted((one, two))
    both = found.parts(window=(low, high))
    parts = [found.parts(window=(low, middle)), found.parts(window=(middle, high))]
    assert all(both[part] == parts[0][part] + parts[1][part] for part in Part)
    attempts = {each.attempt for each in found.segments}
    assert all(sum(found.parts(n)[part] for n in attempts) == found.parts()[part] for part in Part)


@given(some_life())
def test_a_life_that_was_kept_reads_back_as_it_was(life: Life) -> None:
    assert history.from_json(history.to_json(life)) == life


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 100_000), st.integers(0, 2)), max_size=40),
    st.lists(st.tuples(st.integers(0, 100_000), st.sampled_from(["RankExited", "RankRestarted"])), max_size=6),
    st.none() | st.integers(0, 100_000),
)
def test_any_reports_and_events_make_an_account(
    steps: list[tuple[int, int, int]], happened: list[tuple[int, str]], ended: int | None
) -> None:
    attempt = row(0, ended, "Failed")
    points = [{"at": at / 1000, "step": step, "rank": rank} for step, at, rank in sorted(steps, key=lambda s: s[1])]
    events = [{"at": at / 1000, "reason": reason, "data": {"attempt": 1}} for at, reason in sorted(happened)]
    found = history.lives(attempt, events, points)
    assert all(one.ended == two.began for one, two in itertools.pairwise(found))
    checked(Lives(0, 100_000, ended is not None, found))


def row(began: int, ended: int | None, reason: str, *, number: int = 1) -> dict[str, Any]:
    over = ended is not None
    return {
        "number": number,
        "admitted_at": began / 1000,
        "started_at": began / 1000,
        "ended_at": ended / 1000 if over else None,  # type: ignore[operator]  # mypy does not narrow through ``over``
        "reason": reason,
        "queued": False,
    }


def steps(first: int, last: int, since: int, each: int = 100) -> list[dict[str, Any]]:
    """Step ``first`` is done at ``since`` milliseconds, and one every ``each`` after it."""
    return [{"at": (since + n * each) / 1000, "rank": 0, "step": first + n} for n in range(last - first + 1)]


def told(state: str, at: int, **data: Any) -> dict[str, Any]:
    where = {"at": at / 1000, "rank": 0, "step": None, "event": "checkpoint"}
    return where | {"data": {"state": state, "at": at / 1000, **data}}


def test_a_job_that_is_killed_in_place_and_then_in_a_new_attempt() -> None:
    """Steps of 100 ms. Killed after step 49 with a save of step 39; again after 79 with one of 59; then to the end at 99."""
    first = [
        told("fresh", 900),
        *steps(0, 49, 1100),  # 1,000 to 6,000
        told("saved", 5100, step=39, began=5.0, stall_s=0.05),
        told("loaded", 7500, step=39),
        *steps(40, 79, 8100),  # 8,000 to 12,000
        told("saved", 10_100, step=59),
    ]
    exits = [
        {"at": 6.0, "reason": "RankExited", "data": {"attempt": 1, "at": 6.0, "rank": 1}},
        {"at": 6.5, "reason": "RankRestarted", "data": {"attempt": 1, "at": 6.5}},
    ]
    second = [told("loaded", 14_000, step=59), *steps(60, 99, 15_100)]  # 15,000 to 19,000
    one = history.lives(row(500, 12_000, "Failed"), exits, first)
    two = history.lives(row(13_000, 19_200, "Completed", number=2), exits, second)
    found = checked(Lives(0, 19_200, True, (*one, *two)))
    assert {part.value: length for part, length in found.parts().items() if length} == {
        "steps": 40 * 100 + 20 * 100 + 40 * 100,
        "lost": 10 * 100 + 20 * 100,
        "startup": 500,
        "restart": 2000 + 2000,
        "waiting": 500 + 1000,
        "other": 200,
    }
    assert [len(found.parts(n)) for n in (1, 2)] == [len(Part)] * 2
    assert found.parts(2)[Part.RESTART] == 2000 and found.parts(2)[Part.LOST] == 0


def test_the_stall_of_a_save_is_no_step_and_no_pause() -> None:
    points = [*steps(0, 9, 1100), told("saving", 4000, began=2.0, stall_s=2.0), *steps(10, 19, 4100)]
    [life] = history.lives(row(0, None, "Started"), (), points)
    assert life.pauses == () and life.pace == 100
    parts = checked(Lives(0, 5000, False, (life,))).parts()
    assert (parts[Part.CHECKPOINT], parts[Part.STEPS], parts[Part.STARTUP]) == (2000, 2000, 1000)


def test_a_pause_between_steps_is_counted_apart() -> None:
    points = [*steps(0, 9, 100), *steps(10, 19, 11_000)]
    [life] = history.lives(row(0, 12_000, "Completed"), (), points)
    parts = checked(Lives(0, 12_000, True, (life,))).parts()
    assert parts[Part.STEPS] == 2000 and parts[Part.OTHER] == 10_000


def test_reports_of_every_tenth_step_count_the_steps_between_them() -> None:
    """Killed after step 55, which nobody reported; what it loads is step 49, and the next report is of step 59."""
    points = [{"at": s * 0.1 + 1.1, "rank": 0, "step": s} for s in range(9, 51, 10)]
    again = [
        told("loaded", 8000, step=49),
        *({"at": 9 + (s - 49) * 0.1, "rank": 0, "step": s} for s in range(59, 100, 10)),
    ]
    one = history.lives(row(0, 6600, "Failed"), (), points)
    two = history.lives(row(6600, 14_000, "Completed", number=2), (), again)
    parts = checked(Lives(0, 14_000, True, (*one, *two))).parts()
    assert parts[Part.STEPS] == 100 * 100
    assert parts[Part.LOST] == 600  # 50 to 55 and a little of 56: done, and gone
    assert parts[Part.RESTART] == 2400


def test_a_restart_that_no_event_told_shows_in_the_steps() -> None:
    points = [*steps(0, 29, 1100), *steps(20, 39, 8100)]
    one, two = history.lives(row(0, 10_000, "Completed"), (), points)
    assert (one.ended, one.end, two.began) == (4000, End.FAILED, 4000)
    parts = checked(Lives(0, 10_000, True, (one, two))).parts()
    assert (parts[Part.LOST], parts[Part.RESTART], parts[Part.STEPS]) == (1000, 4000, 4000)


@pytest.mark.parametrize(("saved", "lost"), [(19, 1000), (None, 0)])
def test_what_the_last_end_has_cost_is_known_only_from_checkpoints(saved: int | None, lost: int) -> None:
    points = steps(0, 29, 100)
    points += [told("saved", 2500, step=saved)] if saved is not None else []
    [life] = history.lives(row(0, 3000, "Failed"), (), points)
    found = checked(Lives(0, 3000, True, (life,)))
    assert found.parts()[Part.LOST] == lost and found.saves_known is (saved is not None)


def test_a_hang_is_the_time_since_the_last_step() -> None:
    [life] = history.lives(row(0, 20_000, "Hung"), (), steps(0, 9, 100))
    parts = checked(Lives(0, 20_000, True, (life,))).parts()
    assert parts[Part.HANG] == 20_000 - 1100 and parts[Part.LOST] == 100
    told = {"at": 15.0, "reason": "RankHung", "data": {"attempt": 1}}
    [same] = history.lives(row(0, 20_000, "Failed"), [told], steps(0, 9, 100))
    assert same == life


def test_a_hang_that_was_only_told_of_is_one_from_the_first_and_until_it_ends() -> None:
    told = {"at": 15.0, "reason": "RankHung", "data": {"attempt": 1, "answer": "tell"}}
    [runs] = history.lives(row(0, None, "Started"), [told], steps(0, 9, 100))
    parts = checked(Lives(0, 20_000, False, (runs,))).parts()
    assert parts[Part.HANG] == 20_000 - 1100 and parts[Part.OTHER] == 0
    assert history.from_json(history.to_json(runs)) == runs
    assert history.from_json(history.to_json(runs)[:12]).hangs == ()  # as it was kept before
    [resumed] = history.lives(row(0, None, "Started"), [told], [*steps(0, 9, 100), *steps(10, 19, 30_000)])
    parts = checked(Lives(0, 31_000, False, (resumed,))).parts()
    assert parts[Part.HANG] == 30_000 - 1000 - 100 and parts[Part.STEPS] == 1000 + 1000 + 100
    [never] = history.lives(row(0, None, "Started"), [told], [])
    assert checked(Lives(0, 20_000, False, (never,))).parts()[Part.UNMEASURED] == 20_000


def test_what_reports_no_steps_is_not_measured() -> None:
    [life] = history.lives(row(1000, 5000, "Completed"), (), [])
    found = checked(Lives(0, 5000, True, (life,)))
    assert not found.measured and ratio(found.parts()) is None
    assert found.parts()[Part.UNMEASURED] == 4000 and found.parts()[Part.WAITING] == 1000


def test_the_line_of_an_engine_is_waiting_and_being_taken_back_is_a_restart() -> None:
    attempt = row(1000, 30_000, "Completed") | {"queued": True, "started_at": 20.0}
    events = [
        {"at": 5.0, "reason": "AttemptStarted", "data": {"attempt": 1, "started_at": 5.0}},
        {"at": 9.0, "reason": "Requeued", "data": {"attempt": 1, "ended_at": 8.1}},
        {"at": 20.0, "reason": "AttemptStarted", "data": {"attempt": 1, "started_at": 20.0}},
    ]
    points = [*steps(0, 19, 6100), *steps(10, 89, 22_000)]
    found = history.lives(attempt, events, points)
    assert [(life.began, life.ended, life.end) for life in found] == [
        (5000, 8100, End.FAILED),
        (20_000, 30_000, End.DONE),
    ]
    parts = checked(Lives(0, 30_000, True, found)).parts()
    assert parts[Part.WAITING] == 5000 + 11_900 and parts[Part.STARTUP] == 1000 and parts[Part.LOST] == 1100


def test_a_day_of_reports_is_kept_small() -> None:
    points = steps(0, 50_000, 1000)
    saves = [told("saving", n * 1000, began=n, stall_s=0.02) for n in range(2, 5000)]
    [life] = history.lives(row(0, None, "Started"), (), sorted([*points, *saves], key=lambda p: p["at"]))
    assert len(life.knots) == history.MAX_KNOTS and len(life.stalls) <= history.MAX_SPANS
    assert sum(length for _, length in life.stalls) == 4998 * 20
    assert life.pace == 100
