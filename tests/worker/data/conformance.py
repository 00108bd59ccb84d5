"""What any loader must do that is handed to Checkpointer as ``loader=``: kills and other numbers of ranks, and each
sample once. The position goes the way that it goes in a checkpoint: through JSON, and ``Position.restore``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from penstock.worker.checkpoint.parts import Position


class Loader(Protocol):
    def batch(self) -> list[int]:
        """The numbers of the samples of this rank's next batch."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> None: ...
    def close(self) -> None: ...


class Life(NamedTuple):
    """One run of the training: so many ranks, steps until the kill, and how many of them a checkpoint kept."""

    ranks: int
    steps: int
    kept: int


def lineage(make: Callable[[int, int], Loader], lives: Sequence[Life]) -> list[list[int]]:
    """For each step that was kept, the samples that all ranks trained on, in the order of ranks."""
    found: list[list[int]] = []
    saved: list[Any] = []
    for life in lives:
        loaders = [make(rank, life.ranks) for rank in range(life.ranks)]
        positions = [Position("loader", loader) for loader in loaders]
        for rank, position in enumerate(positions if saved else ()):
            position.restore(json.loads(json.dumps(saved)), rank, life.ranks)
        for step in range(life.steps):
            if step == life.kept:
                saved = [position.capture() for position in positions]
            batches = [loader.batch() for loader in loaders]
            if step < life.kept:
                found.append([sample for batch in batches for sample in batch])
        if life.steps == life.kept:
            saved = [position.capture() for position in positions]
        for loader in loaders:
            loader.close()
    return found


def missed_and_doubled(steps: Sequence[Sequence[int]], samples: int) -> tuple[int, int]:
    """Over the epochs that were completed; and what the one after them has twice."""
    flat = [sample for step in steps for sample in step]
    missed = doubled = 0
    for start in range(0, len(flat), samples):
        epoch = flat[start : start + samples]
        doubled += len(epoch) - len(set(epoch))
        if len(epoch) == samples:
            missed += samples - len(set(epoch))
    return missed, doubled
