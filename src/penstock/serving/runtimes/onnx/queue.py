"""The line before one model version: who waits, who runs, who is answered.

One batch is out at a time; the next is taken when its answer has come. A full batch goes at once. A smaller one after a
look around: what is in the sockets already is read first (``PASSES`` rounds of the event loop, no timer). Without it the
first of sixteen callers to come back is computed alone, and the fifteen others wait for that. Requests whose shapes differ
beyond the first axis wait in lanes of their own, the lane of the oldest first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.serving.runtimes.onnx.errors import Refused, invalid, unavailable
from penstock.serving.runtimes.onnx.plan import Policy, take
from penstock.serving.runtimes.onnx.statistics import Statistics, now_ms
from penstock.serving.runtimes.onnx.tensors import Tensor, TensorSpec, rows_of

log = logging.getLogger("penstock.onnx")
SWEEP_S = 0.1  # how late a time-out may be told
PASSES = 3
_SOLE = "alone"

Lane = tuple[Any, ...] | str


@dataclass(slots=True)
class Timing:
    """Nanoseconds of one answered request, for the trace's header."""

    queue: int
    compute: tuple[int, int, int]
    rows: int


@dataclass(slots=True, eq=False)
class Waiting:
    """One request. ``tensors`` in the model's order; ``gone``: its caller has hung up."""

    tensors: Sequence[Tensor]
    outputs: tuple[str, ...]
    deadline: float
    gone: Callable[[], bool]
    answer: asyncio.Future[tuple[list[Tensor], Timing]]
    rows: int
    since_ns: int = field(default_factory=time.perf_counter_ns)
    begun_ns: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """What the queue needs of an executor."""

    send: Callable[[Sequence[Sequence[Any]], Sequence[tuple[int, ...]], Sequence[str]], None]
    tensors: Callable[[Mapping[str, Any]], list[Tensor]]
    kill: Callable[[], None]


