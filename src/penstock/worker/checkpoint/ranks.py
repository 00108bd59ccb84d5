"""What the ranks of one training agree on: the series of ids, which checkpoint to load, at which step to save.

A group of its own on gloo: nothing of it meets the training's collectives, and no GPU is needed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist

_T = TypeVar("_T")
_PATIENCE: Final = timedelta(minutes=30)


class Ranks:
    """All ranks of the process group that is initialised; this process alone where none is."""

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if several else 0
        self.world_size = dist.get_world_size() if several else 1
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE) if several else None
        self._flags: torch.Tensor | None = None
        self._pending: Any = None

    def first(self, value: _T) -> _T:
        """What rank 0 says."""
        if self._group is None:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=self._group)
        said: _T = box[0]
        return said

    def all(self, value: _T) -> list[_T]:
        if self._group is None:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def any_of(self, flags: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which flags any rank had set at its call before this one.

        A step late, so that nobody waits: the sum travels while the step is computed. Every rank must call it as often.
        """
        if self._group is None:
            return flags
        before = (False,) * len(flags)
        if self._pending is not None:
            self._pending.wait()
            assert self._flags is not None
            before = tuple(bool(flag) for flag in self._flags.tolist())
        self._flags = torch.tensor(flags, dtype=torch.uint8)
        self._pending = dist.all_reduce(self._flags, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return before

    def close(self) -> None:
        if self._pending is not None:
            try:
                self._pending.wait(timedelta(seconds=10))
            except RuntimeError:  # a rank is gone: there is nothing left to agree on
                pass
            self._pending = None
        if self._group is not None and dist.is_initialized():
            # While Python still stands: a group that outlives its script's destroy_process_group() ends in an abort.
            dist.destroy_process_group(self._group)
        self._group = self._flags = None
