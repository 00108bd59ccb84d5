"""Whether a candidate is worse than the stable version: tests that may be read after every second. Pure.

Each test is a bet against "the candidate keeps its limit". A block is what both versions answered since the last look. Of it the
bet wins or loses by a likelihood ratio: an alternative that was fixed before the block, to the point of the null hypothesis that
lies nearest to that alternative (the reverse information projection). Under the null its expectation is at most one, whatever
the load and however often one looks: Turner, Ly, Gruenwald, "Generic E-variables for exact sequential k-sample tests that
allow for optional stopping" (2024), and Turner, Gruenwald, "Exact anytime-valid confidence intervals for contingency tables
and beyond" (2023) for nulls with a margin. By Ville's inequality the capital ever reaches 1/alpha with a chance of at most alpha.
Capital begins anew at each block with the weight 1/(t(t+1)), so a candidate that turns bad late is found too.

No block may carry more than a third of the way (a smaller gain keeps the bet honest): one bad second rolls nothing back.
docs/serving.md, "Rollouts", has the formulas.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from penstock.serving.spec import Analysis
from penstock.serving.state import Agreement, Counts, Histogram

TAIL, HALF = 0.05, 0.5  # of requests lie above a P95, a median
GAPS = (0.03, 0.12, 0.5)  # by how much worse than the limit the alternatives are
PARTS = 3  # blocks that it takes at the least
FINE = 1.2  # a bucket whose bounds lie nearer than that is divided evenly
FEWEST = 100.0  # of the stable version's latencies, before its P95 is a measure
HALF_LIFE = 60.0  # seconds: what the stable version did counts half as much after so long
READINGS = 10  # of a user's metric, before it passes
OFTEN = 0.5  # part of the readings that may lie outside of a metric's bounds

Verdict = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True, slots=True)
class Test:
    """``statistic`` against ``bound``, of ``candidate`` and ``stable`` samples. ``evidence``: how much of what a failure needs
    has been seen; 1 and more is a failure.
    """

    __test__ = False  # no pytest class

    name: str
    statistic: float | None
    bound: float
    candidate: float
    stable: float
    evidence: float
    verdict: Verdict
    words: str


@dataclass(frozen=True, slots=True)
class Bet:
    """The logarithm of the capital of each alternative, after so many blocks."""

    capital: tuple[float, ...] = ()
    blocks: int = 0

    def after(self, gains: Sequence[float], needed: float) -> Bet:
        """With a block's gains, of which none is more than its part of what is ``needed``, or of the way there."""
        block = self.blocks + 1
        anew = -math.log(block * (block + 1.0))
        old = self.capital or (-math.inf,) * len(gains)
        stakes = [_log_sum((was, anew)) for was in old]
        most = [max(needed, needed - stake) / PARTS for stake in stakes]
        return Bet(tuple(map(sum, zip(stakes, map(min, gains, most), strict=True))), block)

    @property
    def won(self) -> float:
        """The logarithm of all capital, which was one."""
        return _log_sum(self.capital) - math.log(len(self.capital)) if self.capital else -math.inf


NOTHING = Counts()
NO_ANSWERS = Agreement()
NO_BET = Bet()


@dataclass(frozen=True, slots=True)
class Memory:
    """What the analysis remembers from look to look. ``typical``: the stable version's counts, older ones for less; ``step``:
    what was seen since the step began (candidate, stable); ``open``: what waits for a block in which both have answered.
    """

    at: float | None = None
    candidate: Counts = NOTHING
    stable: Counts = NOTHING
    agreement: Agreement = NO_ANSWERS
    typical: Counts = NOTHING
    step: tuple[Counts, Counts] = (NOTHING, NOTHING)
    open: tuple[Counts, Counts] = (NOTHING, NOTHING)
    compared: tuple[int, int] = (0, 0)  # since the step began: answers compared, agreed
    readings: tuple[int, int] = (0, 0)  # of the user's metric since the step began: all, outside of the bounds
    metric: float | None = None
    errors: Bet = NO_BET
    latency: Bet = NO_BET
    median: Bet = NO_BET
    answers: Bet = NO_BET
    outside: Bet = NO_BET

    def stepped(self) -> Memory:
        """A new step begins: what passes is counted anew, what was found against the candidate stays."""
        return replace(self, step=(NOTHING, NOTHING), compared=(0, 0), readings=(0, 0))


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen now. ``alone``: the stable version gets no requests, so it is compared as it was before."""

    at: float
    candidate: Counts
    stable: Counts
    agreement: Agreement = NO_ANSWERS
    metric: float | None = None
    alone: bool = False


def needed(spec: Analysis) -> float:
    """The logarithm of the capital with which a test fails: its part of 1 - confidence is shared by the tests."""
    limits = (spec.error_rate, spec.p95_ratio, spec.p50_ratio, spec.agreement, spec.metric)
    tests = sum(limit is not None for limit in limits)
    return math.log(max(tests, 1) / (1.0 - spec.confidence))


def begin(look: Look) -> Memory:
    """Counters as they stand when a rollout begins: what was before is nobody's evidence."""
    return Memory(look.at, look.candidate, look.stable, replace(look.agreement, examples=()))


