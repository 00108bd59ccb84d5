"""Samples by number, through litdata: its storage, its download and cache of chunks, its TokensLoader.

Its own iteration is not used: there the order depends on the number of ranks, and a position between its workers' turns
is not resumed (docs/data.md says more, and a test shows it).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch

try:
    from litdata import StreamingDataset, TokensLoader
    from litdata.streaming.sampler import ChunkedIndex
except ImportError as missing:
    raise ImportError("penstock.data reads through litdata: pip install 'penstock[data]'") from missing

from penstock.worker.data.errors import DataDamaged, DataError
from penstock.worker.data.index import Index, chunk_fault, read_index
from penstock.worker.data.order import Numbers


def fetched(folder: str) -> bool:
    """Whether litdata brings the chunks from elsewhere into its cache: s3://..., or local:/a/shared/folder."""
    return "://" in folder or folder.startswith("local:")


def open_folder(folder: str) -> Index:
    """The index of a folder; of what is fetched, out of litdata's cache."""
    if not fetched(folder):
        return read_index(folder)
    try:
        dataset = StreamingDataset(folder, item_loader=TokensLoader(block_size=1))
        len(dataset)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{folder} cannot be opened: {error}") from error
    return read_index(str(dataset.input_dir.path))


class Reader:
    """Reads whole batches. It opens the data in the process that first reads, so that a worker can be handed one."""

    def __init__(self, folder: str, index: Index, block_size: int, dtype: torch.dtype) -> None:
        self._folder = folder
        self._index = index
        self._block_size = block_size
        self._dtype = dtype
        self._ends = np.cumsum(index.samples(block_size))
        self._local = not fetched(folder)
        self._seen: set[int] = set()
        self._opened: tuple[int, Any] | None = None

    def __getitems__(self, samples: Numbers) -> torch.Tensor:
        """One row a sample. Chunk by chunk, so that each is opened once for a batch."""
        rows = torch.empty((len(samples), self._block_size), dtype=self._dtype)
        out = rows.numpy()  # the same memory: filling it through NumPy costs half
        chunks = np.searchsorted(self._ends, samples, side="right")
        for row in np.argsort(chunks, kind="stable"):
            chunk = int(chunks[row])
            if chunk not in self._seen:
                self._check(chunk)
            out[row] = self._read(int(samples[row]), chunk)
        return rows

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _read(self, sample: int, chunk: int) -> np.ndarray[Any, Any]:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._open())
        try:
            found = self._opened[1][ChunkedIndex(index=sample, chunk_index=chunk)]
        except (OSError, ValueError, RuntimeError) as error:
            name = self._index.chunks[chunk].name
            raise DataDamaged(f"{self._folder}: {name} cannot be read: {error}") from error
        return np.asarray(found)

    def _open(self) -> Any:
        return StreamingDataset(self._folder, item_loader=TokensLoader(block_size=self._block_size))

    def _check(self, number: int) -> None:
        """Once a chunk, before it is mapped: a short one would be read past its end."""
        if self._local and (fault := chunk_fault(self._index, self._index.chunks[number])):
            raise DataDamaged(f"{self._folder}: {self._index.chunks[number].name}: {fault}")
        self._seen.add(number)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class Source(Protocol):
    """Batches in the order of the plan that it was given, read ahead."""

    def next(self) -> torch.Tensor: ...
    def close(self) -> None: ...


class Threaded:
    """One thread of this process reads ahead: little is copied, and nothing to start."""

    def __init__(self, reader: Reader, plan: Iterator[Numbers], ahead: int) -> None:
        self._reader = reader
        self._plan = plan
        self._pool = ThreadPoolExecutor(1, "penstock-data")
        self._under_way: deque[Future[torch.Tensor]] = deque()
        for _ in range(max(1, ahead)):
            self._ask()

    def _ask(self) -> None:
        self._under_way.append(self._pool.submit(self._reader.__getitems__, next(self._plan)))

    def next(self) -> torch.Tensor:
        found = self._under_way[0].result()
        self._under_way.popleft()
        self._ask()
        return found

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Processes:
    """torch's DataLoader, whose workers read whole batches and whose order is that of the plan."""

    def __init__(self, reader: Reader, plan: Iterator[Numbers], ahead: int, workers: int) -> None:
        planned: Any = plan  # an iterator of batches; nobody asks for its length
        dataset: Any = reader  # whatever has __getitems__
        loader: torch.utils.data.DataLoader[torch.Tensor] = torch.utils.data.DataLoader(
            dataset,
            batch_sampler=planned,
            num_workers=workers,
            prefetch_factor=max(1, -(-ahead // workers)),
            collate_fn=_same,
        )
        self._batches: Any = iter(loader)

    def next(self) -> torch.Tensor:
        found: torch.Tensor = next(self._batches)
        return found

    def close(self) -> None:
        self._batches = None  # ends its workers


def _same(batch: Any) -> Any:
    return batch
