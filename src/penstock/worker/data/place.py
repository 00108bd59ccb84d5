"""Where a training is in its data, and what comes next: two numbers, whatever the number of ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Last = Literal["carry", "drop"]
Span = tuple[int, int, int]  # epoch, first place, place after the last


@dataclass(frozen=True, slots=True)
class Place:
    """``sample``: how many of the epoch's samples were trained on, by all ranks together."""

    epoch: int = 0
    sample: int = 0


def following(place: Place, batch: int, samples: int, last: Last) -> tuple[tuple[Span, ...], Place]:
    """The places of the next global batch, and where the training is after it.

    What is left at an epoch's end and fills no batch begins the next epoch's first ("carry"), or is left out ("drop").
    """
    epoch, at = place.epoch, place.sample
    if last == "drop" and at + batch > samples:
        epoch, at = epoch + 1, 0
    spans = []
    missing = batch
    while missing:
        if at == samples:
            epoch, at = epoch + 1, 0
        taken = min(missing, samples - at)
        spans.append((epoch, at, at + taken))
        at, missing = at + taken, missing - taken
    return tuple(spans), Place(epoch, at)


def share(batch: int, rank: int, world_size: int) -> tuple[int, int]:
    """Which part of a global batch is a rank's: neighbouring samples, of equal number where the ranks divide it."""
    return rank * batch // world_size, (rank + 1) * batch // world_size


def cut(spans: tuple[Span, ...], start: int, stop: int) -> list[Span]:
    """The part ``start`` .. ``stop`` of a batch that consists of these spans."""
    found, passed = [], 0
    for epoch, first, end in spans:
        low, high = max(start - passed, 0), min(stop - passed, end - first)
        if low < high:
            found.append((epoch, first + low, first + high))
        passed += end - first
    return found
