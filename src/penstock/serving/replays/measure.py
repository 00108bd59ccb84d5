"""A load test of one simulated replica: its service curve, as a profiler would measure a real one's."""

from __future__ import annotations

import math
from collections.abc import Callable

from penstock.serving.profile import Curve, Point
from penstock.serving.replays.machine import Job, Machine
from penstock.serving.replays.run import quantile
from penstock.serving.replays.traces import Request, Trace

CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROFILED_S = 600.0  # of a trace: its first ten minutes
_MOST = 5000  # requests that a load test takes of them


def curve_for(trace: Trace, machine: Callable[[], Machine], cold_start: float) -> Curve:
    """With the requests of the trace's first ten minutes."""
    requests = tuple(one for one in trace.requests[:_MOST] if one.at < PROFILED_S)
    return Curve(tuple(measured(requests, machine(), at_once) for at_once in CONCURRENCIES), cold_start, "measured")


def measured(requests: tuple[Request, ...], machine: Machine, at_once: int) -> Point:
    """So many requests in the replica at any time, one after another; what the first of them took does not count."""
    count = max(len(requests), 8 * at_once) + at_once
    jobs: list[Job] = []
    now, started = 0.0, 0
    for _ in range(at_once):
        machine.add(Job(started, requests[started % len(requests)], now), now)
        started += 1
    while len(jobs) < count and machine.load:
        now = machine.due()
        for job in machine.advance(now):
            jobs.append(job)
            machine.add(Job(started, requests[started % len(requests)], now), now)
            started += 1
    kept = jobs[at_once:]
    spans = sorted(job.end - job.at for job in kept)
    tokens = any(job.request.output for job in kept)
    firsts = sorted(job.first - job.at for job in kept)
    each = sorted((job.end - job.first) / (job.request.output - 1) for job in kept if job.request.output > 1)
    return Point(
        float(at_once),
        len(kept) / max(now - jobs[at_once - 1].end, 1e-9),
        quantile(spans, 0.95),
        quantile(firsts, 0.95) if tokens else None,
        quantile(each, 0.95) if each else None,
    )


def first_replicas(trace: Trace, throughput: float, most: int) -> int:
    """What the trace's first minute needs: replicas that are ready when a replay begins."""
    early = sum(1 for one in trace.requests if one.at < 60.0) / 60.0
    return max(1, min(most, math.ceil(early / throughput)))
