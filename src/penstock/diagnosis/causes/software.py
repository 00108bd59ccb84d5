"""The program itself: Python's garbage collector, compilation in the middle of a run, and work too small for its device."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.rule import Found, Proof, by_lost, ms, named, pct, said, shortest_wait, whose
from penstock.diagnosis.features import Features, gauge


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


RULES = (collection, compiling)
