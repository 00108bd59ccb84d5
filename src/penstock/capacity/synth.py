"""Made-up work for sites without a history, calibrated to the published means and medians of five clusters.

Run times are lognormal, cut at the longest that was seen; GPUs are powers of two. Both are drawn by strata, one job from
each hundredth of a hundredth of the distribution, so that their means hold for any seed. Waits are not made up: replay it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from statistics import NormalDist

DAY_S = 86400.0
_NORMAL = NormalDist()
FIELDS = ("id", "submit", "duration_s", "gpus", "queue", "user", "status")


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of GPU jobs; seconds. From InternLM/AcmeTrace, data/cluster_summary.csv (CC-BY-4.0). ``per_day`` is the number of
    jobs over the months that each trace covers.
    """

    mean_run: float
    median_run: float
    longest: float
    mean_gpus: float
    median_gpus: float
    most_gpus: int
    per_day: float
    failed: float  # share of jobs
    failed_time: float  # share of GPU time


CLUSTERS = {
    "seren": Calibration(1414.335, 122, 1_209_604, 5.68, 1, 1024, 663_813 / 184, 0.429, 0.124),
    "kalos": Calibration(1259.689, 124, 625_740, 26.77, 1, 1024, 19_907 / 184, 0.397, 0.08),
    "philly": Calibration(18006.055, 874, 4_240_676, 1.928, 1, 128, 112_956 / 109, 0.305, 0.386),
    "helios": Calibration(6651.681, 206, 4_320_009, 3.716, 1, 2048, 1_580_464 / 184, 0.155, 0.093),
    "pai": Calibration(4787.109, 480.667, 626_371, 0.683, 0.5, 8, 1_037_085 / 62, 0.0, 0.0),
}


def _solved(value: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where a growing function takes a value, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if value(middle) < wanted else (low, middle)
    return (low + high) / 2


def _cut_mean(median: float, sigma: float, longest: float) -> float:
    """The mean of a lognormal whose values above ``longest`` are set to it."""
    z = math.log(longest / median) / sigma
    body = median * math.exp(sigma * sigma / 2) * _NORMAL.cdf(z - sigma)
    return body + longest * (1 - _NORMAL.cdf(z))


def _strata(jobs: int, rng: Random) -> list[float]:
    """One number from each of ``jobs`` equal parts of 0..1, shuffled."""
    found = [min(max((n + rng.random()) / jobs, 1e-12), 1 - 1e-12) for n in range(jobs)]
    rng.shuffle(found)
    return found


def run_times(of: Calibration, jobs: int, rng: Random) -> list[float]:
    sigma = _solved(lambda s: _cut_mean(of.median_run, s, of.longest), of.mean_run, 0.1, 6.0)
    return [max(1.0, min(of.median_run * math.exp(sigma * _NORMAL.inv_cdf(u)), of.longest)) for u in _strata(jobs, rng)]


def gpu_table(of: Calibration) -> list[tuple[float, float]]:
    """Sizes and their shares: the median has the most, larger powers of two fall off so that the mean is right."""
    if of.median_gpus < 1:
        fixed, least = [(0.25, 0.2), (0.5, 0.45)], 0
    else:
        fixed, least = [(1.0, 0.6)], 1
    rest = 1 - sum(share for _, share in fixed)
    sizes = [2.0**n for n in range(least, int(math.log2(of.most_gpus)) + 1)]
    wanted = (of.mean_gpus - sum(size * share for size, share in fixed)) / rest

    def shares(ratio: float) -> list[float]:
        raw = [ratio**n for n in range(len(sizes))]
        return [share / sum(raw) for share in raw]

    ratio = _solved(lambda r: sum(a * b for a, b in zip(sizes, shares(r), strict=True)), wanted, 1e-6, 8.0)
    return [*fixed, *((size, rest * share) for size, share in zip(sizes, shares(ratio), strict=True))]


def _at(table: Sequence[tuple[float, float]], u: float) -> float:
    """The size at this point of the distribution."""
    for size, share in table:
        u -= share
        if u <= 0:
            return size
    return table[-1][0]


def gpu_counts(of: Calibration, jobs: int, rng: Random) -> list[float]:
    table = gpu_table(of)
    found: list[float] = []
    for u in _strata(jobs, rng):
        found.append(_at(table, u))
    return found


def arrivals(jobs: int, per_day: float, rng: Random) -> list[float]:
    """Seconds from a Monday's midnight: busiest at three in the afternoon, a fifth of that at night, quiet weekends."""
    span = jobs / per_day * DAY_S
    found: list[float] = []
    while len(found) < jobs:
        at = rng.random() * span
        hour = at % DAY_S / 3600
        busy = (0.6 + 0.4 * math.cos((hour - 15) / 12 * math.pi)) * (0.6 if at // DAY_S % 7 >= 5 else 1.0)
        if rng.random() < busy:
            found.append(math.floor(at))
    found.sort()
    return found


def failing(of: Calibration, work: Sequence[float]) -> Callable[[float], float]:
    """Chance to fail by GPU-seconds, such that the shares of jobs and of GPU time are as published. It falls (or grows)
    with a power of the work, found on a sample of jobs.
    """
    if not of.failed:
        return lambda _: 0.0
    ordered = sorted(work)
    sample = [ordered[n * len(ordered) // 1500] for n in range(1500)] if len(ordered) > 1500 else ordered

    def scale(power: float) -> float:
        return _solved(
            lambda c: sum(min(1.0, c * math.pow(w, power)) for w in sample),
            of.failed * len(sample),
            0.0,
            1e9 ** abs(power) + 1,
        )

    def time_share(power: float) -> float:
        c = scale(power)
        return sum(w * min(1.0, c * math.pow(w, power)) for w in sample) / sum(sample)

    low, high = -1.0, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if time_share(middle) < of.failed_time else (low, middle)
    power: float = (low + high) / 2
    factor = scale(power)
    return lambda w: min(1.0, factor * math.pow(w, power))


def synthesize(
    cluster: str, jobs: int, rng: Random, *, queues: int = 8, per_day: float | None = None
) -> Iterator[dict[str, object]]:
    """Rows of the ``csv`` preset, in order of submission."""
    of = CLUSTERS[cluster]
    runs, gpus = run_times(of, jobs, rng), gpu_counts(of, jobs, rng)
    times = arrivals(jobs, per_day or of.per_day, rng)
    chance = failing(of, [run * size for run, size in zip(runs, gpus, strict=True)])
    for n, (at, run, size) in enumerate(zip(times, runs, gpus, strict=True), 1):
        queue = min(int(rng.expovariate(0.5)), queues - 1)  # a few teams submit most
        yield {
            "id": f"{cluster}-{n}",
            "submit": int(at),
            "duration_s": round(run, 1),
            "gpus": int(size) if size >= 1 else size,
            "queue": f"team-{queue + 1}",
            "user": f"user-{queue * 10 + rng.randrange(10)}",
            "status": "Failed" if rng.random() < chance(run * size) else "Succeeded",
        }
