"""A training whose steps take longer than they did, by its last reports alone. Pure, and the same whatever else it reports.

Each look at a job gives one sample: the seconds of a step since the look before. The newest of them, enough for ``STEPS`` steps, are
slow when three in four take clearly longer than the job's own past: longer than its median by ``SLOWER``, and than nearly all
stretches of the same length that it had before, so that a job which is uneven by nature is not told of. One long step (a
checkpoint, an evaluation) is no slow-down; many of them are, when they lengthen the mean of ``LONG`` steps.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple

SLOWER = 1.2
MEAN_SLOWER = 1.3
OVER = 1.1  # it has ended when three in four take less than this
STEPS, SAMPLES = 12, 3  # of a stretch, at the least
LONG, LONG_SAMPLES = 30, 10
WARM_UP = 10  # steps after a start that are not looked at
KNOWN_STEPS, KNOWN_SAMPLES = 30, 8  # of the past, before anything is said
RECENT = 64  # samples, the newest
HISTORY = 240  # samples; of more each second one is forgotten
_MARGIN = 1.1  # over what the past had itself
_FEWEST, _FEW = 3, 8  # stretches of the past: with fewer nothing is said, or the margin is wider
_WIDE = 1.25
_SPREADS = 6.0  # standard deviations: a long run has many stretches, and none of them should be told of
_AGAIN = 8  # samples after which the past is looked at anew


class Sample(NamedTuple):
    step: int
    at: float
    steps: int
    pace: float


@dataclass(frozen=True, slots=True)
class Slow:
    """``since``: the step after which they are slow. ``baseline`` and ``now``: seconds a step. ``uneven``: most steps are as before,
    and long ones among them make it slow.
    """

    since: int
    at: float
    baseline: float
    now: float
    uneven: bool = False

    @property
    def ratio(self) -> float:
        return self.now / self.baseline

    def words(self) -> str:
        what = "its steps take, long ones among them," if self.uneven else "its steps take"
        return f"since step {self.since} {what} {self.now:.3g}s, {self.ratio:.2f} times as long as before ({self.baseline:.3g}s)"

    def data(self) -> dict[str, float | int | bool]:
        return {
            "uneven": self.uneven, "since_step": self.since, "since": round(self.at, 3), "baseline_s": round(self.baseline, 6),
            "now_s": round(self.now, 6), "slower": round(self.ratio, 3),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Past:
    """What is normal: a step's median and mean, and what nearly all stretches stayed below; None: too few are known."""

    median: float
    quartile: float | None
    mean: float
    long: float | None


