"""What the time of a step was spent on, by the host's clock, and on a GPU by events of its stream. Nothing here waits for the GPU.

The host's clock stands still while the garbage collector runs, while a collective is waited for and while a checkpoint is
taken: whatever phase that happens in, it is counted once, as what it is. On a GPU the phases are what lies between
events on the compute stream: they are read some steps later, when they have passed.
"""

from __future__ import annotations

import gc
from collections import deque
from time import perf_counter, time
from typing import Any

import torch

from penstock.worker import stalls
from penstock.worker.faults import Faults

WAITS = 8  # of a step, that are timed on the GPU; more of them cost more than they tell


_cuda: Any = torch.cuda


class Row:
    """One step: seconds. ``marks``: of a GPU, until they have passed."""

    __slots__ = ("at", "checkpoint", "comm", "compute", "data", "gc", "grad_norm", "loss", "marks", "optimizer", "step",
                 "tokens", "total")  # fmt: skip

    def __init__(self) -> None:
        self.step = 0
        self.at = self.total = self.data = self.compute = self.comm = self.optimizer = self.checkpoint = self.gc = 0.0
        self.tokens = 0
        self.loss: Any = None
        self.grad_norm: Any = None
        self.marks: Marks | None = None


class Marks:
    """Events of one step on the compute stream: pairs of begin and end by phase, and its end."""

    __slots__ = ("compute", "end", "optimizer", "waits")

    def __init__(self) -> None:
        self.compute: list[tuple[Any, Any, Any]] = []  # begin, end of what is local, end with what was waited for
        self.waits: list[tuple[Any, Any]] = []
        self.optimizer: list[tuple[Any, Any]] = []
        self.end: Any = None


class Phases:
    """Times the loop of one thread. ``cuda``: its model lives on a GPU."""

    def __init__(self, *, cuda: bool) -> None:
        self.row = Row()
        self.rows: deque[Row] = deque(maxlen=1000)  # ended, and not told yet
        self.steps = 0
        self.cuda = cuda
        self.faults: Faults | None = None  # of a game day: worker/faults.py
        self._stolen = 0.0
        self._began = perf_counter()
        self._checkpoint = stalls.waited["checkpoint"]
        self._gc_at = 0.0
        self._forward: float | None = None
        self._local: float | None = None
        self._optimizer = 0.0
        self._marks = Marks()
        self._forward_mark: Any = None
        self._local_mark: Any = None
        self._optimizer_mark: Any = None
        self._last_end: Any = None
        self._free: list[Any] = []
        gc.callbacks.append(self._collected)

    def close(self) -> None:
        if self._collected in gc.callbacks:
            gc.callbacks.remove(self._collected)

    def own(self) -> float:
        return perf_counter() - self._stolen - stalls.waited["checkpoint"]

    # -- what happens in a step

    def _collected(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._gc_at = perf_counter()
        else:
            took = perf_counter() - self._gc_at
            self.row.gc += took
            self._stolen += took

    def fetched(self, began: float) -> None:
        """A batch was waited for since ``began`` (``own``)."""
        took = self.own() - began
        self.row.data += took
        self._stolen += took

    def waited(self, began: float, mark: Any) -> None:
        """A collective was waited for."""
        took = self.own() - began
        self.row.comm += took
        self._stolen += took
        if mark is not None:
            self._marks.waits.append((mark, self.mark()))

    def wait_mark(self) -> Any:
        return self.mark() if self.cuda and len(self._marks.waits) < WAITS else None

    def forward(self) -> None:
        if self._forward is None:
            self._forward = self.own()
            if self.cuda:
                self._forward_mark = self.mark()

    def local_end(self) -> None:
        """All gradients of this rank are computed; others' may be waited for yet."""
        self._local = self.own()
        if self.cuda:
            self._local_mark = self.mark()

    def backward_end(self) -> None:
        if self._forward is None:
            return
        end = self.own()
        local = end if self._local is None else self._local
        self.row.compute += local - self._forward
        self.row.comm += end - local
        if self.cuda:
            after = self.mark()
            before = after if self._local_mark is None else self._local_mark
            self._marks.compute.append((self._forward_mark, before, after))
        self._forward = self._local = self._forward_mark = self._local_mark = None

    def optimizer_begins(self) -> bool:
        """Whether the end of a backward pass was not seen before it."""
        missed = self._forward is not None
        if missed:
            self.backward_end()
        self._optimizer = self.own()
        if self.cuda:
            self._optimizer_mark = self.mark()
        return missed

    def optimizer_ends(self, *, last: bool) -> None:
        self.row.optimizer += self.own() - self._optimizer
        if self.cuda:
            end = self.mark()
            self._marks.optimizer.append((self._optimizer_mark, end))
            self._marks.end = end
        if last:
            self._end()

    def _end(self) -> None:
        row, now = self.row, perf_counter()
        row.step, row.at, row.total = self.steps, time(), now - self._began
        row.checkpoint = stalls.waited["checkpoint"] - self._checkpoint
        if self.cuda:
            row.marks, self._marks = self._marks, Marks()
        self.rows.append(row)
        self.row = Row()
        self.steps += 1
        self._began, self._checkpoint = now, stalls.waited["checkpoint"]

    # -- events of the GPU

    def mark(self) -> Any:
        event = self._free.pop() if self._free else _cuda.Event(enable_timing=True)
        event.record()
        return event

    def ended(self) -> list[Row]:
        """Steps whose times are known by now, oldest first; each is given once."""
        found = []
        while self.rows and self._passed(self.rows[0].marks):
            row = self.rows.popleft()
            if row.marks is not None:
                self._measure(row, row.marks)
                row.marks = None
            found.append(row)
        return found

    def _passed(self, marks: Marks | None) -> bool:
        return marks is None or bool(marks.end.query())

    def _measure(self, row: Row, marks: Marks) -> None:
        """The GPU's times in place of the host's, which runs ahead of it. What was waited for while the GPU had work is not
        exposed.
        """
        before, self._last_end = self._last_end, marks.end
        waits = [a.elapsed_time(b) / 1e3 for a, b in marks.waits]
        inside = sum(took for took, (a, _) in zip(waits, marks.waits, strict=True) if _within(marks, a))
        local = sum(a.elapsed_time(b) for a, b, _ in marks.compute) / 1e3
        row.comm = sum(b.elapsed_time(c) for _, b, c in marks.compute) / 1e3 + sum(waits)
        row.compute = max(local - inside, 0.0)
        row.optimizer = sum(a.elapsed_time(b) for a, b in marks.optimizer) / 1e3
        if before is not None:
            row.total = before.elapsed_time(marks.end) / 1e3
            idle = max(row.total - row.compute - row.comm - row.optimizer, 0.0)
            row.data = min(row.data, idle)
            self._free.append(before)
        spent = [mark for pair in marks.compute for mark in pair] + [mark for pair in marks.waits for mark in pair]
        spent += [mark for pair in marks.optimizer for mark in pair]
        self._free += [mark for mark in dict.fromkeys(spent) if mark is not marks.end]


def _within(marks: Marks, mark: Any) -> bool:
    return any(a.elapsed_time(mark) >= 0 and mark.elapsed_time(b) >= 0 for a, b, _ in marks.compute)
