"""The copy that the loop waits for: from the tensors into one buffer, which is allocated and touched once.

The buffer is laid out as the file will be, so that the writer needs no second copy. It begins when the copy is done: one that
follows it slows both (1 GiB on a host with two cores: durable after 1.53 times a plain write instead of 1.23).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from penstock.worker.checkpoint.layout import Layout
from penstock.worker.checkpoint.memory import Bytes, aligned, touch
from penstock.worker.checkpoint.tensors import DTYPES, as_bytes, is_flat
from penstock.worker.checkpoint.writing import Segment, Source, whole

_SHARE: Final = 8 << 20  # bytes that a thread copies at a time


@dataclass(frozen=True, slots=True)
class Run:
    """Elements ``begin .. end`` of a tensor, where its memory is one run; of any other the first Run is all of it."""

    index: int
    view: torch.Tensor
    begin: int
    end: int


@dataclass(slots=True)
class Share:
    """What a thread copies at a time: many small tensors together, of a large one a part."""

    runs: list[Run]


class Staging:
    """One rank's buffer, for saves of one layout after the other. Pinned where tensors come from a GPU.

    ``threads`` is how many cores the copy may use: those of the loop, which waits for it.
    """

    def __init__(self, layout: Layout, pinned: bool, threads: int = 1) -> None:
        self.layout = layout
        # Between the processors' own memory a copy into small pages is the steadier one (benchmarks/README.md, part D).
        self.buffer = aligned(layout.size, huge=pinned)
        touch(self.buffer)
        self._pinned = pinned and _register(self.buffer)
        self.views = [
            torch.from_numpy(self.buffer[start : start + box.nbytes]).view(DTYPES[box.dtype]).view(box.shape)
            if box.nbytes
            else None
            for box, start in zip(layout.boxes, layout.starts, strict=True)
        ]
        self._threads = threads
        self._shares = _shares(self.views)
        self._pool = ThreadPoolExecutor(max(1, threads - 1), "penstock-checkpoint-copy")

    def fits(self, layout: Layout) -> bool:
        return layout == self.layout

    def source(self) -> Source:
        return whole(self.buffer, self.layout.size)

    def copy(self, tensors: Sequence[torch.Tensor], header: bytes) -> None:
        """Returns when every byte is here. ``tensors`` come in the layout's order."""
        self.buffer[: len(header)] = np.frombuffer(header, np.uint8)
        if all(tensor.device.type == "cpu" for tensor in tensors):
            self._copy_here(tensors)
        else:
            for view, tensor in zip(self.views, tensors, strict=True):
                if view is not None:
                    view.copy_(tensor, non_blocking=True)
            torch.cuda.current_stream().synchronize()

    def _copy_here(self, tensors: Sequence[torch.Tensor]) -> None:
        """Each thread takes the next share until none is left, so that a core that is slowed down holds nobody up."""
        shares = iter(self._shares)

        @torch.no_grad()
        def work() -> None:
            for share in shares:
                for run in share.runs:
                    tensor = tensors[run.index]
                    if is_flat(tensor):
                        run.view.view(-1)[run.begin : run.end].copy_(tensor.view(-1)[run.begin : run.end])
                    elif not run.begin:
                        run.view.copy_(tensor)

        others = [self._pool.submit(work) for _ in range(min(self._threads, len(self._shares)) - 1)]
        try:
            work()
        finally:
            wait(others)
        for other in others:
            other.result()

    def close(self) -> None:
        self._pool.shutdown()
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self.buffer.ctypes.data)  # type: ignore[no-untyped-call]  # torch has no type for it
            self._pinned = False


def _shares(views: Sequence[torch.Tensor | None]) -> list[Share]:
    shares: list[Share] = []
    room = 0
    for index, view in enumerate(views):
        begin, count = 0, 0 if view is None else view.numel()
        while view is not None and begin < count:
            width = view.element_size()
            if room < width:
                shares.append(Share([]))
                room = _SHARE
            end = min(count, begin + room // width)
            shares[-1].runs.append(Run(index, view, begin, end))
            room -= (end - begin) * width
            begin = end
    return shares


def _register(buffer: Bytes) -> bool:
    """Whether CUDA has pinned the buffer; without that the copy is slower, and as right."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch has no type for it
    return int(runtime.cudaHostRegister(buffer.ctypes.data, buffer.nbytes, 0)) == 0


def streamed(layout: Layout, tensors: Sequence[torch.Tensor], header: bytes) -> Source:
    """The file's bytes straight from the tensors, for a save that the loop waits for: no buffer of their size."""
    first = np.frombuffer(header, np.uint8)
    segments = [Segment(len(first), lambda: first)]
    for tensor, box in zip(tensors, layout.boxes, strict=True):
        if box.nbytes:
            segments.append(Segment(box.nbytes, _Once(tensor)))
    return Source(tuple(segments), twice=all(is_flat(tensor) for tensor in tensors))


class _Once:
    """A tensor's bytes on the host. Asked for chunk by chunk, it is fetched once, and let go by its last chunk."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.fetched: Bytes | None = None

    def __call__(self) -> Bytes:
        if is_flat(self.tensor):
            return as_bytes(self.tensor)
        if self.fetched is None:
            self.fetched = as_bytes(self.tensor.resolve_conj().resolve_neg().cpu().contiguous())
        return self.fetched