@dataclass(slots=True)
class Track:
    """One attempt's pace. ``slow``: as it was told last; None while all is as before."""

    slow: Slow | None = None
    last: tuple[float, int] | None = None
    born: int | None = None  # the first step of this life
    recent: deque[Sample] = field(default_factory=partial(deque, maxlen=RECENT))
    young: deque[Sample] = field(default_factory=deque)  # of them those that are no past yet
    history: list[Sample] = field(default_factory=list)
    _past: _Past | None = None
    _aged: int = 0

    def add(self, at: float, step: int) -> Slow | None:
        """The newest report. What is slow now, when that has begun or ended just now is for the caller to compare."""
        last = self.last
        if last is not None and (step < last[1] or at < last[0]):
            self._begin_anew()
            last = None
        if last is None:
            self.last, self.born = (at, step), step
            return self.slow
        if step == last[1]:
            return self.slow
        self.last = (at, step)
        if step - (self.born or 0) <= WARM_UP:
            return self.slow
        done = step - last[1]
        sample = Sample(step, at, done, (at - last[0]) / done)
        self.recent.append(sample)
        self.young.append(sample)
        newest = _tail(self.young, STEPS, SAMPLES)
        self._age(len(newest) or len(self.young))
        self.slow = self._judge(newest, _tail(self.recent, LONG, LONG_SAMPLES))
        return self.slow

    def _begin_anew(self) -> None:
        """Its ranks were started again: what is normal stays so."""
        self.recent.clear()
        self.young.clear()
        self.slow = None

    def _age(self, keep: int) -> None:
        """What no stretch needs any more is past; while it is slow, it is not what is normal."""
        while len(self.young) > keep:
            old = self.young.popleft()
            if self.slow is None:
                self.history.append(old)
                self._aged += 1
        if len(self.history) > HISTORY:
            del self.history[:-1:2]
        if self._past is None or self._aged >= _AGAIN:
            self._past, self._aged = _past(self.history), 0

    def _judge(self, newest: Sequence[Sample], longer: Sequence[Sample]) -> Slow | None:
        past = self._past
        if past is None or not newest:
            return self.slow
        if self.slow is not None:
            if self.slow.uneven:
                still = not longer or _mean(longer) >= OVER * self.slow.baseline
            else:
                still = sorted(sample.pace for sample in newest)[-1 - len(newest) // 4] >= OVER * self.slow.baseline
            return self.slow if still else None
        if past.quartile is not None and _quartile(newest) > max(SLOWER * past.median, past.quartile):
            return self._told(newest, past.median)
        if all(sample.pace > SLOWER * past.median for sample in newest[-SAMPLES:]):
            return None  # it may be about to be so throughout
        if longer and past.long is not None and _mean(_but_longest(longer)) > max(MEAN_SLOWER * past.mean, past.long):
            first = longer[0]
            return Slow(
                first.step - first.steps, first.at - first.pace * first.steps, past.mean, _mean(longer), uneven=True
            )
        return None

    def _told(self, newest: Sequence[Sample], baseline: float) -> Slow:
        """Slow from where the newest samples cease to be as short as before."""
        limit = (baseline + statistics.median(sample.pace for sample in newest)) / 2
        slow: list[Sample] = []
        for sample, before in zip(reversed(self.recent), [*list(self.recent)[-2::-1], None], strict=True):
            if sample.pace < limit and (before is None or before.pace < limit):
                break
            slow.insert(0, sample)
        slow = slow[next((n for n, sample in enumerate(slow) if sample.pace >= limit), 0) :] or list(newest)
        now = statistics.median(sample.pace for sample in slow)
        return Slow(slow[0].step - slow[0].steps, slow[0].at - slow[0].pace * slow[0].steps, baseline, now)


def _tail(samples: Sequence[Sample], steps: int, count: int) -> list[Sample]:
    """The newest that are enough; [] where there are too few."""
    found: list[Sample] = []
    covered = 0
    for sample in reversed(samples):
        found.append(sample)
        covered += sample.steps
        if _enough(covered, len(found), steps, count):
            return found[::-1]
    return []


def _enough(covered: int, samples: int, steps: int, count: int) -> bool:
    """Of quick steps, many to a sample, more samples are waited for: what happens now and then is in some and not in others."""
    return covered >= steps and samples >= (count if covered < steps * samples else 2 * count)


def _quartile(samples: Sequence[Sample]) -> float:
    """What three in four are not below."""
    return sorted(sample.pace for sample in samples)[len(samples) // 4]


def _mean(samples: Sequence[Sample]) -> float:
    return sum(sample.pace * sample.steps for sample in samples) / sum(sample.steps for sample in samples)


def _but_longest(samples: Sequence[Sample]) -> list[Sample]:
    """A single pause makes nothing slow, however long it is."""
    longest = max(samples, key=lambda sample: sample.pace * sample.steps)
    return [sample for sample in samples if sample is not longest]


def _past(history: Sequence[Sample]) -> _Past | None:
    """None of too short a past. Limits are of its older half, so that what grows slowly stands out too."""
    if len(history) < KNOWN_SAMPLES or sum(sample.steps for sample in history) < KNOWN_STEPS:
        return None
    older = history[: max(len(history) // 2, 2 * KNOWN_SAMPLES)]
    short, long = _stretches(older, STEPS, SAMPLES), _stretches(older, LONG, LONG_SAMPLES)
    return _Past(
        statistics.median(sample.pace for sample in older),
        _limit([_quartile(one) for one in short]),
        _mean(older),
        _limit([_mean(one) for one in long]),
    )


def _stretches(history: Sequence[Sample], steps: int, count: int) -> list[list[Sample]]:
    found = []
    begin = 0
    while begin < len(history):
        covered, stretch = 0, list[Sample]()
        for sample in islice(history, begin, None):
            stretch.append(sample)
            covered += sample.steps
            if _enough(covered, len(stretch), steps, count):
                found.append(stretch)
                break
        else:
            break
        begin += max(1, len(stretch) // 2)
    return found


def _limit(values: Sequence[float]) -> float | None:
    if len(values) < _FEWEST:
        return None
    few = len(values) < _FEW
    # Of every second, which do not overlap; of differences, so that a trend is no spread.
    spread = math.sqrt(statistics.fmean([(b - a) ** 2 / 2 for a, b in zip(values, values[2:], strict=False)]))
    beyond = statistics.fmean(values) + _SPREADS * (2 if few else 1) * spread
    return max((_WIDE if few else _MARGIN) * sorted(values)[int(0.98 * (len(values) - 1))], beyond)
