"""GPUs that are held and do nothing: samples -> since when. Pure.

A GPU is idle when every sample since some time lies below ``below_pct``; a gap longer than ``gap_s`` proves nothing, so the
count begins anew after it. A job is idle when all of its GPUs are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """``utilization`` in percent, as NVML's ``utilization.gpu`` has it."""

    job_id: str
    gpu: str
    utilization: float
    at: float


@dataclass(frozen=True, slots=True)
class Rule:
    below_pct: float = 5.0
    for_s: float = 1800.0
    gap_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Idle:
    job_id: str
    since: float  # the latest of its GPUs'
    gpus: tuple[str, ...]


def idle_jobs(samples: Iterable[Sample], gpus: dict[str, tuple[str, ...]], rule: Rule, now: float) -> list[Idle]:
    """``gpus``: those that each running job holds. A GPU without samples is not known to be idle."""
    series: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.at <= now:
            series[sample.job_id, sample.gpu].append(sample)
    found = []
    for job_id, held in sorted(gpus.items()):
        since = [_idle_since(series[job_id, gpu], rule, now) for gpu in held]
        known = [each for each in since if each is not None]
        if held and len(known) == len(held) and now - max(known) >= rule.for_s:
            found.append(Idle(job_id, max(known), held))
    return found


def _idle_since(samples: list[Sample], rule: Rule, now: float) -> float | None:
    since: float | None = None
    after = now
    for sample in sorted(samples, key=lambda each: -each.at):
        if sample.utilization >= rule.below_pct or after - sample.at > rule.gap_s:
            break
        since = after = sample.at
    return since
