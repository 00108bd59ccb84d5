"""The host: cores that others take, quotas, memory, processes that stand still, clocks and limits."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.rule import (
    Found,
    Proof,
    by_lost,
    ms,
    named,
    nodes,
    pct,
    ranks,
    said,
    shortest_wait,
    whose,
)
from penstock.diagnosis.features import Features, View, gauge, middle


def contention(features: Features) -> Iterator[Found]:
    """Somebody else is on the cores: the rank that could run and did not is the one that starves."""
    starved = [view for view in features.ranks if _starved(features, view) >= t.LOST]
    outside = [] if starved else _all_starved(features)
    views = _worst(starved) or outside
    if not views:
        return
    worst = max(views, key=_delay)
    extra = _starved(features, worst) if starved else _delay(worst)
    throttled = worst.now.rate.get("throttled_s", 0.0)
    yield Found(
        "cpu_contention",
        Proof.COUNTER,
        by_lost(extra),
        whose(features, views),
        said(
            f"{named(v.rank for v in views)} could run and got no core {pct(_delay(worst))} of the time (run delay)",
            _others(features, worst, views),
            f"its control group was throttled {pct(throttled)} of the time: no quota does it"
            if "throttled_s" in worst.now.rate and throttled < t.THROTTLED
            else "",
            shortest_wait(features, worst) if len(views) < len(features.ranks) else "",
        ),
        said(
            f"its control group was throttled {pct(throttled)} of the time as well" if throttled >= t.THROTTLED else "",
            _own_work(features, worst),
        ),
    )


def _delay(view: View) -> float:
    return view.now.rate.get("run_delay_s", 0.0)


def _starved(features: Features, view: View) -> float:
    """What part of the time it waited for a core beyond what it did before, or beyond its peers where there is no before."""
    own = _delay(view)
    if own < t.RUN_DELAY or _throttle_explains(view, own):
        return 0.0
    if view.before is not None and "run_delay_s" in view.before.rate:
        return own - view.before.rate["run_delay_s"]
    others = features.peers_rate(view, "run_delay_s")
    return own - others if others is not None and own >= t.RUN_DELAY_RATIO * others else 0.0


def _throttle_explains(view: View, delay: float) -> bool:
    """Threads of a throttled group wait for a core too: only what is more than that is somebody else's doing."""
    throttled = view.now.rate.get("throttled_s", 0.0)
    return throttled >= t.THROTTLED and throttled >= t.EXPLAINED * delay


def _worst(starved: Sequence[View]) -> list[View]:
    """Those that starve nearly as much as the one that does most."""
    most = max((_delay(view) for view in starved), default=0.0)
    return [view for view in starved if _delay(view) * t.RUN_DELAY_RATIO >= most]


def _all_starved(features: Features) -> list[View]:
    """All alike, from the beginning: proven only where the job itself needs fewer cores than it may use."""
    views = list(features.ranks)
    if not views or any(view.before is not None or _delay(view) < t.RUN_DELAY + 0.1 for view in views):
        return []
    for node in {view.node for view in views}:
        here = [view for view in views if view.node == node]
        cores = middle(_number(view.source.config.get("cpus")) for view in here)
        if cores is None or sum(view.now.rate.get("cpu_s", 0.0) for view in here) > 0.75 * cores:
            return []
        if any(_throttle_explains(view, _delay(view)) for view in here):
            return []
    return views


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _others(features: Features, worst: View, views: Sequence[View]) -> str:
    rest = [_delay(view) for view in features.ranks if view not in views]
    if rest:
        return f"its peers {pct(max(rest))}"
    if worst.before is not None:
        return f"before it was {pct(worst.before.rate.get('run_delay_s', 0.0))}"
    return "the job itself uses fewer cores than there are: others use them"


def _own_work(features: Features, view: View) -> str:
    own, others = view.now.rate.get("cpu_s"), features.peers_rate(view, "cpu_s")
    if own is None or others is None or others <= 0 or own < 1.5 * others or own < _delay(view):
        return ""
    return f"it also computes more than its peers: {own:.2f} CPU seconds a second, they {others:.2f}"


def throttle(features: Features) -> Iterator[Found]:
    """A quota on cores that is too small."""
    rates = {view.rank: view.now.rate.get("throttled_s", 0.0) for view in features.ranks}
    most = max(rates.values(), default=0.0)
    views = [view for view in features.ranks if rates[view.rank] >= max(t.THROTTLED, most / 2)]
    if not views or all(view.before is not None and view.grew("throttled_s") < t.THROTTLED / 2 for view in views):
        return
    worst = max(views, key=lambda view: rates[view.rank])
    yield Found(
        "cgroup_throttle",
        Proof.COUNTER,
        by_lost(min(1.0, most)) + 0.2,
        whose(features, views),
        said(
            f"the control group of {named(v.rank for v in views)} was throttled {pct(min(1.0, most))} of the time: its CPU quota is used up",
            f"the others' {pct(max(rates[v.rank] for v in features.ranks if v not in views))}"
            if len(views) < len(features.ranks)
            else "",
            shortest_wait(features, worst) if len(views) < len(features.ranks) else "",
        ),
        said("" if most >= t.LOST or not features.step else "it costs little of a step"),
    )


