"""What a replay is judged by. Eight bytes a job and figure are kept, so ten million jobs stay small."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.capacity.replay import Outcome, Replay

HOUR = 3600.0


@dataclass(slots=True)
class Tally:
    """Of one queue, or of all: the waits, and sums over the jobs."""

    waits: array[float] = field(default_factory=lambda: array("d"))
    completion: float = 0.0
    evictions: int = 0
    failures: int = 0
    lost_gpu_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.waits.append(outcome.waited)
        self.completion += outcome.end - outcome.queued_at
        self.evictions += outcome.evictions
        self.failures += outcome.failures
        self.lost_gpu_s += outcome.lost_s * outcome.job.gpus


def percentile(ordered: Sequence[float], share: float) -> float:
    """``ordered[int(share * n)]``, zero-based, as the golden results have it; 0 of nothing."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


@dataclass(slots=True)
class Metrics:
    """The replay's sink. ``real``: pairs of what a wait was in the trace and in the replay."""

    all: Tally = field(default_factory=Tally)
    queues: dict[str, Tally] = field(default_factory=dict)
    real: array[float] = field(default_factory=lambda: array("d"))
    again: array[float] = field(default_factory=lambda: array("d"))
    estimate_errors: array[float] = field(default_factory=lambda: array("d"))  # seconds late (+) or early (-)

    def add(self, outcome: Outcome) -> None:
        job = outcome.job
        tally = self.queues.get(job.queue)
        if tally is None:
            tally = self.queues[job.queue] = Tally()
        tally.add(outcome)
        self.all.add(outcome)
        if outcome.promised is not None:
            self.estimate_errors.append(outcome.start - outcome.promised)
        if job.started is not None:
            self.real.append(job.started - job.submit)
            self.again.append(outcome.waited)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def answer(metrics: Metrics, run: Replay, wall_s: float) -> dict[str, Any]:
    """The answer of ``penstock capacity replay``; times in seconds."""
    result, tally = run.result, metrics.all
    waits = sorted(tally.waits)
    jobs = len(waits)
    return {
        "jobs": jobs,
        "mean_completion_s": round(tally.completion / jobs, 1) if jobs else 0.0,
        "mean_wait_s": round(_mean(waits), 1),
        "p50_wait_s": percentile(waits, 0.50),
        "p95_wait_s": percentile(waits, 0.95),
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
    waits = sorted(tally.waits)
    account = run.accounts.by_queue.get(name)
    found: dict[str, Any] = {
        "jobs": len(waits),
        "mean_wait_s": round(_mean(waits), 1),
        "p50_wait_s": percentile(waits, 0.50),
        "p95_wait_s": percentile(waits, 0.95),
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
    ordered = sorted(abs(error) for error in errors)
    return {
        "jobs": len(errors),
        "median_abs_s": percentile(ordered, 0.5),
        "p95_abs_s": percentile(ordered, 0.95),
        "mean_s": round(_mean(errors), 1),
        "later_than_promised": sum(error > 0 for error in errors),
    }


def reality(metrics: Metrics) -> dict[str, Any] | None:
    """The replay against the waits that really happened, where the trace has them. Errors are shares of the real."""
    if not metrics.real:
        return None
    real, again = sorted(metrics.real), sorted(metrics.again)
    found: dict[str, Any] = {"jobs": len(real)}
    for name, share in (("p50", 0.5), ("p95", 0.95)):
        found |= _compared(name, percentile(real, share), percentile(again, share))
    return found | _compared("mean", _mean(real), _mean(again))


def _compared(name: str, real: float, again: float) -> dict[str, float]:
    error = abs(again - real) / max(real, 60.0)  # of waits below a minute a minute is taken: nobody plans by seconds
    return {f"{name}_real_s": round(real, 1), f"{name}_replay_s": round(again, 1), f"{name}_error": round(error, 4)}
