"""Checkpoints: saves that hold the training up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.rule import Found, Proof, by_lost, ms, named, pct, ranks, said
from penstock.diagnosis.features import Features, View
from penstock.diagnosis.state import Step


def stall(features: Features) -> Iterator[Found]:
    """A save within the step, in the rank that writes; the others meet it in their next collective."""
    if not features.timed():
        return
    writing = [view for view in features.ranks if view.now.share("checkpoint") >= t.CHECKPOINT]
    if not writing:
        return
    worst = max(writing, key=lambda view: view.now.share("checkpoint"))
    saves = [step for step in worst.now.steps if (step.checkpoint or 0.0) > t.LOST * features.step]
    longest = max(step.checkpoint or 0.0 for step in saves) if saves else 0.0
    yield Found(
        "ckpt_stall",
        Proof.COUNTER,
        by_lost(worst.now.share("checkpoint")),
        ranks(view.rank for view in writing),
        said(
            f"{named(v.rank for v in writing)} spent {pct(worst.now.share('checkpoint'))} of the time in saves, up to {ms(longest)} each",
            _rhythm(saves),
            _disk(worst),
        ),
        said("" if saves else "no single save was long"),
    )


def _rhythm(saves: list[Step]) -> str:
    gaps = [new.step - old.step for old, new in itertools.pairwise(saves)]
    if len(gaps) >= 2 and max(gaps) == min(gaps):
        return f"every {gaps[0]} steps exactly, as a save's interval is"
    return ""


def _disk(view: View) -> str:
    pressure = view.now.rate.get("io_pressure_s", 0.0)
    return f"meanwhile something waited for a disk {pct(pressure)} of the time" if pressure >= t.IO_PRESSURE else ""


RULES = (stall,)
