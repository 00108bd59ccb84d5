"""What is kept of a job's account says what the account says, and goes on by its last report alone."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given

from penstock.training import history, sketch
from penstock.training.goodput import End, Knot, Life, Lives, Part, account
from penstock.training.sketch import Sketch
from tests.training.test_goodput import jobs, moments, row, steps

ALWAYS = (-(2**62), 2**62)


def of(job: Lives) -> Sketch:
    runs = bool(job.lives) and job.lives[-1].ended is None
    return sketch.sketched(("p", "j"), job.lives[-1].attempt if runs else None, {}, account(job), job.lives)


def likely(job: Lives) -> Lives:
    """Steps and times that grow, lives of which only the last may run."""
    made = []
    for life in job.lives:
        ats = sorted(knot.at for knot in life.knots)
        knots = tuple(Knot(step, at) for step, at in enumerate(ats))
        ended = life.ended if life.ended is not None or life is job.lives[-1] else life.began
        made.append(replace(life, knots=knots, ended=ended, end=End.NONE if ended is None else life.end))
    runs = bool(made) and made[-1].ended is None
    until = max(job.until, job.submitted + 1, *(knot.at for life in made for knot in life.knots), 0)
    return Lives(job.submitted, until, not runs, tuple(made))


def total(found: dict[int, dict[Part, int]] | None) -> dict[Part, int]:
    assert found is not None
    sums = dict.fromkeys(Part, 0)
    for each in found.values():
        for part, length in each.items():
            sums[part] += length
    return sums


def running(*knots: tuple[int, int]) -> tuple[Life, ...]:
    points = [{"at": at / 1000, "rank": 0, "step": step} for step, at in knots]
    return history.lives(row(0, None, "Started"), (), points)


@given(jobs, moments, moments)
def test_it_says_what_the_account_says(job: Lives, one: int, two: int) -> None:
    job = likely(job)
    whole, now, made = account(job), job.until, of(job)
    assume(made.last is None or (job.lives[-1].began <= made.last[1] and job.lives[-1].began >= job.submitted))
    assert total(sketch.parts(made, ALWAYS, None, now)) == whole.parts()
    window = (min(one, two), max(one, two))
    assert total(sketch.parts(made, window, None, now)) == whole.parts(window=window)


def test_it_goes_on_by_the_last_report_as_the_account_would() -> None:
    first = steps(0, 99, 1100)  # 1,000 to 11,000
    made = of(Lives(0, 11_000, False, history.lives(row(0, None, "Started"), (), first)))
    later = Lives(0, 21_050, False, history.lives(row(0, None, "Started"), (), [*first, *steps(100, 199, 11_100)]))
    assert total(sketch.parts(made, ALWAYS, (199, 21_000), 21_050)) == account(later).parts()
    silent = Lives(0, 30_000, False, history.lives(row(0, None, "Started"), (), first))
    assert total(sketch.parts(made, ALWAYS, (99, 11_000), 30_000)) == account(silent).parts()
    paused = history.lives(row(0, None, "Started"), (), [*first, *steps(100, 100, 25_000)])
    assert total(sketch.parts(made, ALWAYS, (100, 25_000), 25_000)) == account(Lives(0, 25_000, False, paused)).parts()


def test_where_a_report_says_too_little_it_is_read_again() -> None:
    made = of(Lives(0, 11_000, False, running(*((n, 1000 + 100 * n) for n in range(100)))))
    assert sketch.parts(made, ALWAYS, (5, 12_000), 13_000) is None  # it went back
    young = of(Lives(0, 900, False, history.lives(row(0, None, "Started"), (), [])))
    assert sketch.parts(young, ALWAYS, (0, 1000), 1000) is None
    assert total(sketch.parts(young, ALWAYS, None, 5000))[Part.UNMEASURED] == 5000


def test_a_hang_that_was_told_of_goes_on() -> None:
    told = {"at": 15.0, "reason": "RankHung", "data": {"attempt": 1, "answer": "tell"}}
    lives = history.lives(row(0, None, "Started"), [told], steps(0, 9, 100))
    made = of(Lives(0, 20_000, False, lives))
    assert total(sketch.parts(made, ALWAYS, (9, 1000), 60_000)) == account(Lives(0, 60_000, False, lives)).parts()


def test_it_is_small() -> None:
    made = of(Lives(0, 10**9, False, running(*((n, 1000 + 100 * n + 1500 * (n // 100)) for n in range(40_000)))))
    assert len(made.ends) <= 2 * history.MAX_SPANS + 3
    assert sum(len(each) * each.itemsize for each in (made.ends, made.parts, made.attempts)) < 20_000
