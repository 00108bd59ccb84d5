"""``TokenLoader``: batches of tokens, in an order that neither kills nor another number of ranks change (docs/data.md)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np
import torch
import torch.distributed as dist

from penstock.worker import contract
from penstock.worker.data.errors import DataDamaged, DataError, OtherData
from penstock.worker.data.index import Index, chunk_fault
from penstock.worker.data.order import Numbers, Order
from penstock.worker.data.place import Last, Place, cut, following, share
from penstock.worker.data.reading import Processes, Reader, Source, Threaded, fetched, open_folder

_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Options:
    """What is seldom changed."""

    last: Last = "carry"  # what fills no batch at an epoch's end: begins the next epoch's first one, or "drop"
    uneven: Literal["refuse", "spread"] = "refuse"  # what a world size that does not divide the batch is answered
    window: int = 4  # chunks that are shuffled into each other
    workers: int = 0  # processes that read; 0: one thread of this process
    ahead: int = 2  # batches that are read before they are asked for
    dtype: torch.dtype = torch.int64


class TokenLoader:
    """An endless iterator over this rank's rows of each global batch: tensors of (rows, block_size).

    ``batch`` is the global batch, in samples of ``block_size`` tokens, and does not change with the number of ranks.
    ``ranks`` is (rank, world size) among those that read different data; torch.distributed's, or the launcher's, where
    none is given. Hand it to Checkpointer as ``loader=``: a sample counts once its batch was handed out, read ahead or
    not. ``ids`` are the numbers of the samples in the batch that was handed out last.
    """

    def __init__(
        self,
        folder: str,
        *,
        block_size: int,
        batch: int,
        seed: int = 0,
        shuffle: bool = True,
        ranks: tuple[int, int] | None = None,
        options: Options = Options(),
    ) -> None:
        if min(block_size, batch, options.window) < 1 or seed < 0:
            raise DataError("block_size, batch and window are at least 1, seed at least 0")
        self.rank, self.world_size = ranks or _ranks()
        self.batch = batch
        self.options = options
        self._folder = folder
        index = open_folder(folder)
        sizes = index.samples(block_size)
        self._order = Order(sizes, seed=seed, shuffle=shuffle, window=options.window)
        self.samples = self._order.samples
        if self.samples < (batch if options.last == "drop" else 1):
            raise DataError(
                f"{folder} has {self.samples} samples of {block_size} tokens, too few for a batch of {batch}"
            )
        self._check_ranks()
        if self.rank == 0 and not fetched(folder):
            _check_chunks(index)
        self._identity = _identity(index, block_size, self.samples, (seed, shuffle, options.window))
        self._index = index
        self._reader = Reader(folder, index, block_size, options.dtype)
        self._place = Place()
        self._planned: deque[tuple[Numbers, Place]] = deque()
        self._source: Source | None = None
        self.ids: Numbers = np.arange(0)

    @property
    def epoch(self) -> int:
        """Of the batch that comes next, or of its beginning where it ends one epoch and begins another."""
        spans, _ = following(self._place, self.batch, self.samples, self.options.last)
        return spans[0][0]

    @property
    def rows(self) -> int:
        """How many samples of each batch are this rank's."""
        first, end = share(self.batch, self.rank, self.world_size)
        return end - first

    @property
    def weight(self) -> float:
        """1, but where slices are uneven: times this, the mean loss of each rank averages to that of the batch."""
        return self.rows * self.world_size / self.batch

    def steps(self, epochs: int = 1) -> int:
        """How many batches these epochs give."""
        if self.options.last == "drop":
            return epochs * (self.samples // self.batch)
        return epochs * self.samples // self.batch

    # ----------------------------------------------------------------------------------------------------- batches

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> torch.Tensor:
        if self._source is None:
            self._source = self._begin()
        tokens = self._source.next()
        self.ids, self._place = self._planned.popleft()
        return tokens

    def _begin(self) -> Source:
        plan, options = self._plan(), self.options
        if options.workers:
            return Processes(self._reader, plan, options.ahead, options.workers)
        return Threaded(self._reader, plan, options.ahead)

    def _plan(self) -> Iterator[Numbers]:
        """The samples of this rank, batch by batch. What is planned is remembered until it is handed out."""
        place = self._place
        bounds = share(self.batch, self.rank, self.world_size)
        while True:
            spans, place = following(place, self.batch, self.samples, self.options.last)
            ids = np.concatenate([self._order.take(*span) for span in cut(spans, *bounds)])
            self._planned.append((ids, place))
            yield ids

    def close(self) -> None:
        """Stop reading ahead. Iterating again goes on where it was."""
        source, self._source = self._source, None
        self._planned.clear()
        if source is not None:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---------------------------------------------------------------------------------------------------- position

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank: how far all of them are, and in which data."""
        return {"format": _FORMAT, **asdict(self._place), "of": self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises OtherData where the position is one in other data; the first difference is named."""
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise OtherData(f"the checkpoint's data position is not one of TokenLoader: {str(state)[:80]}")
        if fault := self._difference(state["of"]):
            raise OtherData(f"{self._folder} is not what the checkpoint was trained on: {fault}")
        self.close()
        self._place = Place(int(state["epoch"]), int(state["sample"]))

    def load_resharded(self, states: Sequence[dict[str, Any]], rank: int, world_size: int) -> None:
        """What other ranks, of another number, said. ``rank`` is among all ranks, which may be more than read data."""
        for number, state in enumerate(states):
            if state != states[0]:
                raise OtherData(f"rank {number} was at another place in the data than rank 0 when they were saved")
        self.load_state_dict(states[0])

    def _difference(self, theirs: dict[str, Any]) -> str:
        for key, mine in self._identity.items():
            if key != "digests" and theirs.get(key) != mine:
                return f"{key.replace('_', ' ')} was {theirs.get(key)}, and is {mine}"
        for (start, stop), old, new in zip(
            self._index.ranges(), theirs["digests"], self._identity["digests"], strict=True
        ):
            if old != new:
                which = f"chunk {start}" if stop == start + 1 else f"one of the chunks {start} to {stop - 1}"
                return f"{which} ({self._index.chunks[start].name}) is another"
        return ""

    def _check_ranks(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise DataError(f"rank {self.rank} is none of {self.world_size}")
        if self.batch < self.world_size:
            raise DataError(f"a batch of {self.batch} leaves some of {self.world_size} ranks without a sample")
        if self.batch % self.world_size and self.options.uneven == "refuse":
            raise DataError(
                f"a batch of {self.batch} cannot be divided evenly among {self.world_size} ranks",
                hint='Choose a batch that every number of ranks divides, or Options(uneven="spread") and weigh '
                "each rank's loss with loader.weight.",
            )


def _ranks() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    said = contract.current()
    return said.rank, said.world_size


def _check_chunks(index: Index) -> None:
    for chunk in index.chunks:
        if fault := chunk_fault(index, chunk):
            raise DataDamaged(f"{index.folder}: {chunk.name}: {fault}")


def _identity(index: Index, block_size: int, samples: int, order: tuple[int, bool, int]) -> dict[str, Any]:
    seed, shuffle, window = order
    return {
        "block_size": block_size,
        "seed": seed,
        "shuffle": shuffle,
        "window": window,
        "tokens": index.tokens,
        "samples": samples,
        "chunks": len(index.chunks),
        "digests": index.digests(),
    }
