"""In which order the samples of an epoch come: a function of (seed, epoch) alone, whoever reads, and on however many ranks.

Chunks are shuffled; then samples within windows of a few chunks, so that reads stay near each other and mixing goes
further than one chunk. NumPy promises the stream of a bit generator, not what ``permutation`` makes of it: so random
numbers are drawn as they come and sorted, and an order is the same with another NumPy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
_KEPT: Final = 3  # windows whose order is held: a batch may straddle two, and a prefetch run ahead into a third


def shuffled(count: int, *key: int) -> Numbers:
    """0 .. count-1 in an order that only the key decides."""
    draws = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(draws, kind="stable")


class Order:
    """``sizes``: how many samples each chunk has. Samples are numbered through all chunks, from 0."""

    def __init__(self, sizes: Sequence[int], *, seed: int, shuffle: bool, window: int) -> None:
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._begins = np.concatenate(([0], np.cumsum(self._sizes)))
        self.samples = int(self._begins[-1])
        self._seed = seed
        self._shuffle = shuffle
        self._window = window
        self._epoch = -1
        self._chunks = np.arange(0)
        self._ends = np.arange(0)  # of each window, in samples of the epoch
        self._held: OrderedDict[tuple[int, int], Numbers] = OrderedDict()

    def take(self, epoch: int, start: int, stop: int) -> Numbers:
        """The samples at places ``start`` .. ``stop`` of the epoch."""
        if not self._shuffle:
            return np.arange(start, stop, dtype=np.int64)
        self._turn_to(epoch)
        parts = []
        at = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            begin = int(self._ends[at - 1]) if at else 0
            end = min(stop, int(self._ends[at]))
            parts.append(self._in_window(epoch, at)[start - begin : end - begin])
            start, at = end, at + 1
        return np.concatenate(parts) if parts else np.arange(0, dtype=np.int64)

    def _turn_to(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        self._chunks = shuffled(len(self._sizes), self._seed, epoch)
        firsts = np.arange(0, len(self._sizes), self._window)
        self._ends = np.cumsum(np.add.reduceat(self._sizes[self._chunks], firsts))
        self._epoch = epoch

    def _in_window(self, epoch: int, number: int) -> Numbers:
        found = self._held.get((epoch, number))
        if found is None:
            chunks = self._chunks[number * self._window : (number + 1) * self._window]
            members = np.concatenate([np.arange(self._begins[c], self._begins[c + 1]) for c in chunks])
            found = members[shuffled(len(members), self._seed, epoch, number + 1)]
            self._held[epoch, number] = found
            while len(self._held) > _KEPT:
                self._held.popitem(last=False)
        return found
