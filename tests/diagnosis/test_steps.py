"""What steps were spent on: few numbers, a chart, and lines for a terminal."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.diagnosis import steps, steps_page
from penstock.diagnosis.state import Rank, Step


def rank(number: int, count: int, **phases: float) -> Rank:
    total = sum(phases.values()) + 0.01
    return Rank(number, "", tuple(Step(n, float(n), total, **phases) for n in range(count)))


def test_a_rank_that_takes_longer_stands_out() -> None:
    ranks = {0: rank(0, 300, compute=0.1, comm=0.3), 1: rank(1, 300, compute=0.4, comm=0.0)}
    told = steps.picture(ranks, ["n0"], 2)
    assert [(row["rank"], row["node"], row["seconds"]["compute"]) for row in told["ranks"]] == [
        (0, "n0", 0.1),
        (1, "n0", 0.4),
    ]
    assert told["ranks"][0]["seconds"]["other"] == 0.01
    assert len(told["charts"][0]["step"]) == steps.POINTS and told["charts"][0]["step"][-1] == 299
    panel = steps_page.panel(told)
    assert panel is not None and [name for name, _ in panel.phases] == ["compute", "comm", "other"]
    assert panel.charts[1].label.startswith("rank 1: 410ms a step (compute 400ms")
    text = steps_page.lines(told)
    assert text[2].split() == ["RANK", "NODE", "A", "STEP", "COMPUTE", "COMM", "OTHER", "SO", "FAR"]
    assert text[4].split() == ["1", "n0", "410ms", "400ms", "-", "10ms", steps_page._BARS[-1] * 24]


def test_of_very_many_ranks_those_that_work_longest_have_charts() -> None:
    ranks = {n: rank(n, 40, compute=0.1 + (n == 77)) for n in range(100)}
    told = steps.picture(ranks, [f"n{n}" for n in range(100)], 1)
    assert len(told["ranks"]) == steps.RANKS and told["more"] == 36
    assert len(told["charts"]) == steps.CHARTS and 77 in [chart["rank"] for chart in told["charts"]]
    assert steps_page.lines(told)[-1] == "and 84 ranks more"


def test_nothing_is_shown_where_nobody_watches() -> None:
    told = steps.picture({0: Rank(0, "n0")}, ["n0"], 1)
    assert steps_page.panel(told) is None and steps_page.lines(told) == []


@given(
    st.lists(
        st.lists(
            st.tuples(*[st.floats(0, 1e4) | st.none() for _ in range(6)], st.floats(0, 1e4)), min_size=1, max_size=200
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_was_told_is_drawn(told: list[list[tuple[float | None, ...]]]) -> None:
    names = ("data", "compute", "comm", "optimizer", "checkpoint", "gc")
    ranks = {
        n: Rank(
            n,
            "",
            tuple(
                Step(k, float(k), row[6] or 0.0, **dict(zip(names, row, strict=False))) for k, row in enumerate(rows)
            ),
        )
        for n, rows in enumerate(told)
    }
    answer = steps.picture(ranks, ["n0"], 4)
    panel = steps_page.panel(answer)
    assert panel is not None and len(panel.charts) == len(ranks)
    assert len(steps_page.lines(answer)) == 3 + len(ranks)
