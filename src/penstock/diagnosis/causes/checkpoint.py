"""Checkpoints: saves that hold the training up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.rule import Found, Proof, by_lost, ms, named, pct, ranks, said
from penstock.diagnosis.causes.standing import stood_still
from penstock.diagnosis.features import Features, View, Window
from penstock.diagnosis.state import Step


def stall(features: Features) -> Iterator[Found]:
    """A save within the step, in the rank that writes; the others meet it in their next collective."""
    if not features.timed():
        return
    still = stood_still(features)
    spent = {view.rank: _share(view.now, still) for view in features.ranks}
    writing = [view for view in features.ranks if spent[view.rank] >= t.CHECKPOINT]
    if not writing:
        return
    worst = max(writing, key=lambda view: spent[view.rank])
    most = spent[worst.rank]
    saves = [s for s in worst.now.steps if (s.checkpoint or 0.0) > t.LOST * features.step and s.step not in still]
    longest = max(step.checkpoint or 0.0 for step in saves) if saves else 0.0
    yield Found(
        "ckpt_stall",
        Proof.COUNTER,
        by_lost(most),
        ranks(view.rank for view in writing),
        said(
            f"{named(v.rank for v in writing)} spent {pct(most)} of the time in saves, up to {ms(longest)} each",
            _rhythm(saves),
            _disk(worst),
        ),
        said("" if saves else "no single save was long"),
    )


def _share(window: Window, still: frozenset[int]) -> float:
    """Of the time, in saves; a process that was stopped in the midst of one is no slow save."""
    steps = [step for step in window.steps if step.step not in still]
    total = sum(step.total for step in steps)
    return sum(step.checkpoint or 0.0 for step in steps) / total if total > 0 else 0.0


def _rhythm(saves: list[Step]) -> str:
    gaps = [new.step - old.step for old, new in itertools.pairwise(saves)]
    if len(gaps) >= 2 and max(gaps) == min(gaps):
        return f"every {gaps[0]} steps exactly, as a save's interval is"
    return ""


def _disk(view: View) -> str:
    pressure = view.now.rate.get("io_pressure_s", 0.0)
    return f"meanwhile something waited for a disk {pct(pressure)} of the time" if pressure >= t.IO_PRESSURE else ""


RULES = (stall,)
