"""Why our own order: litdata's iteration under the conformance of loaders. What it passes, and where it does not.

Should one of the tests of what it does not do fail with a newer litdata, docs/data.md has a table to mend.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from litdata import StreamingDataLoader, StreamingDataset, TokensLoader
from litdata.utilities.env import _DistributedEnv

from tests.worker.data.conformance import Life, lineage, missed_and_doubled
from tests.worker.data.conftest import BLOCK, make_data

SAMPLES, BATCH = 960, 12
EPOCH = SAMPLES // BATCH


class Theirs:
    """One rank's loader; several in one process, which litdata takes for a rank each."""

    here = (1, 0)  # world size and rank of whoever is asked next

    def __init__(self, folder: str, rank: int, ranks: int, workers: int = 0, drop_last: bool | None = True) -> None:
        self.where = (ranks, rank)
        self._be()
        dataset = StreamingDataset(
            folder, item_loader=TokensLoader(block_size=BLOCK), shuffle=True, seed=5, drop_last=drop_last
        )
        self.loader = StreamingDataLoader(dataset, batch_size=BATCH // ranks, num_workers=workers)
        self._batches: Iterator[Any] | None = None

    def _be(self) -> None:
        Theirs.here = self.where

    def batch(self) -> list[int]:
        self._be()
        if self._batches is None:
            self._batches = iter(self.loader)
        try:
            tokens = next(self._batches)
        except StopIteration:
            self._batches = iter(self.loader)
            tokens = next(self._batches)
        return [int(sample) for sample in tokens[:, 0]]

    def state_dict(self) -> Any:
        self._be()
        return self.loader.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self._be()
        self.loader.load_state_dict(state)

    def load_resharded(self, states: list[Any], rank: int, world_size: int) -> None:
        self.load_state_dict(states[min(rank, len(states) - 1)])

    def close(self) -> None:
        self._batches = None


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(_DistributedEnv, "detect", classmethod(lambda _cls: _DistributedEnv(*Theirs.here, 1)))
    return make_data(tmp_path, samples=SAMPLES, per_chunk=40)


def run(folder: str, *lives: Life, **more: Any) -> list[list[int]]:
    return lineage(lambda rank, ranks: Theirs(folder, rank, ranks, **more), lives)


def test_within_an_epoch_it_goes_on_with_another_number_of_ranks(folder: str) -> None:
    steps = run(folder, Life(2, 10, 7), Life(3, 20, 13), Life(1, EPOCH - 20, EPOCH - 20))
    assert missed_and_doubled(steps, SAMPLES) == (0, 0)
    assert steps == run(folder, Life(2, EPOCH, EPOCH))


def test_the_next_epoch_depends_on_the_number_of_ranks(folder: str) -> None:
    whole = run(folder, Life(2, EPOCH + 5, EPOCH + 5))
    resized = run(folder, Life(2, 10, 10), Life(1, EPOCH - 5, EPOCH - 5))
    assert [sorted(step) for step in resized[EPOCH:]] != [sorted(step) for step in whole[EPOCH:]]


def test_between_two_workers_turns_samples_are_doubled(folder: str) -> None:
    steps = run(folder, Life(2, 11, 11), Life(3, EPOCH - 11, EPOCH - 11), workers=2)
    missed, doubled = missed_and_doubled(steps, SAMPLES)
    assert missed == doubled == BATCH


def test_it_refuses_to_go_on_alone_unless_it_was_told_to_drop(folder: str) -> None:
    with pytest.raises(ValueError, match="drop_last"):
        run(folder, Life(2, 10, 10), Life(1, 1, 1), drop_last=None)
