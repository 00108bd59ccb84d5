"""The input pipeline: data come too slowly, to all ranks or to one."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes import io
from penstock.diagnosis.causes.rule import (
    Found,
    Proof,
    by_lost,
    ms,
    named,
    pct,
    said,
    shortest_wait,
    waits_itself,
    whose,
)
from penstock.diagnosis.features import Features, View, middle


def slow_data(features: Features) -> Iterator[Found]:
    """All ranks wait for data, or some do: from storage, metadata or the pipeline itself."""
    if not features.timed():
        return
    late = [view for view in features.ranks if _excess(features, view) >= t.LOST and _persists(features, view)]
    bound = [view for view in features.ranks if view.now.share("data") >= t.DATA]
    if len(bound) == len(features.ranks) and (len(bound) < 2 or len(late) * 2 > len(bound) or _alike(bound)):
        yield from _bound(features)
    elif late and len(late) * 2 <= len(features.ranks):
        yield from _late(features, late)
    else:
        yield from _in_turn(features)


def _in_turn(features: Features) -> Iterator[Found]:
    """Now this rank waits for data and now that one: what they share is slow."""
    worst: dict[int, list[float]] = {}
    for view in features.ranks:
        for step in view.now.steps:
            worst.setdefault(step.step, []).append(step.data or 0.0)
    waits = sorted(max(row) for row in worst.values() if len(row) == len(features.ranks))
    kept = waits[: max(1, int(len(waits) * (1 - t.OUTLIERS)) - 1)]
    wait = statistics.fmean(kept) if kept else 0.0
    mean = statistics.fmean(view.now.mean.get("total", 0.0) for view in features.ranks)
    waiting = [view for view in features.ranks if view.now.share("data") >= t.LOST / 2]
    least = t.LOST * 1.5 if io.disk(features.ranks) else t.DATA
    if mean <= 0 or wait < least * mean or len(waiting) * 2 < len(features.ranks):
        return
    evidence = (
        f"in a step the rank that waits longest for data waits {ms(wait)} of {ms(mean)}, and it is another one each time",
    )
    yield from io.told_apart(features, list(features.ranks), "data_loader_bound", by_lost(wait / mean), evidence)


def _alike(views: list[View]) -> bool:
    waits = [view.now.mean.get("data", 0.0) for view in views]
    return max(waits) <= t.DATA_RATIO * max(min(waits), 1e-9)


def _excess(features: Features, view: View) -> float:
    own, others = _waited(view), middle(_waited(other) for other in features.ranks if other is not view)
    if others is None or own < t.DATA_RATIO * others:
        return 0.0
    return features.lost(own - others)


def _waited(view: View) -> float:
    """For data, a step; a rank whose quota is used up stands still in every phase, and that is no wait for data."""
    return view.now.mean.get("data", 0.0) * max(0.0, 1.0 - view.now.rate.get("throttled_s", 0.0))


def _persists(features: Features, view: View) -> bool:
    """In bursts too: of any three steps that follow each other, one at least is long (workers hand over several at once)."""
    limit = (features.peers(view, "data") or 0.0) + t.LOST * features.step / 2
    waits = [step.data or 0.0 for step in view.now.steps]
    groups = [waits[index : index + 3] for index in range(0, len(waits) - 2, 3)]
    return bool(groups) and sum(max(group) > limit for group in groups) >= t.PERSISTENT * len(groups)


def _bound(features: Features) -> Iterator[Found]:
    share = min(view.now.share("data") for view in features.ranks)
    waits = [view.now.mean["data"] for view in features.ranks]
    evidence = said(
        f"every rank waits for data: {ms(min(waits))} to {ms(max(waits))} of a step of {ms(features.step)}, at least {pct(share)}",
        _new(features),
        f"the all-reduce itself takes {ms(features.transfer)}: communication is not the cause"
        if features.transfer
        else "",
    )
    yield from io.told_apart(features, list(features.ranks), "data_loader_bound", by_lost(share), evidence)


def _new(features: Features) -> str:
    old = [view.before.mean.get("data", 0.0) for view in features.ranks if view.before is not None]
    return f"before step {features.change.step} it was {ms(max(old))}" if old and features.change is not None else ""


def _late(features: Features, late: list[View]) -> Iterator[Found]:
    worst = max(late, key=lambda view: view.now.mean["data"])
    others = features.peers(worst, "data", mean=True) or 0.0
    evidence = said(
        f"{named(view.rank for view in late)} waited {ms(worst.now.mean['data'])} a step for data, the peers {ms(others)}",
        shortest_wait(features, worst),
        "its forward and backward pass are not longer than its peers'" if _computes_alike(features, worst) else "",
    )
    strength = by_lost(max(_excess(features, view) for view in late))
    yield from io.told_apart(
        features, late, "data_loader_one_rank", strength, evidence, said(waits_itself(features, worst))
    )


def _computes_alike(features: Features, view: View) -> bool:
    own, others = view.now.median.get("compute"), features.peers(view, "compute")
    return own is not None and others is not None and own <= t.COMPUTE_GREW * others


def cold_cache(features: Features) -> Iterator[Found]:
    """Data come slowly at first and faster by and by, without anybody's doing."""
    if not features.timed() or not features.evidence.ranks:
        return
    for view in features.ranks:
        parts = quarters([step.data or 0.0 for step in view.whole.steps], [step.total for step in view.whole.steps])
        if not parts or parts[0] < t.DATA or parts[0] < t.COLD * max(parts[-1], 1e-9) or parts[-1] >= t.DATA:
            return
        if any(later > earlier * 1.2 + t.LOST for earlier, later in itertools.pairwise(parts)):
            return
    firsts = [
        quarters([s.data or 0.0 for s in v.whole.steps], [s.total for s in v.whole.steps]) for v in features.ranks
    ]
    first, last = (min(parts[index] for parts in firsts) for index in (0, -1))
    yield Found(
        "cold_cache",
        Proof.COUNTER,
        by_lost(first * 0.8),
        whose(features, list(features.ranks)),
        said(
            f"data took {pct(first)} of the first quarter of the steps and {pct(last)} of the last, falling all the while",
            _reads_fell(features),
        ),
        said("" if features.change is None else f"the steps became longer again at step {features.change.step}"),
    )


def quarters(values: list[float], totals: list[float]) -> list[float]:
    """The share of each quarter of the steps."""
    size = len(values) // 4
    if size < 3:
        return []
    return [sum(values[at : at + size]) / max(sum(totals[at : at + size]), 1e-12) for at in range(0, size * 4, size)]


def _reads_fell(features: Features) -> str:
    for view in features.ranks:
        readings = [(c.at, c.values["read_bytes"]) for c in view.source.counters if "read_bytes" in c.values]
        if len(readings) >= 5:
            half = len(readings) // 2
            early, late = readings[half][1] - readings[0][1], readings[-1][1] - readings[half][1]
            if early > 2 * late and early > 0:
                return f"rank {view.rank} read {early / 1e6:.0f} MB in the first half and {late / 1e6:.0f} MB in the second"
    return ""


RULES = (slow_data, cold_cache)