class Queue:
    """``open`` gives it an executor that is free; ``crashed`` takes it away."""

    def __init__(self, policy: Policy, limits: tuple[int, int, float], statistics: Statistics, name: str) -> None:
        self.policy = policy
        self.most_waiting, self.most_bytes, self.patience = limits
        self.statistics = statistics
        self.name = name
        self.batching = False
        self.outputs: Sequence[TensorSpec] = ()
        self.waiting = 0
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[Lane, deque[Waiting]] = {}
        self._running: list[Waiting] = []
        self._run_since = 0.0
        self._send: Send | None = None
        self._looking = 0
        self._delayed: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self._running

    async def infer(
        self, tensors: Sequence[Tensor], outputs: tuple[str, ...], timeout: float, gone: Callable[[], bool]
    ) -> tuple[list[Tensor], Timing]:
        """Raises Refused: the line is full, the time is over, the model said no."""
        if self.waiting >= self.most_waiting:
            self.statistics.failed("refused", 0)
            raise unavailable(f"{self.name}: {self.waiting} requests wait already")
        rows = tensors[0].shape[0] if self.batching and tensors else 1
        mine = Waiting(tensors, outputs, self._loop.time() + timeout, gone, self._loop.create_future(), rows)
        self._put(mine)
        if not self._running:
            self._soon()
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        return await mine.answer

    def open(self, send: Send) -> None:
        self._send = send
        self._next()

    def crashed(self, why: str) -> None:
        """The executor died. Of a batch each is tried again by itself, so that only the guilty one fails."""
        self._send = None
        batch, self._running = self._running, []
        self._again_or(batch, Refused(500, f"{self.name}: its process {why} while it computed this request"))

    def refuse_all(self, error: Refused) -> None:
        """Nobody will compute what waits."""
        for lane in self._lanes.values():
            for one in lane:
                self._fail(one, error, "failure")
        self._lanes.clear()
        self.waiting = 0

    def close(self) -> None:
        self._send = None
        for timer in (self._sweeper, self._delayed):
            if timer is not None:
                timer.cancel()

    def answered(self, message: Mapping[str, Any]) -> None:
        """The executor's word on the batch that ran."""
        batch, self._running = self._running, []
        if not batch:
            return
        if "error" in message:
            self._again_or(batch, Refused(message["status"], f"{self.name}: {message['error']}"))
        else:
            self._deal(batch, message)
        if self.waiting:
            self._soon()

    def _deal(self, batch: list[Waiting], message: Mapping[str, Any]) -> None:
        assert self._send is not None
        ns: tuple[int, int, int] = tuple(message["ns"])
        rows = sum(one.rows for one in batch)
        outputs = self._send.tensors(message)
        wrong = self._wrong(outputs, rows if len(batch) > 1 else None)
        if wrong is not None:
            if len(batch) > 1:
                log.warning("%s: %s; its requests run one by one from now on", self.name, wrong)
                self.batching = False
            self._again_or(batch, Refused(500, f"{self.name}: {wrong}"))
            return
        self.statistics.ran(rows, ns)
        self.statistics.last_ms = now_ms()
        sizes = [one.rows for one in batch]
        shares = [[out] for out in outputs] if len(batch) == 1 else [rows_of(out, sizes) for out in outputs]
        now = time.perf_counter_ns()
        for place, one in enumerate(batch):
            if one.answer.done():
                continue
            timing = Timing(one.begun_ns - one.since_ns, ns, rows)
            self.statistics.answered(one.rows, timing.queue, now - one.since_ns)
            one.answer.set_result(([share[place] for share in shares], timing))

    def _wrong(self, outputs: Sequence[Tensor], rows: int | None) -> str | None:
        """What of these answers is not as the model declares. ``rows``: the batch's, where it has several requests."""
        declared = {spec.name: spec for spec in self.outputs}
        for out in outputs:
            spec = declared[out.name]
            fits = len(out.shape) == len(spec.shape) and all(
                want in (-1, has) for want, has in zip(spec.shape, out.shape, strict=True)
            )
            if not fits:
                return f"its output {out.name} has shape {list(out.shape)}, it declares {list(spec.shape)}"
            if rows is not None and (not out.shape or out.shape[0] != rows):
                return f"its output {out.name} has shape {list(out.shape)} for a batch of {rows} rows"
        return None

    def _again_or(self, batch: list[Waiting], error: Refused) -> None:
        if len(batch) == 1:
            self._fail(batch[0], error, "invalid" if error.status < 500 else "failure")
            return
        for one in reversed(batch):
            if not one.answer.done():
                one.alone = True
                self._put(one, first=True)

    def _fail(self, one: Waiting, error: Refused, outcome: str) -> None:
        if not one.answer.done():
            self.statistics.failed(outcome, time.perf_counter_ns() - one.since_ns)
            one.answer.set_exception(error)

    def _put(self, one: Waiting, *, first: bool = False) -> None:
        lane = self._lane_of(one)
        line = self._lanes.get(lane)
        if line is None:
            line = self._lanes[lane] = deque()
        line.appendleft(one) if first else line.append(one)
        self.waiting += 1

    def _lane_of(self, one: Waiting) -> Lane:
        if one.alone or not self.batching:
            return _SOLE
        return tuple(tensor.shape[1:] for tensor in one.tensors)

    def _soon(self) -> None:
        """Run now what is enough for a batch; else look around first."""
        if self.waiting >= self.policy.most or not self.batching:
            self._looking = 0
            self._next()
        elif not self._looking:
            self._looking = PASSES
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        if not self._looking:
            return
        self._looking -= 1
        if self._looking:
            self._loop.call_soon(self._look)
        else:
            self._next()

    def _next(self) -> None:
        """Run what may run now."""
        while self._send is not None and not self._running and self.waiting:
            lane = min(self._lanes, key=lambda name: self._lanes[name][0].since_ns)
            line = self._lanes[lane]
            if not self._still_wanted(line[0]):
                self._drop(lane, 1)
                continue
            count = self._count(lane, line)
            if count == 0:
                self._wait(line[0])
                return
            self._run([one for one in self._drop(lane, count) if self._still_wanted(one)])

    def _count(self, lane: Lane, line: deque[Waiting]) -> int:
        if lane == _SOLE:
            return 1
        rows: list[int] = []
        size = total = 0
        for one in line:
            size += sum(len(tensor.content) for tensor in one.tensors)
            total += one.rows
            if rows and (total > self.policy.most or size > self.most_bytes):
                break
            rows.append(one.rows)
        waited = (time.perf_counter_ns() - line[0].since_ns) / 1e9
        if len(rows) < len(line):
            waited = self.policy.delay  # more wait than fit
        return take(rows, self.policy, waited)

    def _drop(self, lane: Lane, count: int) -> list[Waiting]:
        line = self._lanes[lane]
        taken = [line.popleft() for _ in range(count)]
        if not line:
            del self._lanes[lane]
        self.waiting -= count
        return taken

    def _still_wanted(self, one: Waiting) -> bool:
        if one.answer.done():
            return False
        if one.gone():
            self._fail(one, Refused(499, "the caller has hung up"), "gone")
            return False
        return True

    def _wait(self, oldest: Waiting) -> None:
        if self._delayed is not None:
            self._delayed.cancel()
        left = self.policy.delay - (time.perf_counter_ns() - oldest.since_ns) / 1e9
        self._delayed = self._loop.call_later(max(0.0005, left), self._next)

    def _run(self, batch: list[Waiting]) -> None:
        if not batch:
            return
        assert self._send is not None
        now = time.perf_counter_ns()
        for one in batch:
            one.begun_ns = now
        self._running = batch
        self._run_since = self._loop.time()
        wanted = batch[0].outputs if len(batch) == 1 else _union(batch)
        inputs, shapes = [], []
        rows = sum(one.rows for one in batch)
        for place, tensor in enumerate(batch[0].tensors):
            inputs.append([one.tensors[place].content for one in batch])
            shapes.append(tensor.shape if len(batch) == 1 else (rows, *tensor.shape[1:]))
        self._send.send(inputs, shapes, wanted)

    def _sweep(self) -> None:
        """Tell those whose time is over; end an executor that nobody waits for any more."""
        self._sweeper = None
        now = self._loop.time()
        late = Refused(504, f"{self.name}: no answer within the request's time")
        for one in [*self._running, *(one for line in self._lanes.values() for one in line)]:
            if now > one.deadline:
                self._fail(one, late, "timeout")
        hangs = self._running and now > self._run_since + 2 * self.patience
        if hangs and self._send is not None and all(one.answer.done() for one in self._running):
            log.error(
                "%s: one run has lasted %.0f s and nobody waits for it: its process is killed",
                self.name,
                now - self._run_since,
            )
            self._send.kill()
        for lane in list(self._lanes):
            kept = deque(one for one in self._lanes[lane] if not one.answer.done())
            self.waiting -= len(self._lanes[lane]) - len(kept)
            if kept:
                self._lanes[lane] = kept
            else:
                del self._lanes[lane]
        if not self.idle:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)


def _union(batch: list[Waiting]) -> tuple[str, ...]:
    """Every output that one of them wants; (): all."""
    first = batch[0].outputs
    if all(one.outputs == first for one in batch):
        return first
    if any(not one.outputs for one in batch):
        return ()
    return tuple(dict.fromkeys(name for one in batch for name in one.outputs))


def request_rows(tensors: Sequence[Tensor]) -> int:
    """The rows of a request to a model whose first axis is the batch's. Refuses inputs that disagree, and none at all."""
    rows = {tensor.shape[0] for tensor in tensors}
    if len(rows) != 1:
        raise invalid(f"the inputs' first axes differ: {sorted(rows)}")
    count = rows.pop()
    if count == 0:
        raise invalid("the inputs' first axis is 0: there is nothing to compute")
    return count
