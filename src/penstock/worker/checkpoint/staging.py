"""The copy that the loop waits for: from the tensors into one buffer, which is allocated and touched once.

The buffer is laid out as the file will be, so that the writer needs no second copy, and follows the first one closely.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from penstock.worker.checkpoint.layout import Layout
from penstock.worker.checkpoint.memory import Bytes, aligned, touch
from penstock.worker.checkpoint.tensors import DTYPES, as_bytes, is_flat
from penstock.worker.checkpoint.writing import Segment, Source, Staged, whole


class Staging:
    """One rank's buffer, for saves of one layout after the other. Pinned where tensors come from a GPU."""

    def __init__(self, layout: Layout, pinned: bool) -> None:
        self.layout = layout
        self.buffer = aligned(layout.size)
        touch(self.buffer)
        self._pinned = pinned and _register(self.buffer)
        self.views = [
            torch.from_numpy(self.buffer[start : start + box.nbytes]).view(DTYPES[box.dtype]).view(box.shape)
            if box.nbytes
            else None
            for box, start in zip(layout.boxes, layout.starts, strict=True)
        ]

    def fits(self, layout: Layout) -> bool:
        return layout == self.layout

    def source(self, staged: Staged) -> Source:
        return whole(self.buffer, self.layout.size, staged)

    def copy(self, tensors: Sequence[torch.Tensor], header: bytes, staged: Staged) -> None:
        """Returns when every byte is here. ``tensors`` come in the layout's order."""
        try:
            self.buffer[: len(header)] = np.frombuffer(header, np.uint8)
            on_host = all(tensor.device.type == "cpu" for tensor in tensors)
            for view, tensor, start, box in zip(
                self.views, tensors, self.layout.starts, self.layout.boxes, strict=True
            ):
                if view is not None:
                    view.copy_(tensor, non_blocking=not on_host)
                    if on_host:
                        staged.reach(start + box.nbytes)
            if not on_host:
                torch.cuda.current_stream().synchronize()
            staged.reach(self.layout.size, complete=True)
        except BaseException as error:
            staged.fail(error)
            raise

    def close(self) -> None:
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self.buffer.ctypes.data)  # type: ignore[no-untyped-call]  # torch has no type for it
            self._pinned = False


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
    lanes = 2 if all(is_flat(tensor) for tensor in tensors) else 1
    return Source(tuple(segments), None, lanes)


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