def remember(memory: Memory, spec: Analysis, look: Look) -> Memory:
    """With what came since the last look."""
    candidate, stable = look.candidate.since(memory.candidate), look.stable.since(memory.stable)
    after = _judge(memory, spec, candidate, stable, look.alone)
    after = _compare(after, spec, look.agreement)
    after = _measure(after, spec, look.metric)
    age = 0.0 if memory.at is None or not stable.requests else max(0.0, look.at - memory.at)
    return replace(
        after,
        at=look.at,
        candidate=look.candidate,
        stable=look.stable,
        typical=plus(_faded(memory.typical, 0.5 ** (age / HALF_LIFE)), stable),
        step=(plus(memory.step[0], candidate), plus(memory.step[1], stable)),
    )


def tests(memory: Memory, spec: Analysis, *, live: bool, shadow: bool) -> tuple[Test, ...]:
    """What can be said: of requests where the candidate answers callers (``live``), of answers where it is compared."""
    found = []
    if spec.error_rate is not None and (live or memory.step[0].requests):
        found.append(_error_rate(memory, spec, spec.error_rate))
    if spec.p95_ratio is not None and (live or memory.step[0].requests):
        found.append(_quantile(memory, spec, TAIL, spec.p95_ratio))
    if spec.p50_ratio is not None and memory.step[1].requests and (live or memory.step[0].requests):
        found.append(_quantile(memory, spec, HALF, spec.p50_ratio))
    if spec.agreement is not None and shadow:
        found.append(_agreement(memory, spec, spec.agreement))
    if spec.metric is not None and (spec.metric_max is not None or spec.metric_min is not None):
        found.append(_metric(memory, spec, spec.metric))
    return tuple(found)


# ------------------------------------------------------------------------------------------------------------- the bets


def gains(
    candidate: tuple[float, float], stable: tuple[float, float], usual: float, margin: float
) -> tuple[float, ...]:
    """Of a block, (bad, all) of both: the logarithm of each alternative's gain against "the candidate's share of bad answers is
    at most the stable version's and ``margin``". ``usual``: the stable version's share, as it was before this block.
    """
    return tuple(_gain(candidate, stable, usual, margin, gap) for gap in GAPS)


def gains_alone(candidate: tuple[float, float], limit: float) -> tuple[float, ...]:
    """As `gains`, against "at most ``limit`` of the candidate's answers are bad"."""
    limit = min(max(limit, 1e-9), 1 - 1e-9)
    return tuple(_ratio(candidate, max(limit, min(limit + gap, (1.0 + limit) / 2)), limit) for gap in GAPS)


def _gain(
    candidate: tuple[float, float], stable: tuple[float, float], usual: float, margin: float, gap: float
) -> float:
    usual = min(max(usual, 1e-6), 1 - 1e-6)
    worse = usual + margin + gap
    if worse >= 1.0:
        worse = (1.0 + usual + margin) / 2
    if worse >= 1.0 or not candidate[1] or not stable[1]:
        return 0.0  # the null holds whatever is seen, or nothing is compared
    nearest = _nearest(usual, worse, stable[1], candidate[1], margin)
    return _ratio(stable, usual, nearest) + _ratio(candidate, worse, nearest + margin)


def _nearest(usual: float, worse: float, stable: float, candidate: float, margin: float) -> float:
    """Of the null's edge (x, x + margin): the x nearest to the alternative (usual, worse), by relative entropy of the block."""
    low, high = usual, worse - margin
    for _ in range(60):
        x = (low + high) / 2
        y = x + margin
        slope = stable * (x - usual) / (x * (1 - x)) - candidate * (worse - y) / (y * (1 - y))
        low, high = (x, high) if slope < 0 else (low, x)
    return (low + high) / 2


def _ratio(seen: tuple[float, float], alternative: float, null: float) -> float:
    bad, total = seen
    return bad * math.log(alternative / null) + (total - bad) * math.log((1 - alternative) / (1 - null))


