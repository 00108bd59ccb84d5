"""The tests of a candidate: no false alarm more often than they state, however often they are read."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving import analysis
from penstock.serving.analysis import Bet, Look, Memory, begin, gains, gains_alone, longer, needed, remember, slow
from penstock.serving.spec import Analysis
from penstock.serving.state import Agreement, Counts, Histogram

SHARES = st.floats(0.001, 0.9)
BOUNDS = tuple(0.001 * 1.1**n for n in range(80))


def chance_of(bad: int, total: int, share: float) -> float:
    return math.comb(total, bad) * share**bad * (1 - share) ** (total - bad)


@given(SHARES, SHARES, st.floats(0.0, 0.3), st.floats(0, 1), st.integers(1, 5), st.integers(1, 9))
def test_under_the_null_a_block_is_expected_to_gain_nothing(
    usual: float, stable: float, margin: float, below: float, ours: int, theirs: int
) -> None:
    """Over all outcomes of the block, whatever was thought usual: this is what makes the test hold at every look."""
    candidate = below * min(1.0, stable + margin)
    expected = [0.0] * len(analysis.GAPS)
    for bad, other in itertools.product(range(ours + 1), range(theirs + 1)):
        weight = chance_of(bad, ours, candidate) * chance_of(other, theirs, stable)
        for n, gain in enumerate(gains((bad, ours), (other, theirs), usual, margin)):
            expected[n] += weight * math.exp(gain)
    assert max(expected) <= 1 + 1e-6


@given(SHARES, st.floats(0, 1), st.integers(1, 12))
def test_so_it_is_without_the_stable_version(limit: float, below: float, ours: int) -> None:
    expected = [
        sum(
            chance_of(bad, ours, below * limit) * math.exp(gains_alone((bad, ours), limit)[n])
            for bad in range(ours + 1)
        )
        for n in range(len(analysis.GAPS))
    ]
    assert max(expected) <= 1 + 1e-6


def test_a_bet_never_holds_more_than_was_put_in() -> None:
    """Capital that begins anew at each block is one in all: without gains it stays below that."""
    bet = Bet()
    for _ in range(1000):
        bet = bet.after((0.0, 0.0, 0.0), 5.0)
    assert bet.won == pytest.approx(math.log(1000 / 1001))


def test_no_block_carries_more_than_a_third() -> None:
    bet = Bet()
    counts = []
    for _ in range(analysis.PARTS + 1):
        bet = bet.after((1e6, 1e6, 1e6), 6.0)
        counts.append(bet.won >= 6.0)
    assert counts == [False, False, False, True]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60))
def test_a_bet_stays_a_number(values: list[float]) -> None:
    bet = Bet()
    for value in values:
        bet = bet.after((value, -value, 0.0), 7.0)
        assert all(map(math.isfinite, bet.capital))


def followed(spec: Analysis, seed: int, shares: tuple[float, float], looks: int) -> bool:
    """Did it ever fail?"""
    chance = random.Random(seed)
    counts = [Counts(), Counts()]
    memory = begin(Look(0.0, counts[0], counts[1]))
    for at in range(1, looks + 1):
        for n, (share, requests) in enumerate(zip(shares, (10, 40), strict=True)):
            errors = sum(chance.random() < share for _ in range(requests))
            counts[n] = analysis.plus(counts[n], Counts(requests, errors))
        memory = remember(memory, spec, Look(float(at), counts[0], counts[1]))
        if any(test.verdict == "fail" for test in analysis.tests(memory, spec, live=True, shadow=False)):
            return True
    return False


def test_at_the_very_limit_it_fails_no_more_often_than_stated() -> None:
    """100 rollouts of 100 looks at exactly the share that is still allowed: at 0.9 confidence 10 may fail."""
    spec = Analysis(error_rate=0.02, p95_ratio=None, p50_ratio=None, agreement=None, confidence=0.9)
    assert sum(followed(spec, seed, (0.05, 0.03), 100) for seed in range(100)) <= 10


def test_beyond_the_limit_it_fails_always() -> None:
    spec = Analysis(error_rate=0.01, p95_ratio=None, p50_ratio=None, agreement=None)
    assert all(followed(spec, seed, (0.12, 0.01), 60) for seed in range(30))


def test_one_that_turns_bad_late_is_found() -> None:
    spec = Analysis(p95_ratio=None, p50_ratio=None, agreement=None)
    memory = begin(Look(0.0, Counts(), Counts()))
    candidate = stable = Counts()
    for at in range(1, 601):
        candidate, stable = analysis.plus(candidate, Counts(20, 0)), analysis.plus(stable, Counts(80, 0))
        memory = remember(memory, spec, Look(float(at), candidate, stable))
    for at in range(601, 610):
        candidate, stable = analysis.plus(candidate, Counts(20, 10)), analysis.plus(stable, Counts(80, 0))
        memory = remember(memory, spec, Look(float(at), candidate, stable))
    [test] = analysis.tests(memory, spec, live=True, shadow=False)
    assert test.verdict == "fail"
    assert test.words == (
        "0.739% of 12180 requests failed or were refused, 0% of the stable version's 48720; at most 1% more are allowed: "
        "worse of late, with 0.99 confidence over the rollout"
    )


def latencies(*values: float, times: int = 1) -> Histogram:
    counts = [0.0] * (len(BOUNDS) + 1)
    for value in values:
        counts[next((n for n, bound in enumerate(BOUNDS) if bound >= value), len(BOUNDS))] += times
    return Histogram(BOUNDS, tuple(counts))


def test_the_limit_of_latencies_comes_of_the_stable_version() -> None:
    assert slow(latencies(0.01, times=99), 1.25) is None  # too few
    limit = slow(latencies(0.01, times=200), 1.25)
    assert limit is not None
    assert 0.0125 <= limit <= 0.0125 * 1.1
    assert slow(latencies(10.0, times=200), 1.25) is None  # above all bounds
    wide = Histogram((0.01, 0.1, 1.0), (0.0, 200.0, 0.0, 0.0))
    assert slow(wide, 1.25) == 1.0  # such buckets are not divided


def test_what_is_longer_lies_above_within_a_bucket_too() -> None:
    seen = Histogram((1.0, 2.0, 3.0), (10.0, 20.0, 30.0, 40.0))
    assert longer(seen, 3.0) == 40
    assert longer(seen, 2.5) == 55
    assert longer(seen, 0.25) == pytest.approx(97.5)


def test_two_versions_that_slow_down_together_are_alike() -> None:
    """Of the candidate alone nothing is known: what is compared is always both, at the same time."""
    spec = Analysis(error_rate=None, agreement=None)
    memory = begin(Look(0.0, Counts(), Counts()))
    candidate = stable = Counts()
    for at in range(1, 61):
        took = 0.02 if at < 30 else 0.2
        candidate = analysis.plus(candidate, Counts(20, 0, latency=latencies(took, times=20)))
        stable = analysis.plus(stable, Counts(180, 0, latency=latencies(took, times=180)))
        memory = remember(memory, spec, Look(float(at), candidate, stable))
        assert {test.name for test in analysis.tests(memory, spec, live=True, shadow=False)} == {"P95", "P50"}
        assert not any(test.verdict == "fail" for test in analysis.tests(memory, spec, live=True, shadow=False))


def test_a_median_that_is_longer_is_found_where_the_p95_says_little() -> None:
    """Nine of ten answers take half as long again; the slowest, which make the P95, are the same."""
    memory, spec = begin(Look(0.0, Counts(), Counts())), Analysis()
    candidate = stable = Counts()
    for at in range(1, 31):
        mine = latencies(0.015, times=18).plus(latencies(0.2, times=2)) if at > 10 else Histogram()
        theirs = latencies(0.01, times=162).plus(latencies(0.2, times=18))
        candidate = analysis.plus(candidate, Counts(mine.total, 0, latency=mine))
        stable = analysis.plus(stable, Counts(180, 0, latency=theirs))
        memory = remember(memory, spec, Look(float(at), candidate, stable))
    found = {test.name: test for test in analysis.tests(memory, spec, live=True, shadow=False)}
    assert (found["P95"].verdict, found["P50"].verdict) == ("pass", "fail")
    assert "P50 is" in found["P50"].words


def test_after_a_switch_no_median_is_compared() -> None:
    before = Counts(1000, 0, latency=latencies(0.01, times=1000))
    memory = remember(begin(Look(0.0, Counts(), Counts())), Analysis(), Look(1.0, Counts(), before)).stepped()
    after = Counts(1000, 0, latency=latencies(0.012, times=1000))
    memory = remember(memory, Analysis(), Look(2.0, after, before, alone=True))
    assert (memory.median.blocks, memory.latency.blocks) == (0, 1)
    assert [test.name for test in analysis.tests(memory, Analysis(), live=True, shadow=False)] == ["error rate", "P95"]


def alone(spec: Analysis, before: Counts, errors: int) -> tuple[str, str]:
    memory = begin(Look(0.0, Counts(), Counts()))
    memory = remember(memory, spec, Look(1.0, Counts(), before))
    candidate = Counts()
    for at in range(2, 12):
        candidate = analysis.plus(candidate, Counts(50, errors))
        memory = remember(memory, spec, Look(float(at), candidate, before, alone=True))
    [test] = analysis.tests(memory, spec, live=True, shadow=False)
    return test.verdict, test.words


def test_after_a_switch_it_is_compared_with_what_was_before() -> None:
    spec = Analysis(p95_ratio=None, p50_ratio=None, agreement=None)
    assert alone(spec, Counts(10_000, 0), 5)[0] == "fail"
    assert alone(spec, Counts(10_000, 1000), 5)[0] == "pass"
    assert alone(spec, Counts(), 0)[0] == "pass"
    assert alone(spec, Counts(), 25)[0] == "fail"


def refusing(stable: float, candidate: float) -> str:
    """Of a hundred requests of each, so many refused by each, for a minute."""
    memory = begin(Look(0.0, Counts(), Counts()))
    spec = Analysis(p95_ratio=None, p50_ratio=None, agreement=None)
    ours = theirs = Counts()
    for at in range(1, 61):
        ours = analysis.plus(ours, Counts(100, 0, refused=candidate))
        theirs = analysis.plus(theirs, Counts(100, 0, refused=stable))
        memory = remember(memory, spec, Look(float(at), ours, theirs))
    return analysis.tests(memory, spec, live=True, shadow=False)[0].verdict


def test_a_candidate_that_refuses_what_the_stable_version_answers_fails() -> None:
    assert refusing(0, 100) == "fail"
    assert refusing(5, 20) == "fail"
    assert refusing(30, 30) == "pass"  # its callers' mistakes: both see as many
    assert refusing(30, 0) == "pass"


def test_counters_that_begin_anew_are_no_evidence() -> None:
    spec = Analysis(agreement=None)
    memory = begin(Look(0.0, Counts(500, 100), Counts(5000, 0)))
    memory = remember(memory, spec, Look(1.0, Counts(10, 0), Counts(90, 0)))
    assert memory.step == (Counts(10, 0), Counts(90, 0))


def test_answers_that_do_not_agree_fail() -> None:
    spec = Analysis(error_rate=None, p95_ratio=None, p50_ratio=None)
    memory = begin(Look(0.0, Counts(), Counts()))
    verdicts = []
    for at in range(1, 8):
        memory = remember(memory, spec, Look(float(at), Counts(), Counts(), Agreement(at * 40, at * 30)))
        [test] = analysis.tests(memory, spec, live=False, shadow=True)
        verdicts.append(test.verdict)
    assert verdicts[:3] == ["undecided"] * 3
    assert verdicts[4] == "fail"
    assert test.words.startswith("75% of 280 answers agree; at least 99% must: worse")
    assert (test.statistic, test.bound) == (0.75, 0.99)


def test_a_shadows_errors_agree_with_nothing() -> None:
    spec = Analysis(error_rate=None, p95_ratio=None, p50_ratio=None)
    memory = begin(Look(0.0, Counts(), Counts()))
    for at in range(1, 8):
        memory = remember(memory, spec, Look(float(at), Counts(), Counts(), Agreement(at * 30, at * 30, at * 10)))
    [test] = analysis.tests(memory, spec, live=False, shadow=True)
    assert (test.verdict, test.statistic) == ("fail", 0.75)


def test_answers_that_agree_pass_once_there_are_enough() -> None:
    spec = Analysis(error_rate=None, p95_ratio=None, p50_ratio=None)
    memory = begin(Look(0.0, Counts(), Counts()))
    memory = remember(memory, spec, Look(1.0, Counts(), Counts(), Agreement(90, 90)))
    [test] = analysis.tests(memory, spec, live=False, shadow=True)
    assert (test.verdict, test.words) == (
        "undecided",
        "100% of 90 answers agree; at least 99% must: 10 more are needed",
    )
    memory = remember(memory, spec, Look(2.0, Counts(), Counts(), Agreement(100, 99)))
    assert analysis.tests(memory, spec, live=False, shadow=True)[0].verdict == "pass"


def metric(values: list[float | None], **limits: Any) -> str:
    spec = Analysis(error_rate=None, p95_ratio=None, p50_ratio=None, agreement=None, metric="toxicity", **limits)
    memory = begin(Look(0.0, Counts(), Counts()))
    for at, value in enumerate(values, 1):
        memory = remember(memory, spec, Look(float(at), Counts(), Counts(), metric=value))
    return analysis.tests(memory, spec, live=True, shadow=False)[0].verdict


def test_a_users_metric_must_lie_within_its_bounds() -> None:
    assert metric([0.1] * 9, metric_max=0.2) == "undecided"
    assert metric([0.1] * 10, metric_max=0.2) == "pass"
    assert metric([0.1] * 10, metric_min=0.2) == "undecided"
    assert metric([0.1] * 20, metric_min=0.2) == "fail"
    assert metric([None, math.nan] * 20, metric_min=0.2) == "undecided"


def test_the_tests_share_what_may_go_wrong() -> None:
    assert needed(Analysis()) == pytest.approx(math.log(4 / 0.01))
    assert needed(Analysis(error_rate=None, p95_ratio=None, p50_ratio=None)) == pytest.approx(math.log(1 / 0.01))


def test_a_memory_begins_a_step_without_what_was_passed() -> None:
    spec = Analysis(agreement=None)
    memory: Memory = begin(Look(0.0, Counts(), Counts()))
    memory = remember(memory, spec, Look(1.0, Counts(20, 20), Counts(180, 0)))
    after = memory.stepped()
    assert after.step == (Counts(), Counts())
    assert after.errors == memory.errors
