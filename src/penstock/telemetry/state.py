"""GPUs that are held and do nothing: samples -> since when. Pure.

A GPU is idle when every sample since some time lies below ``below_pct``. A gap longer than ``gap_s`` proves nothing: the
count begins anew after it, and a GPU that has said nothing for so long is not known to be idle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Key = tuple[str, str]  # node, GPU


@dataclass(frozen=True, slots=True)
class Rule:
    below_pct: float = 5.0
    gap_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Track:
    """All that is kept of one GPU's samples."""

    last_at: float
    idle_since: float | None  # None: the last sample was not idle


RULE = Rule()


def advance(track: Track | None, at: float, utilization: float, rule: Rule = RULE) -> Track:
    """The track after one more sample."""
    if track is not None and at <= track.last_at:
        return track
    if utilization >= rule.below_pct:
        return Track(at, None)
    if track is None or track.idle_since is None or at - track.last_at > rule.gap_s:
        return Track(at, at)
    return Track(at, track.idle_since)


def idle_since(track: Track | None, now: float, rule: Rule = RULE) -> float | None:
    """Since when the GPU has done nothing; None where that is not known."""
    return None if track is None or now - track.last_at > rule.gap_s else track.idle_since


def idle_gpus(
    gpus: Iterable[Key],
    tracks: Mapping[Key, Track],
    told: Mapping[Key, float],
    *,
    held_since: float,
    after_s: float,
    now: float,
    rule: Rule = RULE,
) -> dict[Key, float]:
    """Those of a job's GPUs that are to be called idle, and since when: what was idle before the job held it does not count.

    ``told`` are those that were called so before: they stay as long as they do nothing.
    """
    found: dict[Key, float] = {}
    for gpu in gpus:
        since = idle_since(tracks.get(gpu), now, rule)
        if since is None:
            continue
        since = told.get(gpu, max(since, held_since))
        if gpu in told or now - since >= after_s:
            found[gpu] = since
    return found
