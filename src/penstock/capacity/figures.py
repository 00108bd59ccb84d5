"""A pile of numbers of any size of which the exact mean and percentiles are wanted: what does not fit lies on disk.

Numbers are kept in sorted runs of a fixed length in one unnamed file. A percentile is found by halving the range of
possible values and counting, in each run by bisection, how many are not above: no run is ever read as a whole.
"""

from __future__ import annotations

import mmap
import struct
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import IO

RUN = 1 << 16  # numbers; half a mebibyte


class Figures:
    """Numbers from 0 up."""

    __slots__ = ("_file", "_latest", "_runs", "total")

    def __init__(self) -> None:
        self.total = 0.0
        self._latest = array("d")
        self._runs = 0
        self._file: IO[bytes] | None = None

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return self._runs * RUN + len(self._latest)

    def add(self, value: float) -> None:
        self.total += value
        self._latest.append(value)
        if len(self._latest) >= RUN:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __del__
        array("d", sorted(self._latest)).tofile(self._file)
        self._runs += 1
        self._latest = array("d")

    def mean(self) -> float:
        return self.total / len(self) if len(self) else 0.0

    def percentiles(self, *shares: float) -> list[float]:
        """Of each share ``sorted[int(share * n)]``, zero-based, as the golden results have it; 0 of nothing."""
        if self._file is None:
            ordered = sorted(self._latest)
            return [percentile(ordered, share) for share in shares]
        self._file.flush()
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as whole, memoryview(whole) as octets:
            numbers = octets.cast("d")
            views = [numbers[start:end] for start, end in pairwise(range(0, (self._runs + 1) * RUN, RUN))]
            runs: list[Sequence[float]] = [*views, sorted(self._latest)]
            try:
                found = [_nth(runs, min(int(share * len(self)), len(self) - 1)) for share in shares]
            finally:
                for view in (*views, numbers):
                    view.release()
        return found


def percentile(ordered: Sequence[float], share: float) -> float:
    """``ordered[int(share * n)]``, zero-based, as the golden results have it; 0 of nothing."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def _nth(runs: Sequence[Sequence[float]], n: int) -> float:
    """The n-th least of all, from 0. Doubles from 0 up are in the order of their bits taken as whole numbers."""
    low, high = 0, _bits(max(run[-1] for run in runs if len(run)))
    while low < high:
        middle = (low + high) // 2
        value = _double(middle)
        if sum(bisect_right(run, value) for run in runs) > n:
            high = middle
        else:
            low = middle + 1
    return _double(low)


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def _double(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
