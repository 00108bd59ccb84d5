"""What a replay is judged by, in bounded room whatever the number of jobs (``figures.py``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from penstock.capacity.figures import Figures
from penstock.capacity.replay import Outcome, Replay

HOUR = 3600.0
LEAST_S = 60.0  # errors of shorter waits are shares of this: nobody plans by seconds


@dataclass(slots=True)
class Tally:
    """Of one queue, or of all: the waits, and sums over the jobs."""

    waits: Figures = field(default_factory=Figures)
    completion: float = 0.0
    evictions: int = 0
    failures: int = 0
    lost_gpu_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.waits.add(outcome.waited)
        self.completion += outcome.end - outcome.queued_at
        self.evictions += outcome.evictions
        self.failures += outcome.failures
        self.lost_gpu_s += outcome.lost_s * outcome.job.gpus


@dataclass(slots=True)
class Metrics:
    """The replay's sink. ``real``, ``again``: what waits were in the trace and in the replay."""

    all: Tally = field(default_factory=Tally)
    queues: dict[str, Tally] = field(default_factory=dict)
    real: Figures = field(default_factory=Figures)
    again: Figures = field(default_factory=Figures)
    estimate_errors: Figures = field(default_factory=Figures)  # of first promised starts, seconds late or early
    lateness: float = 0.0  # late ones less early ones
    late: int = 0

    def add(self, outcome: Outcome) -> None:
        job = outcome.job
        tally = self.queues.get(job.queue)
        if tally is None:
            tally = self.queues[job.queue] = Tally()
        tally.add(outcome)
        self.all.add(outcome)
        if outcome.promised is not None:
            off = outcome.start - outcome.promised
            self.estimate_errors.add(abs(off))
            self.lateness += off
            self.late += off > 0
        if job.started is not None:
            self.real.add(job.started - job.submit)
            self.again.add(outcome.waited)


def answer(metrics: Metrics, run: Replay, wall_s: float) -> dict[str, Any]:
    """The answer of ``penstock capacity replay``; times in seconds."""
    result, tally = run.result, metrics.all
    jobs = len(tally.waits)
    p50, p95 = tally.waits.percentiles(0.50, 0.95)
    return {
        "jobs": jobs,
        "mean_completion_s": round(tally.completion / jobs, 1) if jobs else 0.0,
        "mean_wait_s": round(tally.waits.mean(), 1),
        "p50_wait_s": p50,
        "p95_wait_s": p95,
        "makespan_s": result.makespan,
        "utilization": round(result.gpu_seconds / result.capacity_gpu_seconds, 6) if result.makespan else 0.0,
        "events": result.events,
        "wall_s": round(wall_s, 3),
        "by_queue": {name: _queue(name, metrics.queues.get(name, Tally()), run) for name in _names(metrics, run)},
        "evictions": tally.evictions,
        "failure_restarts": tally.failures,
        "lost_gpu_hours": round(tally.lost_gpu_s / HOUR, 3),
        "unplaced": len(result.unplaced),
        "start_estimate_error": estimate_error(metrics),
        "reality": reality(metrics),
    }


def _names(metrics: Metrics, run: Replay) -> list[str]:
    return sorted({*metrics.queues, *run.accounts.by_queue})


def _queue(name: str, tally: Tally, run: Replay) -> dict[str, Any]:
    p50, p95 = tally.waits.percentiles(0.50, 0.95)
    account = run.accounts.by_queue.get(name)
    found: dict[str, Any] = {
        "jobs": len(tally.waits),
        "mean_wait_s": round(tally.waits.mean(), 1),
        "p50_wait_s": p50,
        "p95_wait_s": p95,
        "evictions": tally.evictions,
        "lost_gpu_hours": round(tally.lost_gpu_s / HOUR, 3),
        "nominal_gpu_hours": None,
    }
    if account is None:
        return found | {"used_gpu_hours": 0.0}
    found["used_gpu_hours"] = round(account.used / HOUR, 3)
    if account.nominal is not None:
        found["nominal_gpu_hours"] = round(account.nominal * run.result.makespan / HOUR, 3)
        for key in ("borrowed", "lent", "idle"):
            found[f"{key}_gpu_hours"] = round(getattr(account, key) / HOUR, 3)
    return found


def estimate_error(metrics: Metrics) -> dict[str, Any] | None:
    """Of first promised starts: how far off the true start was. None where nothing was promised."""
    errors = metrics.estimate_errors
    if not errors:
        return None
    median, p95 = errors.percentiles(0.5, 0.95)
    return {
        "jobs": len(errors),
        "median_abs_s": median,
        "p95_abs_s": p95,
        "mean_s": round(metrics.lateness / len(errors), 1),
        "later_than_promised": metrics.late,
    }


def reality(metrics: Metrics) -> dict[str, Any] | None:
    """The replay against the waits that really happened, where the trace has them. Errors are shares of the real, of a minute
    where it is less.
    """
    if not metrics.real:
        return None
    real, again = metrics.real.percentiles(0.5, 0.95), metrics.again.percentiles(0.5, 0.95)
    found: dict[str, Any] = {"jobs": len(metrics.real)}
    for name, was, is_now in zip(("p50", "p95"), real, again, strict=True):
        found |= _compared(name, was, is_now)
    return found | _compared("mean", metrics.real.mean(), metrics.again.mean())


def _compared(name: str, real: float, again: float) -> dict[str, float]:
    error = abs(again - real) / max(real, LEAST_S)
    return {f"{name}_real_s": round(real, 1), f"{name}_replay_s": round(again, 1), f"{name}_error": round(error, 4)}