def _judge(memory: Memory, spec: Analysis, candidate: Counts, stable: Counts, alone: bool) -> Memory:
    """Close a block when both have answered (the candidate, where it is alone), and bet on it."""
    ours, theirs = plus(memory.open[0], candidate), plus(memory.open[1], stable)
    if not ours.requests or not (theirs.requests or alone):
        return replace(memory, open=(ours, theirs))
    after = replace(memory, open=(NOTHING, NOTHING))
    if spec.error_rate is not None:
        usual = _share(memory.typical.bad, memory.typical.requests)
        bad = (min(ours.bad, ours.requests), ours.requests)
        if theirs.requests:
            found = gains(bad, (min(theirs.bad, theirs.requests), theirs.requests), usual, spec.error_rate)
        else:
            found = gains_alone(bad, usual + spec.error_rate)
        after = replace(after, errors=memory.errors.after(found, needed(spec)))
    both = (memory.typical.latency, ours.latency, theirs.latency)
    late = _later(both, spec.p95_ratio, TAIL)
    later = () if alone else _later(both, spec.p50_ratio, HALF)  # a median of another time says too little
    if late:
        after = replace(after, latency=memory.latency.after(late, needed(spec)))
    if later:
        after = replace(after, median=memory.median.after(later, needed(spec)))
    return after


def _later(seen: tuple[Histogram, Histogram, Histogram], ratio: float | None, tail: float) -> tuple[float, ...]:
    """Gains against "at most ``tail`` of the candidate's latencies exceed the limit", which moves with what exceeds it of the stable
    version's now. Empty: not known. ``seen``: the stable version's until now; the candidate's and the stable one's of this block.
    """
    typical, ours, theirs = seen
    limit = slow(typical, ratio, tail)
    if limit is None or not ours.total:
        return ()
    usual = _share(longer(typical, limit), typical.total)
    margin = tail if tail <= TAIL else max(tail - usual, TAIL)
    long = (longer(ours, limit), ours.total)
    if theirs.total:
        return gains(long, (longer(theirs, limit), theirs.total), usual, margin)
    return gains_alone(long, usual + margin)


def _compare(memory: Memory, spec: Analysis, now: Agreement) -> Memory:
    """A shadow's error, where the stable version answered, is an answer that does not agree."""
    before = memory.agreement
    if now.compared < before.compared or now.agreed < before.agreed or now.failed < before.failed:
        before = NO_ANSWERS  # the comparator began anew
    compared = now.compared + now.failed - before.compared - before.failed
    agreed = now.agreed - before.agreed
    after = replace(
        memory,
        agreement=replace(now, examples=()),
        compared=(memory.compared[0] + compared, memory.compared[1] + agreed),
    )
    if spec.agreement is None or compared <= 0:
        return after
    found = gains_alone((min(max(0, compared - agreed), compared), compared), 1.0 - spec.agreement)
    return replace(after, answers=memory.answers.after(found, needed(spec)))


def _measure(memory: Memory, spec: Analysis, value: float | None) -> Memory:
    if spec.metric is None or value is None or math.isnan(value):
        return memory
    high = spec.metric_max is not None and value > spec.metric_max
    low = spec.metric_min is not None and value < spec.metric_min
    bad = int(high or low)
    return replace(
        memory,
        metric=value,
        readings=(memory.readings[0] + 1, memory.readings[1] + bad),
        outside=memory.outside.after(gains_alone((bad, 1), OFTEN), needed(spec)),
    )


def slow(stable: Histogram, ratio: float | None, tail: float = TAIL) -> float | None:
    """The limit that at most ``tail`` of the candidate's latencies may exceed: the ratio allowed times the stable version's P95 (or
    median), and from there up to the next bound where buckets are too wide to be divided. None: too little is known, or it lies above
    all bounds.
    """
    usual = stable.quantile(1 - tail)
    if ratio is None or usual is None or stable.total < FEWEST:
        return None
    limit = usual * ratio
    at = bisect_left(stable.bounds, limit)
    if at == len(stable.bounds):
        return None
    return limit if at and stable.bounds[at] <= FINE * stable.bounds[at - 1] else stable.bounds[at]


def longer(seen: Histogram, limit: float) -> float:
    """How many took longer than ``limit``, which may lie inside of a bucket."""
    at = bisect_left(seen.bounds, limit)
    low, high = seen.bounds[at - 1] if at else 0.0, seen.bounds[at]
    return seen.above(high) + seen.counts[at] * (high - limit) / (high - low)


# ------------------------------------------------------------------------------------------------------------ the words


def _test(bet: Bet, spec: Analysis, seen: tuple[float | None, float], samples: tuple[float, float], name: str) -> Test:
    """The verdict: fail when the bet is won; pass when there are enough samples and the estimate keeps the limit."""
    statistic, bound = seen
    evidence = round(max(0.0, bet.won / needed(spec)), 6)
    if bet.won >= needed(spec):
        return Test(name, statistic, bound, *samples, evidence, "fail", "")
    enough = samples[0] >= (READINGS if name == "metric" else spec.min_requests)
    verdict: Verdict = "pass" if enough and statistic is not None and statistic <= bound else "undecided"
    return Test(name, statistic, bound, *samples, evidence, verdict, "")


