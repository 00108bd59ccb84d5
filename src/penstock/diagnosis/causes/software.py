"""The program itself: Python's garbage collector, compilation in the middle of a run, and work too small for its device."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.rule import Found, Proof, by_lost, ms, named, pct, said, shortest_wait, whose
from penstock.diagnosis.features import Features, View, gauge


def collection(features: Features) -> Iterator[Found]:
    """Python stops to look for garbage."""
    if not features.timed():
        return
    pausing = [view for view in features.ranks if view.now.share("gc") >= t.GC]
    if not pausing:
        return
    worst = max(pausing, key=lambda view: view.now.share("gc"))
    pausing = [view for view in pausing if view.now.share("gc") * 3 >= worst.now.share("gc")]
    rest = [view.now.share("gc") for view in features.ranks if view not in pausing]
    cpu = worst.now.rate.get("cpu_s")
    yield Found(
        "gc_pause",
        Proof.COUNTER,
        by_lost(worst.now.share("gc")) + 0.1,
        whose(features, pausing),
        said(
            f"Python's garbage collection took {pct(worst.now.share('gc'))} of the time of {named(v.rank for v in pausing)}: "
            f"{ms(worst.now.mean.get('gc', 0.0))} a step",
            f"of its peers' {pct(max(rest))}" if rest else "",
            shortest_wait(features, worst) if rest else "",
            f"its own process is busy meanwhile ({cpu:.2f} CPU seconds a second)"
            if cpu is not None and cpu >= 0.5
            else "",
        ),
    )


def compiling(features: Features) -> Iterator[Found]:
    """A counter of compilations that goes on rising after the warm-up."""
    rising = []
    for view in features.ranks:
        readings = gauge(view.source.counters, "recompiles")
        later = readings[len(readings) // 3 :]
        if len(later) >= 2 and later[-1][1] - later[0][1] >= 3:
            rising.append((view, later[-1][1] - later[0][1]))
    if rising:
        view, count = max(rising, key=lambda each: each[1])
        words = f"rank {view.rank} compiled {count:.0f} times more after its warm-up"
        yield Found("recompile", Proof.COUNTER, 0.5, whose(features, [v for v, _ in rising]), (words,))


def allocating(features: Features) -> Iterator[Found]:
    """The allocator gives memory back and asks anew, in the middle of training: the device stands still meanwhile."""
    again = []
    for view in features.ranks:
        readings = gauge(view.source.counters, "alloc_retries")
        later = readings[len(readings) // 3 :]
        if len(later) >= 2 and later[-1][1] - later[0][1] >= t.RETRIES:
            again.append((view, later[-1][1] - later[0][1]))
    if not again:
        return
    view, count = max(again, key=lambda each: each[1])
    reserved, used = (gauge(view.source.counters, name) for name in ("gpu_reserved_bytes", "gpu_allocated_bytes"))
    apart = reserved[-1][1] - used[-1][1] if reserved and used else 0.0
    yield Found(
        "alloc_fragmentation",
        Proof.COUNTER,
        0.5,
        whose(features, [v for v, _ in again]),
        said(
            f"the allocator of rank {view.rank} gave memory back and asked anew {count:.0f} times after its warm-up",
            f"{apart / 2**30:.1f} GiB are reserved and not in use: in pieces that are too small" if apart > 0 else "",
        ),
    )


def small(features: Features) -> Iterator[Found]:
    """So few tokens a step that starting the operations costs most of it: each token takes longer than it did with more of them."""
    if not features.timed() or features.change is not None:
        return
    halves = [_pace(view) for view in features.ranks]
    if not halves or any(half is None for half in halves):
        return
    known = [half for half in halves if half is not None]
    fewer = min(half.fewer for half in known)
    slower = min(half.slower for half in known)
    if fewer < t.FEWER or slower < t.PER_TOKEN:
        return
    worst = max(known, key=lambda half: half.slower)
    yield Found(
        "gpu_low_util_launch_bound",
        Proof.COUNTER,
        by_lost(1 - 1 / slower),
        whose(features, list(features.ranks)),
        (
            f"a step has {worst.tokens:,.0f} tokens (or rows), {fewer:.0f} times fewer than before, and each takes {slower:.1f} times as long",
            "on every rank: what a step costs is no longer its work, but starting it",
        ),
    )


@dataclass(frozen=True, slots=True)
class Pace:
    tokens: float
    fewer: float  # times
    slower: float  # times, by token


def _pace(view: View) -> Pace | None:
    """The steps of most tokens against the last ones."""
    known = [step for step in view.whole.steps if step.tokens and step.compute is not None]
    last = known[-(len(known) // 4) :] if len(known) >= 2 * t.FEWEST else []
    tokens = [step.tokens or 0.0 for step in last]
    if not last or max(tokens) > 2 * min(tokens):
        return None
    most = max(step.tokens or 0.0 for step in known)
    rich = [step for step in known if (step.tokens or 0.0) > most / 2]
    if len(rich) < t.FEWEST // 2:
        return None
    usual, now = (statistics.median((s.compute or 0.0) / (s.tokens or 1.0) for s in part) for part in (rich, last))
    return Pace(tokens[-1], most / tokens[-1], now / usual if usual > 0 else 1.0)


RULES = (collection, compiling, allocating, small)
