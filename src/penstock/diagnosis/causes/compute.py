"""Work that one rank needs longer for: its device, its share of the tokens, or its stage of the pipeline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.rule import (
    Found,
    Proof,
    by_lost,
    job,
    ms,
    named,
    pct,
    ranks,
    said,
    shortest_wait,
    waits_itself,
)
from penstock.diagnosis.features import Features, View, Window, middle


@dataclass(frozen=True, slots=True)
class Excess:
    """What a rank computes longer than its peers, a step, and what of it the counters explain."""

    view: View
    own: float
    others: float
    delay: float  # waiting for a core, beyond the peers
    throttled: float
    gc: float
    tokens: float  # what its tokens would take at its peers' pace, beyond theirs

    @property
    def seconds(self) -> float:
        return self.own - self.others

    @property
    def explained(self) -> float:
        return self.delay + self.throttled + self.gc


def work(window: Window) -> float | None:
    """Forward, backward and optimizer."""
    known = [window.median[phase] for phase in ("compute", "optimizer") if phase in window.median]
    return sum(known) if known else None


def excess(features: Features, view: View) -> Excess | None:
    own, others = work(view.now), middle(work(o.now) for o in features.ranks if o is not view)
    if own is None or others is None:
        return None
    step = view.now.mean.get("total", 0.0)
    delay, throttled = (
        max(0.0, view.now.rate.get(name, 0.0) - (features.peers_rate(view, name) or 0.0)) * step
        for name in ("run_delay_s", "throttled_s")
    )
    gc = max(0.0, view.now.mean.get("gc", 0.0) - (features.peers(view, "gc", mean=True) or 0.0) - _apart(view.now))
    mine, theirs = view.now.median.get("tokens"), features.peers(view, "tokens")
    tokens = others * (mine / theirs - 1) if mine and theirs else 0.0
    return Excess(view, own, others, delay, throttled, gc, max(0.0, tokens))


def _apart(window: Window) -> float:
    """What of a rank's own time is in none of its phases. On the host garbage is collected in that time, which does not lengthen
    the computing then; a GPU's events have it within.
    """
    phases = sum(window.mean.get(phase, 0.0) for phase in ("data", "compute", "optimizer", "checkpoint"))
    return max(0.0, window.mean.get("local", 0.0) - phases)


def slow_rank(features: Features) -> Iterator[Found]:
    """One rank computes longer than the others, step after step, and nothing else accounts for it."""
    if not features.timed() or len(features.ranks) < 2 or _stages(features):
        return
    found = [each for view in features.ranks if (each := excess(features, view)) is not None and _slow(features, each)]
    if not found or len(found) * 2 > len(features.ranks):
        return
    worst = max(found, key=lambda each: each.seconds)
    uneven = worst.tokens >= t.TOKENS * worst.seconds
    cause = "seq_imbalance" if uneven else "slow_compute_rank"
    yield Found(
        cause,
        Proof.COUNTER if uneven else Proof.TIMING,
        by_lost(features.lost(worst.seconds - min(worst.seconds, worst.explained))),
        ranks(each.view.rank for each in found),
        said(
            f"{named(e.view.rank for e in found)} computed {ms(worst.own)} a step (forward, backward, optimizer), the peers {ms(worst.others)}",
            _tokens(features, worst) if uneven else "",
            shortest_wait(features, worst.view),
            _before(features, worst),
            _no_reason(worst) if not uneven else "",
        ),
        said(
            waits_itself(features, worst.view),
            _by(worst.delay, worst.seconds, "waiting for a core (run delay)"),
            _by(worst.throttled, worst.seconds, "its CPU quota (throttled)"),
            _by(worst.gc, worst.seconds, "Python's garbage collection"),
        ),
    )
    yield from _slower_too(features, worst) if uneven else _more_too(features, worst)


def _more_too(features: Features, each: Excess) -> Iterator[Found]:
    """It is slow, and has more tokens besides."""
    if features.lost(each.tokens) >= t.LOST and each.tokens >= t.TOKENS / 2 * each.seconds:
        strength = by_lost(features.lost(each.tokens))
        yield Found("seq_imbalance", Proof.COUNTER, strength, ranks([each.view.rank]), (_tokens(features, each),))


def _slower_too(features: Features, each: Excess) -> Iterator[Found]:
    """It has more tokens, and needs longer for each: two faults at once."""
    beyond = each.seconds - each.tokens - each.explained
    if features.lost(beyond) < t.LOST or each.own < t.COMPUTE_GREW * (each.others + each.tokens):
        return
    words = f"{ms(beyond)} of what rank {each.view.rank} computes longer are more than its tokens account for"
    yield Found("slow_compute_rank", Proof.TIMING, by_lost(features.lost(beyond)), ranks([each.view.rank]), (words,))


def _slow(features: Features, each: Excess) -> bool:
    left = each.seconds - each.explained * (each.explained >= t.EXPLAINED * each.seconds)
    if features.lost(left) < t.LOST or not _persists(features, each.view):
        return False
    old = _ratio_before(features, each.view)
    ratio = each.own / each.others if each.others > 0 else math.inf
    return ratio >= t.COMPUTE_GREW * max(1.0, old) if old is not None else ratio >= t.COMPUTE_RATIO


def _ratio_before(features: Features, view: View) -> float | None:
    if view.before is None:
        return None
    own = work(view.before)
    others = middle(work(o.before) for o in features.ranks if o is not view and o.before is not None)
    return own / others if own is not None and others else None


def _persists(features: Features, view: View) -> bool:
    others: dict[int, list[float]] = {}
    for other in features.ranks:
        for step in other.now.steps if other is not view else ():
            if step.compute is not None:
                others.setdefault(step.step, []).append(step.compute)
    pairs = [
        (s.compute, statistics.median(others[s.step]))
        for s in view.now.steps
        if s.compute is not None and s.step in others
    ]
    return bool(pairs) and sum(own > peers for own, peers in pairs) >= t.PERSISTENT * len(pairs)


def _tokens(features: Features, each: Excess) -> str:
    mine, theirs = each.view.now.median.get("tokens", 0.0), features.peers(each.view, "tokens") or 1.0
    pace = each.own / mine if mine else 0.0
    return (
        f"it has {mine:,.0f} tokens a step, its peers {theirs:,.0f}: for a thousand it needs {ms(1000 * pace)}, "
        f"they {ms(1000 * each.others / theirs)}"
    )


def _before(features: Features, each: Excess) -> str:
    old = work(each.view.before) if each.view.before is not None else None
    return f"before step {features.change.step} it needed {ms(old)}" if old is not None and features.change else ""


def _no_reason(each: Excess) -> str:
    known = [name for name in ("run_delay_s", "throttled_s") if name in each.view.now.rate]
    if not known or each.explained >= t.EXPLAINED * each.seconds:
        return ""
    return "neither waiting for a core, a quota nor garbage collection accounts for it"


def _by(seconds: float, of: float, what: str) -> str:
    return f"{ms(seconds)} of its {ms(of)} more are {what}" if seconds >= t.EXPLAINED * of else ""


def uneven(features: Features) -> Iterator[Found]:
    """The slow rank is another one each step, and it is the one with the most tokens."""
    if not features.timed() or len(features.ranks) < 2 or _stages(features):
        return
    rows = _rows(features)
    if len(rows) < t.FEWEST:
        return
    slowest = [_longest(row) for row in rows]
    most = max(slowest.count(view.rank) for view in features.ranks)
    gap = statistics.median(
        max(c for c, _ in row.values()) - statistics.median(c for c, _ in row.values()) for row in rows
    )
    gap = max(
        gap, statistics.median((max(c for c, _ in row.values()) - min(c for c, _ in row.values())) / 2 for row in rows)
    )
    if most > t.PERSISTENT * len(rows) or features.lost(gap) < t.LOST:
        return
    follows = [row for row, rank in zip(rows, slowest, strict=True) if _has_most(row, rank)]
    if len(follows) < t.PERSISTENT * len(rows):
        return
    yield Found(
        "seq_imbalance",
        Proof.COUNTER,
        by_lost(features.lost(gap)),
        job(features),
        (
            f"the slowest rank is another one from step to step, {ms(gap)} of {ms(features.step)} behind the others",
            f"in {pct(len(follows) / len(rows))} of the steps it is the one that has the most tokens",
        ),
    )


def _rows(features: Features) -> list[Mapping[int, tuple[float, float]]]:
    """Of each step: every rank's time and tokens."""
    rows: dict[int, dict[int, tuple[float, float]]] = {}
    for view in features.ranks:
        for step in view.now.steps:
            if step.compute is not None and step.tokens is not None:
                rows.setdefault(step.step, {})[view.rank] = (step.compute, step.tokens)
    return [rows[number] for number in sorted(rows) if len(rows[number]) == len(features.ranks)]