def _error_rate(memory: Memory, spec: Analysis, margin: float) -> Test:
    ours, theirs = memory.step
    usual = theirs.bad / theirs.requests if theirs.requests else _share(memory.typical.bad, memory.typical.requests)
    rate = ours.bad / ours.requests if ours.requests else None
    test = _test(
        memory.errors,
        spec,
        (None if rate is None else rate - usual, margin),
        (ours.requests, theirs.requests),
        "error rate",
    )
    if rate is None:
        return replace(test, words="no request of the candidate's yet")
    words = f"{_percent(rate)} of {ours.requests:g} requests failed or were refused, {_percent(usual)} of the stable version's "
    words += f"{theirs.requests:g}; at most {_percent(margin)} more are allowed"
    return replace(test, words=words + _why(test, spec))


def _quantile(memory: Memory, spec: Analysis, tail: float, ratio: float) -> Test:
    name, bet = ("P95", memory.latency) if tail == TAIL else ("P50", memory.median)
    ours, theirs = memory.step[0].latency, memory.step[1].latency
    usual = (theirs if theirs.total >= FEWEST else memory.typical.latency).quantile(1 - tail)
    own = ours.quantile(1 - tail)
    statistic = own / usual if own is not None and usual else None
    test = _test(bet, spec, (statistic, ratio), (ours.total, theirs.total), name)
    if own is None or not usual:
        return replace(test, words="no latency of both versions yet")
    words = f"{name} is {_seconds(own)}, {own / usual:.2f} times the stable version's {_seconds(usual)}; at most {ratio:g} is allowed"
    return replace(test, words=words + _why(test, spec))


def _agreement(memory: Memory, spec: Analysis, least: float) -> Test:
    compared, agreed = memory.compared
    share = agreed / compared if compared else None
    against = None if share is None else 1.0 - share
    test = _test(memory.answers, spec, (against, 1.0 - least + 1e-12), (compared, compared), "agreement")
    test = replace(test, statistic=share, bound=least)
    if share is None:
        answered = memory.step[1].requests
        many = f", of {answered:g} requests: those by gRPC are not" if answered >= spec.min_requests else ""
        return replace(test, words=f"no answer compared yet{many}")
    words = f"{_percent(share)} of {compared} answers agree; at least {_percent(least)} must"
    return replace(test, words=words + _why(test, spec))


def _metric(memory: Memory, spec: Analysis, name: str) -> Test:
    readings, outside = memory.readings
    share = outside / readings if readings else None
    test = _test(memory.outside, spec, (share, OFTEN), (readings, 0), "metric")
    bounds = " and ".join(
        f"{word} {limit:g}"
        for word, limit in (("at least", spec.metric_min), ("at most", spec.metric_max))
        if limit is not None
    )
    if memory.metric is None:
        return replace(test, words=f"{name} was not read yet; it must be {bounds}")
    words = f"{name} is {memory.metric:g} and was outside in {outside} of {readings} readings; it must be {bounds} in half of them"
    return replace(test, words=words + _why(test, spec))


def _why(test: Test, spec: Analysis) -> str:
    if test.verdict == "fail":
        late = test.statistic is not None and (test.statistic < test.bound) != (test.name == "agreement")
        return f": worse{' of late' if late else ''}, with {spec.confidence:.4g} confidence over the rollout"
    least = READINGS if test.name == "metric" else spec.min_requests
    if test.verdict == "undecided" and test.candidate < least:
        return f": {least - test.candidate:g} more are needed"
    return ": not sure yet" if test.verdict == "undecided" else ""


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


# ---------------------------------------------------------------------------------------------------------------- counts


def plus(one: Counts, other: Counts) -> Counts:
    """Histograms of other bounds (a new gateway's) begin anew."""
    same = one.latency.bounds == other.latency.bounds or not one.latency.counts or not other.latency.counts
    latency = one.latency.plus(other.latency) if same else other.latency
    return Counts(
        one.requests + other.requests,
        one.errors + other.errors,
        other.active,
        one.seconds + other.seconds,
        latency,
        one.refused + other.refused,
    )


def _faded(counts: Counts, part: float) -> Counts:
    latency = Histogram(counts.latency.bounds, tuple(count * part for count in counts.latency.counts))
    requests, errors, refused = (value * part for value in (counts.requests, counts.errors, counts.refused))
    return Counts(requests, errors, counts.active, counts.seconds * part, latency, refused)


def _share(bad: float, total: float) -> float:
    """Drawn to 1%, by as much as a hundred requests weigh: little is known of few."""
    return min(1.0, (min(bad, total) + 1.0) / (total + 100.0))


def _log_sum(values: Sequence[float]) -> float:
    most = max(values)
    return most if most == -math.inf else most + math.log(sum(math.exp(value - most) for value in values))