def leak(features: Features) -> Iterator[Found]:
    """Memory that only grows."""
    growing = [(view, grown) for view in features.ranks if (grown := _grown(view)) is not None]
    if not growing:
        return
    growing = [each for each in growing if each[1] * 3 >= max(grown for _, grown in growing)]
    view, grown = max(growing, key=lambda each: each[1])
    readings = gauge(view.source.counters, "rss_bytes")
    evidence = (
        (
            f"the memory of {named(v.rank for v, _ in growing)} grew by {pct(grown)} while this was watched, in nearly every reading: "
            f"now {readings[-1][1] / 1e6:,.0f} MB (rank {view.rank})"
        ),
    )
    pressed = view.now.rate.get("memory_pressure_s", 0.0)
    more = said(f"something waited for memory {pct(pressed)} of the time" if pressed >= t.MEMORY_PRESSURE else "")
    yield Found(
        "memory_leak", Proof.COUNTER, min(1.0, grown), whose(features, [v for v, _ in growing]), evidence + more
    )


def _grown(view: View) -> float | None:
    """By what part it grew after the first quarter of the readings, where it did so steadily."""
    values = _by_steps(view, gauge(view.source.counters, "rss_bytes"))
    values = values[max(1, len(values) // 4) :]
    if len(values) < 4 or values[0] <= 0:
        return None
    half = len(values) // 2
    rose = sum(new > old for old, new in itertools.pairwise(values)) / (len(values) - 1)
    early, late = values[half] - values[0], values[-1] - values[half]
    grown = (values[-1] - values[0]) / values[0]
    return grown if grown >= t.LEAK and rose >= t.LEAK_STEADY and late >= 0.4 * early > 0 else None


def _by_steps(view: View, readings: list[tuple[float, float]]) -> list[float]:
    """The last before each step that ended: while a rank waits, its memory is what it was. All of them where no steps are known."""
    ends = [step.at for step in view.whole.steps]
    if not ends:
        return [value for _, value in readings]
    return list({bisect.bisect(ends, at): value for at, value in readings}.values())


def limits(features: Features) -> Iterator[Found]:
    """Open files near their limit, and a clock that is off."""
    for view in features.ranks:
        opened, most = gauge(view.source.counters, "open_files"), gauge(view.source.counters, "max_files")
        if opened and most and most[-1][1] > 0 and opened[-1][1] >= t.OPEN_FILES * most[-1][1]:
            words = f"rank {view.rank} has {opened[-1][1]:.0f} files open, its limit is {most[-1][1]:.0f}"
            yield Found("pid_fd_limit", Proof.COUNTER, 0.8, ranks([view.rank]), (words,))
    off: dict[str, float] = {}
    for view in features.ranks:
        readings = gauge(view.source.counters, "clock_offset_s")
        if readings and abs(readings[-1][1]) > t.CLOCK:
            off[view.node] = readings[-1][1]
    for node in features.evidence.nodes:
        for series in node.series:
            if "timex_offset" in series.name and series.samples and abs(series.samples[-1][1]) > t.CLOCK:
                off[node.name] = series.samples[-1][1]
    if off:
        clocks = tuple(f"the clock of {name} is {ms(value)} off" for name, value in sorted(off.items()))
        against = said(
            "a clock does not make steps longer: it misleads who compares hosts' times" if features.change else ""
        )
        yield Found("clock_skew", Proof.COUNTER, 0.5, nodes(off), clocks, against)


def starved_of_memory(features: Features) -> Iterator[Found]:
    """The kernel ended processes for want of memory: it counts those of the whole machine, so one of the job must have ended too."""
    ended = features.evidence.phase == "Failed" or any(v.source.signal or v.source.exit_code for v in features.ranks)
    for view in features.ranks:
        kills = gauge(view.source.counters, "oom_kills")
        if len(kills) >= 2 and kills[-1][1] > kills[0][1]:
            words = f"the kernel ended {kills[-1][1] - kills[0][1]:.0f} processes for want of memory while rank {view.rank} ran"
            against = said("" if ended else "none of the job's own has ended: they were somebody else's")
            yield Found("host_oom", Proof.COUNTER if ended else Proof.HINT, 0.8, ranks([view.rank]), (words,), against)


RULES = (contention, throttle, leak, limits, starved_of_memory)
