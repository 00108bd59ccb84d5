"""What a model version did: counted once, told as Triton's statistics and as a Prometheus page."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
OUTCOMES = ("success", "invalid", "failure", "refused", "timeout", "gone")


@dataclass(slots=True)
class Batches:
    """All runs of one size."""

    count: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0


@dataclass(slots=True)
class Statistics:
    """Counters since the version was loaded. ``outcomes`` counts requests, ``batches`` runs by their rows."""

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    rows: int = 0
    success_ns: int = 0
    fail_ns: int = 0
    queue_ns: int = 0
    last_ms: int = 0
    restarts: int = 0
    batches: dict[int, Batches] = field(default_factory=dict)
    buckets: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))

    def ran(self, rows: int, ns: tuple[int, int, int]) -> None:
        batch = self.batches.setdefault(rows, Batches())
        batch.count += 1
        batch.input_ns += ns[0]
        batch.infer_ns += ns[1]
        batch.output_ns += ns[2]

    def answered(self, rows: int, queued_ns: int, whole_ns: int) -> None:
        self.outcomes["success"] += 1
        self.rows += rows
        self.queue_ns += queued_ns
        self.success_ns += whole_ns
        self.buckets[bisect_left(SECONDS, whole_ns / 1e9)] += 1

    def failed(self, outcome: str, whole_ns: int) -> None:
        self.outcomes[outcome] += 1
        self.fail_ns += whole_ns

    def to_dict(self, name: str, version: str) -> dict[str, Any]:
        """An element of ``model_stats``."""
        runs = self.batches.values()
        success = self.outcomes["success"]
        executed = sum(batch.count for batch in runs)
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": executed,
            "inference_stats": {
                "success": _duration(success, self.success_ns),
                "fail": _duration(sum(self.outcomes.values()) - success, self.fail_ns),
                "queue": _duration(success, self.queue_ns),
                "compute_input": _duration(success, sum(batch.input_ns for batch in runs)),
                "compute_infer": _duration(success, sum(batch.infer_ns for batch in runs)),
                "compute_output": _duration(success, sum(batch.output_ns for batch in runs)),
                "cache_hit": _duration(0, 0),
                "cache_miss": _duration(0, 0),
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    "compute_input": _duration(batch.count, batch.input_ns),
                    "compute_infer": _duration(batch.count, batch.infer_ns),
                    "compute_output": _duration(batch.count, batch.output_ns),
                }
                for size, batch in sorted(self.batches.items())
            ],
            "memory_usage": [],
        }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


@dataclass(frozen=True, slots=True)
class Seen:
    """One version at the instant of a scrape."""

    name: str
    version: str
    statistics: Statistics
    ready: bool
    waiting: int
    running: int


def page(seen: Iterable[Seen]) -> str:
    """The Prometheus page."""
    every = list(seen)
    lines: list[str] = []
    _requests(lines, every)
    _batches(lines, every)
    _gauges(lines, every)
    return "\n".join(lines) + "\n"


def _head(lines: list[str], name: str, kind: str, text: str) -> None:
    lines.append(f"# HELP {name} {text}")
    lines.append(f"# TYPE {name} {kind}")


def _labels(seen: Seen) -> str:
    return f'model="{seen.name}",version="{seen.version}"'


def _requests(lines: list[str], every: list[Seen]) -> None:
    _head(lines, "penstock_infer_requests_total", "counter", "Requests by what became of them.")
    for one in every:
        for outcome, count in one.statistics.outcomes.items():
            lines.append(f'penstock_infer_requests_total{{{_labels(one)},outcome="{outcome}"}} {count}')
    _head(lines, "penstock_infer_request_seconds", "histogram", "From a request's arrival in the queue to its answer.")
    for one in every:
        running = 0
        for bound, count in zip((*map(str, SECONDS), "+Inf"), one.statistics.buckets, strict=True):
            running += count
            lines.append(f'penstock_infer_request_seconds_bucket{{{_labels(one)},le="{bound}"}} {running}')
        lines.append(f"penstock_infer_request_seconds_sum{{{_labels(one)}}} {one.statistics.success_ns / 1e9:.9f}")
        lines.append(f"penstock_infer_request_seconds_count{{{_labels(one)}}} {running}")
    _head(lines, "penstock_infer_queue_seconds_total", "counter", "Summed waiting of answered requests.")
    for one in every:
        lines.append(f"penstock_infer_queue_seconds_total{{{_labels(one)}}} {one.statistics.queue_ns / 1e9:.9f}")


def _batches(lines: list[str], every: list[Seen]) -> None:
    _head(lines, "penstock_infer_batches_total", "counter", "Runs of the model by their number of rows.")
    for one in every:
        for size, batch in sorted(one.statistics.batches.items()):
            lines.append(f'penstock_infer_batches_total{{{_labels(one)},size="{size}"}} {batch.count}')
    _head(lines, "penstock_infer_compute_seconds_total", "counter", "Summed run time by number of rows.")
    for one in every:
        for size, batch in sorted(one.statistics.batches.items()):
            seconds = (batch.input_ns + batch.infer_ns + batch.output_ns) / 1e9
            lines.append(f'penstock_infer_compute_seconds_total{{{_labels(one)},size="{size}"}} {seconds:.9f}')


def _gauges(lines: list[str], every: list[Seen]) -> None:
    for name, text, value in (
        ("ready", "1 where the version takes requests.", lambda one: int(one.ready)),
        ("waiting", "Requests in the queue.", lambda one: one.waiting),
        ("running", "Requests in the batch that runs.", lambda one: one.running),
    ):
        _head(lines, f"penstock_infer_{name}", "gauge", text)
        lines.extend(f"penstock_infer_{name}{{{_labels(one)}}} {value(one)}" for one in every)
    _head(
        lines, "penstock_infer_restarts_total", "counter", "Times that the model's process died and was started again."
    )
    lines.extend(f"penstock_infer_restarts_total{{{_labels(one)}}} {one.statistics.restarts}" for one in every)


def now_ms() -> int:
    return int(time.time() * 1000)