def _longest(row: Mapping[int, tuple[float, float]]) -> int:
    return max(row, key=lambda rank: (row[rank][0], -rank))


def _has_most(row: Mapping[int, tuple[float, float]], rank: int) -> bool:
    return row[rank][1] >= max(tokens for _, tokens in row.values()) > min(tokens for _, tokens in row.values())


# -- pipelines -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Split:
    """What parts of the variance of the logarithm of work lie between stages, between workers of a stage, and elsewhere."""

    stage: float
    worker: float
    rest: float
    slowest_stage: int
    slowest: tuple[int, int]  # stage, replica


Cells = Mapping[tuple[int, int], Sequence[float]]  # (stage, replica) -> seconds of work, step by step


def split(cells: Cells) -> Split | None:
    """None where nothing varies, or a stage or replica alone is known."""
    logs = {cell: [math.log(v) for v in values if v > 0] for cell, values in sorted(cells.items())}
    logs = {cell: values for cell, values in logs.items() if values}
    means = {cell: statistics.fmean(values) for cell, values in logs.items()}
    if len(means) < 2:
        return None
    stages = {stage: statistics.fmean(m for (s, _), m in means.items() if s == stage) for stage, _ in means}
    grand = statistics.fmean(means.values())
    between = statistics.fmean((stages[stage] - grand) ** 2 for stage, _ in means)
    workers = statistics.fmean((mean - stages[cell[0]]) ** 2 for cell, mean in means.items())
    within = statistics.fmean(statistics.pvariance(values) for values in logs.values())
    total = between + workers + within
    if total <= 0:
        return None
    slowest = max(means, key=lambda cell: (means[cell] - stages[cell[0]], cell))
    return Split(between / total, workers / total, within / total, max(stages, key=lambda s: (stages[s], s)), slowest)


