"""Ranks of jobs that do not say how long they work are looked at now and then: is there one that the others wait for?

A look costs each rank some hundredths of a second of one core, and none of its own time (py-spy does not stop it). There is one
every five minutes, every minute where a rank stands out or steps have become slower; of large jobs only then.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.engines.spec import Engine
from penstock.jobs.running import Running
from penstock.training import plan, stacks, straggler, waiting
from penstock.training.state import Point
from penstock.training.waiting import Tally

FIRST_S = 120.0
EVERY_S = 300.0
SOON_S = 60.0
LARGE = 64  # ranks
AT_ONCE = 4  # jobs
STEPS = 8.0  # that a look should last
LEAST_S, MOST_S = 6.0, 120.0
UNKNOWN_S = 30.0  # where no steps are reported
ROSE = 1.2
_RECENT = 30  # steps


@dataclass(slots=True)
class Sampled:
    """What is known of one attempt's ranks between looks."""

    due: float
    life: int = 0
    looks: list[Tally] = field(default_factory=list)


def wanted(one: Running, progress: Mapping[str, Any]) -> bool:
    """Of several ranks, which do not report what they work themselves."""
    several = len(one.nodes) * one.spec.procs > 1
    return several and one.spec.on_straggler != "off" and straggler.METRIC not in (progress.get("metrics") or {})


class Sampler:
    """``progress``: the last report by job id, as engines pass it on."""

    def __init__(self, progress: Mapping[str, Mapping[str, Any]]) -> None:
        self._progress = progress
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def look(self, engine: Engine, one: Running, sampled: Sampled, now: float) -> bool:
        """One look; whether it told something. When the next is due stands in ``sampled`` afterwards."""
        sampled.due = now + EVERY_S
        if sampled.life != one.in_place:
            sampled.life, sampled.looks = one.in_place, []
        points = [Point(float(p["at"]), int(p["rank"]), p["step"]) for p in await engine.logs(one.run_dir).progress()]
        pace = paces(points, one.started_at)
        world = len(one.nodes) * one.spec.procs
        slower = rose(pace)
        if world > LARGE and not slower and not waiting.suspects(sampled.looks):
            return False
        async with self._gate:
            before = self._step(one)
            place = stacks.Place(engine, one.attempt_id, one.run_dir, one.nodes, one.spec.procs)
            seen = await stacks.sample(place, waiting.SAMPLES, lasts(pace))
        tally = waiting.tally(seen, world, stepped=before is not None and self._step(one) != before)
        if tally is not None:
            sampled.looks = [*sampled.looks, tally][-2 * waiting.LOOKS :]
        if slower or waiting.suspects(sampled.looks):
            sampled.due = now + SOON_S
        return tally is not None

    def _step(self, one: Running) -> int | None:
        step: int | None = (self._progress.get(one.job_id) or {}).get("step")
        return step


def paces(points: Sequence[Point], born: float) -> list[float]:
    """Seconds a step, one after the other, of the lowest rank that reports them."""
    steps = sorted((p for p in points if p.step is not None and p.at >= born), key=lambda point: point.at)
    lowest = min((point.rank for point in steps), default=0)
    mine = [point for point in steps if point.rank == lowest][-plan.POINTS :]
    return [
        (after.at - before.at) / (after.step - before.step)
        for before, after in itertools.pairwise(mine)
        if before.step is not None and after.step is not None and after.step > before.step
    ]


def rose(pace: Sequence[float]) -> bool:
    """Whether the newest steps take clearly longer than those before them."""
    if len(pace) < 2 * _RECENT:
        return False
    return statistics.median(pace[-_RECENT:]) >= ROSE * statistics.median(pace[:-_RECENT])


def lasts(pace: Sequence[float]) -> float:
    """How long a look lasts, so that it sees several steps."""
    if not pace:
        return UNKNOWN_S
    return min(max(STEPS * statistics.median(pace[-_RECENT:]), LEAST_S), MOST_S)
