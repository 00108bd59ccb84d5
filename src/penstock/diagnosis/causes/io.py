"""Why data come slowly: the pipeline's own work, storage's bandwidth, or its metadata. What tells one from the other.

Storage shows in the kernel: something waits for a disk (pressure), the process is in uninterruptible sleep (D), or its delay
for blocks grows. A pipeline that is slow by itself shows none of these.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.rule import Found, Proof, nodes, pct, said, whose
from penstock.diagnosis.features import Features, View

_METADATA = ("stat", "scandir", "listdir", "lstat", "open", "is_file", "exists", "walk", "glob", "iterdir", "getattr")
_DATA_SHARE = 0.25  # of the wait for data that waiting for the disk must reach to explain it


def told_apart(
    features: Features,
    views: Sequence[View],
    own: str,
    strength: float,
    evidence: tuple[str, ...],
    against: tuple[str, ...] = (),
) -> Iterator[Found]:
    """The pipeline (``own``), storage and metadata, each with what speaks for it."""
    slow, still = disk(views), _metadata(features, views)
    culprits = whose(features, views)
    if still:
        yield Found("metadata_storm", Proof.COUNTER, strength, culprits, said(*still, *evidence), against)
    if slow:
        where = culprits if len(views) < len(features.ranks) else nodes(view.node for view in views) or culprits
        weaker = said("its calls are about names rather than contents" if still else "")
        yield Found("storage_slow", Proof.COUNTER, strength, where, said(*slow, *evidence), against + weaker)
    quiet = "" if slow or still else "nothing waits for a disk: the pipeline itself is slow"
    also = said(f"storage explains it: {slow[0]}" if slow else "", "it asks for many files' names" if still else "")
    yield Found(own, Proof.COUNTER, strength, culprits, said(*evidence, quiet), against + also)


def disk(views: Sequence[View]) -> tuple[str, ...]:
    """What tells that these ranks wait for a disk."""
    words = []
    for view in views:
        share, wait = view.now.share("data"), view.now.rate.get("io_wait_s", 0.0)
        if wait >= _DATA_SHARE * share and wait >= t.LOST:
            words.append(f"rank {view.rank} slept {pct(wait)} of the time for blocks from a disk")
    pressed = max(views, key=lambda view: view.now.rate.get("io_pressure_s", 0.0))
    pressure = pressed.now.rate.get("io_pressure_s", 0.0)
    share = statistics.fmean(view.now.share("data") for view in views)
    grew = pressed.grew("io_pressure_s")
    if pressure >= t.IO_PRESSURE and pressure >= _DATA_SHARE * share and grew >= pressure / 2:
        words.append(
            f"on {pressed.node or 'the node'} something waited for a disk {pct(pressure)} of the time (io pressure)"
        )
    stuck = [view.rank for view in views if view.source.state == "D"]
    if stuck:
        words.append(f"rank {stuck[0]} is in uninterruptible sleep (state D), as reads of a slow disk are")
    return tuple(words)


def _metadata(features: Features, views: Sequence[View]) -> tuple[str, ...]:
    words = []
    for view in views:
        if view.source.stack and any(frame.split(" ")[0].endswith(_METADATA) for frame in view.source.stack[:2]):
            words.append(f"rank {view.rank} is in {view.source.stack[0]}: it asks for names, not for contents")
    for node in features.evidence.nodes:
        for series in node.series:
            if "mountstats" in series.name and series.samples and series.device.upper() in ("GETATTR", "LOOKUP"):
                words.append(f"{node.name}: {series.samples[-1][1]:.0f} {series.device} a second at the file server")
    return tuple(words)