def _stages(features: Features) -> dict[tuple[int, int], View]:
    """Where the ranks say which stage and replica they are."""
    found: dict[tuple[int, int], View] = {}
    for view in features.ranks:
        stage, replica = view.source.config.get("stage"), view.source.config.get("replica", 0)
        if not isinstance(stage, int) or not isinstance(replica, int):
            return {}
        found[(stage, replica)] = view
    return found if len({stage for stage, _ in found}) > 1 else {}


def pipeline(features: Features) -> Iterator[Found]:
    """Stages of unequal work, one slow worker among its stage's replicas, or sequences of unequal length."""
    views = _stages(features)
    cells = {cell: [s.compute for s in view.now.steps if s.compute is not None] for cell, view in views.items()}
    found = split(cells) if views else None
    if found is None:
        return
    medians = {cell: statistics.median(values) for cell, values in cells.items() if values}
    usual = statistics.median(medians.values())
    parts = f"of the variance of work {pct(found.stage)} lies between stages, {pct(found.worker)} between workers of one stage, {pct(found.rest)} elsewhere"
    replicas = len({replica for _, replica in views})
    stage = [view for (number, _), view in views.items() if number == found.slowest_stage]
    slowest = max(medians[cell] for cell in medians if cell[0] == found.slowest_stage) / usual
    part, cause = max((found.stage, "pp_bubble"), (found.worker, "slow_compute_rank"), (found.rest, "seq_imbalance"))
    if cause == "pp_bubble" and slowest >= 1 + t.LOST:
        words = f"stage {found.slowest_stage} needs {slowest:.2f} times the median stage, in {'every replica' if replicas > 1 else 'every step'}"
        alone = said("" if replicas > 1 else "there is one replica: a slow device would look the same")
        yield Found(
            cause, Proof.COUNTER, part * by_lost(1 - 1 / slowest), ranks(v.rank for v in stage), (words, parts), alone
        )
    elif cause == "slow_compute_rank":
        own = medians[found.slowest] / statistics.median(v for c, v in medians.items() if c[0] == found.slowest[0])
        if own >= 1 + t.LOST:
            words = f"rank {views[found.slowest].rank} needs {own:.2f} times what the other replicas of its stage need"
            yield Found(
                cause, Proof.COUNTER, part * by_lost(1 - 1 / own), ranks([views[found.slowest].rank]), (words, parts)
            )
    elif cause == "seq_imbalance" and _spread(cells) >= 1 + 2 * t.LOST:
        words = f"work varies from micro-batch to micro-batch in every worker, up to {_spread(cells):.1f} times"
        yield Found(cause, Proof.TIMING, part * by_lost(1 - 1 / _spread(cells)), job(features), (words, parts))


def _spread(cells: Cells) -> float:
    """The ninth decile to the median, of a typical worker."""
    ratios = [
        sorted(values)[int(0.9 * len(values))] / statistics.median(values)
        for values in cells.values()
        if len(values) >= 5
    ]
    return statistics.median(ratios) if ratios else 1.0


RULES = (slow_rank, uneven, pipeline)
