"""``penstock.watch(model, optimizer, loader)``: one line, and the job tells what each of its steps was spent on.

It looks on from hooks that torch offers (forward, the end of backward, the optimizer's step) and from the loader's iterator; it
never waits for the GPU, starts no collective, and costs some tens of microseconds a step. What it says goes by the job's
report pipe in three events: ``steps``, ``counters`` and ``watched`` (docs/launch-contract.md). Outside a job it does nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import nn
from torch.autograd.variable import Variable

from penstock.worker import configured, stalls
from penstock.worker.contract import current
from penstock.worker.counting import Counts
from penstock.worker.faults import armed
from penstock.worker.phases import Phases, Row
from penstock.worker.report import channel, report, tell

_engine: Any = Variable._execution_engine  # noqa: SLF001 - as FSDP does: torch has no public way to be called at its end
_cuda: Any = torch.cuda
BATCH: Final = 20  # steps in an event
EVERY_S = 1.0  # not Final, nor the next: trials that last seconds are told of oftener (benchmarks/)
COUNT_S = 2.0
CONFIGURED: Final = (3, 100)  # steps after which the configuration is told: it settles in the first ones
AGAIN_S: Final = 300.0  # then again: what is kept of a long run has it in any case
NORM_BUDGET_S: Final = 40e-6  # a step, for the gradients' norm
NORM_LEAST: Final = 20  # steps between two
SHARD: Final = 1 << 19  # numbers of the parameters that one checksum covers
_COLUMNS: Final = ("total", "data", "compute", "comm", "optimizer", "checkpoint", "gc")


def watch(model: Any = None, optimizer: Any = None, loader: Any = None, *, checksum_every: int = 0) -> Watcher:
    """Time this loop's steps from now on. What comes back can be iterated in the loader's place, and need not be.

    ``optimizer``: its step ends a step; of several, the last one's. ``checksum_every``: each so many steps a part of the
    parameters is summed up, bit for bit, so that ranks that should hold the same can be compared; and again before the
    optimizer's next step, since nothing should change them in between.
    """
    found = channel()
    if found is None:
        return Watcher(loader, None)
    return Watcher(loader, _Loop(model, optimizer, loader, checksum_every))


class Watcher:
    """What ``watch`` gives back. ``active`` is False outside a job: then it does nothing."""

    def __init__(self, loader: Any, loop: _Loop | None) -> None:
        self._loader = loader
        self._loop = loop

    @property
    def active(self) -> bool:
        return self._loop is not None

    def __iter__(self) -> Iterator[Any]:
        if self._loop is None or self._loop.in_place:
            return iter(self._loader)
        return _Fetching(iter(self._loader), self._loop.phases)

    def __len__(self) -> int:
        return len(self._loader)

    def __bool__(self) -> bool:
        return True  # whether or not the loader has a length

    def loss(self, value: Any) -> None:
        """The loss of the step that is under way: a number, or a tensor, which is read later."""
        if self._loop is not None:
            self._loop.phases.row.loss = value.detach() if isinstance(value, torch.Tensor) else value

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Around a save that is not by ``penstock.checkpoint`` or ``torch.save``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            stalls.waited["checkpoint"] += time.perf_counter() - began

    def close(self) -> None:
        """Tell what is left, and look on no more."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None


class _Loop:
    """The hooks of one training loop, and what they tell."""

    def __init__(self, model: Any, optimizer: Any, loader: Any, checksum_every: int) -> None:
        optimizers = [_inner(one) for one in (optimizer if isinstance(optimizer, list | tuple) else [optimizer]) if one]
        self.model, self.optimizers, self.loader = model, optimizers, loader
        parameters = [p for group in optimizers for g in group.param_groups for p in g["params"]]
        if not parameters and isinstance(model, nn.Module):
            parameters = list(model.parameters())
        self.parameters = parameters
        self.phases = Phases(cuda=any(p.is_cuda for p in parameters))
        self._teller = _Teller(self)
        self._norm_every, self._norm_due = NORM_LEAST, NORM_LEAST
        self._checksum_every = checksum_every
        self._shard = 0
        self._held: _Sum | None = None  # of the last step, until the optimizer begins the next one
        self._autocast: str | None = None
        self._removers: list[Callable[[], None]] = []
        self._gradient: list[Any] = []  # hooks on parameters; one is left as soon as one has fired
        self._queued = False
        timed = _patch_iteration(loader, self.phases)
        self.in_place = timed is not None
        self._removers += [timed] if timed is not None else []
        self._hook()
        first = optimizers[0] if optimizers else None
        self.phases.faults = armed(current().inject, current().rank, model, first)
        if self.phases.faults is not None:
            self._removers.append(self.phases.faults.disarm)
        atexit.register(self.close)

    def _hook(self) -> None:
        if isinstance(self.model, nn.Module):
            handle = self.model.register_forward_pre_hook(self._forward, with_kwargs=True)
            after = self.model.register_forward_hook(self._forward_ended)
            self._removers += [handle.remove, after.remove]
        for n, one in enumerate(self.optimizers):
            last = n == len(self.optimizers) - 1
            pre = one.register_step_pre_hook(self._optimizer_begins)
            post = one.register_step_post_hook(self._stepped if last else self._optimizer_ends)
            self._removers += [pre.remove, post.remove]
        self._removers += [_patch_waits(self.phases), _patch_save(self.phases)]
        self._hook_gradients()

    def _hook_gradients(self) -> None:
        """On every parameter, until it is known which of them gets a gradient."""
        self._unhook_gradients()
        for parameter in self.parameters:
            if parameter.requires_grad and parameter.is_leaf:
                self._gradient.append(_on_gradient(parameter, self._graded))

    def _unhook_gradients(self, but: torch.Tensor | None = None) -> None:
        for handle in self._gradient:
            handle.remove()
        self._gradient = [] if but is None else [_on_gradient(but, self._graded)]

    # -- hooks, in the order of a step

    def _forward(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            self.phases.forward()
            self.phases.row.tokens += tokens(args, kwargs)
            if self._autocast is None and self.phases.steps >= 1:
                self._autocast = configured.autocast()

    def _forward_ended(self, _module: nn.Module, _args: Any, output: Any) -> None:
        found = output if isinstance(output, torch.Tensor) else getattr(output, "loss", None)
        if found is not None and isinstance(found, torch.Tensor) and found.dim() == 0:
            self.phases.row.loss = found.detach()

    def _graded(self, parameter: torch.Tensor) -> None:
        """Within a backward pass: what is queued here runs at its end, before what DDP queues when it has waited."""
        if not self._queued:
            self._queued = True
            _engine.queue_callback(self._local_end)
            if len(self._gradient) > 1:
                self._unhook_gradients(but=parameter)

    def _local_end(self) -> None:
        self.phases.local_end()
        _engine.queue_callback(self._backward_end)

    def _backward_end(self) -> None:
        self._queued = False
        self.phases.backward_end()

    def _optimizer_begins(self, _optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if self.phases.optimizer_begins() and len(self._gradient) == 1:
            self._hook_gradients()  # the parameter that was looked at gets none any more
        self._queued = False
        if self._held is not None:
            self._compare(self._held)
            self._held = None
        if self.phases.steps >= self._norm_due:
            self._norm()

    def _optimizer_ends(self, _optimizer: Any, _args: Any, _kwargs: Any) -> None:
        self.phases.optimizer_ends(last=False)

    def _stepped(self, _optimizer: Any, _args: Any, _kwargs: Any) -> None:
        self.phases.optimizer_ends(last=True)
        if self._checksum_every and self.phases.steps % self._checksum_every == 0:
            self._held = self._checksum()
            self._teller.checksum(self._held)
        self._teller.stepped()

    # -- looked at now and then

    def _norm(self) -> None:
        """The gradients' norm; how often is by what it cost."""
        began = time.perf_counter()
        grads = [p.grad.detach() for p in self.parameters if p.grad is not None]
        with torch.no_grad(), contextlib.suppress(RuntimeError, TypeError):
            norms = torch._foreach_norm(grads)  # noqa: SLF001 - as clip_grad_norm_ does
            self.phases.row.grad_norm = torch.linalg.vector_norm(torch.stack([one.float() for one in norms]))
        cost = time.perf_counter() - began
        self._norm_every = max(NORM_LEAST, math.ceil(cost / NORM_BUDGET_S))
        self._norm_due = self.phases.steps + self._norm_every

    def _checksum(self) -> _Sum:
        """Of the next part."""
        shards = max(1, -(-sum(p.numel() for p in self.parameters) // SHARD))
        part, self._shard = self._shard % shards, self._shard + 1
        return _Sum(self.phases.steps - 1, part, self._sum(part), self._writes())

    def _compare(self, held: _Sum) -> None:
        """Whether the part is what it was when the last step ended: on this rank alone it can be told."""
        if self._sum(held.part) != held.value:
            self._teller.moved(held, written=self._writes() != held.writes)

    @torch.no_grad()
    def _sum(self, part: int) -> int:
        """The bits of some of the parameters, as integers."""
        low, at, total = part * SHARD, 0, 0
        for parameter in self.parameters:
            begin, end = max(low - at, 0), min(low + SHARD - at, parameter.numel())
            if begin < end:
                piece = parameter.detach().reshape(-1)[begin:end].contiguous()
                total += int(piece.view(_INTEGER[piece.element_size()]).sum(dtype=torch.int64))
            at += parameter.numel()
        return total % (1 << 52)

    def _writes(self) -> int:
        """How often the program wrote to the parameters: what memory does by itself, torch does not count."""
        return sum(parameter._version for parameter in self.parameters)  # noqa: SLF001 - torch's own name for it

    def configuration(self) -> dict[str, Any]:
        first = self.optimizers[0] if self.optimizers else None
        found = configured.configuration(self.model, first, self.loader, self._autocast or "", os.environ)
        return found | configured.memory() | {"profiled": configured.profiled()}

    def close(self) -> None:
        atexit.unregister(self.close)
        for remove in self._removers:
            remove()
        self._removers.clear()
        self._unhook_gradients()
        self._teller.close()
        self.phases.close()


class _Sum(NamedTuple):
    """A checksum: of which part of the parameters, after which step, and how often they had been written to."""

    step: int
    part: int
    value: int
    writes: int


_INTEGER: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Teller:
    """Packs steps into events, and tells of counters from a thread of its own, so that they come while a step takes long."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self._life = round(time.time(), 3)
        self._told_at = time.perf_counter()
        self._configured_at = -math.inf
        self._reported: Any = None  # what the script reported last
        self._shift: int | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._count, name="penstock-watch", daemon=True)
        self._thread.start()

    def stepped(self) -> None:
        phases, now = self._loop.phases, time.perf_counter()
        self._aligned(phases.steps)
        if len(phases.rows) >= BATCH or now - self._told_at >= EVERY_S:
            self.flush(now)
        if phases.steps in CONFIGURED or (phases.steps > CONFIGURED[-1] and now - self._configured_at > AGAIN_S):
            self._configured_at = now
            tell("watched", {"life": self._life, **self._loop.configuration()})

    def _aligned(self, steps: int) -> None:
        """By how much the script's own count of steps differs from ours, of a rank that reports it."""
        found = channel()
        if found is None:
            return
        if found.last is self._reported:
            return
        self._reported = step, loss = found.last  # said after the step before this one
        if step is not None:
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                self._shift = int(step) - (steps - 2)
        rows = self._loop.phases.rows
        if len(rows) > 1 and rows[-2].loss is None:
            rows[-2].loss = loss

    def flush(self, now: float) -> None:
        self._told_at = now
        rows = self._loop.phases.ended()
        for n in range(0, len(rows), BATCH):
            tell("steps", self._event(rows[n : n + BATCH]))
        found = channel()
        if rows and self._shift is None and found is not None and found.rank == 0:
            report(step=rows[-1].step)  # where the script says nothing, this is its progress
            self._reported = found.last

    def _event(self, rows: Sequence[Row]) -> dict[str, Any]:
        at0 = round(rows[0].at, 3)
        found: dict[str, Any] = {"life": self._life, "at0": at0}
        if self._shift is not None:
            found["shift"] = self._shift
        found["step"] = [row.step for row in rows]
        found["at_ms"] = [round((row.at - at0) * 1e3) for row in rows]
        for name in _COLUMNS:
            values = [max(round(getattr(row, name) * 1e6), 0) for row in rows]
            if any(values) or name in ("total", "data"):
                found[name] = values
        if any(row.tokens for row in rows):
            found["tokens"] = [row.tokens for row in rows]
        for name in ("loss", "grad_norm"):
            numbers = figures([getattr(row, name) for row in rows])
            if any(value is not None for value in numbers):
                found[name] = numbers
        return found

    def checksum(self, found: _Sum) -> None:
        told = {"checksum": found.value, "checksum_step": found.step, "checksum_part": found.part}
        tell("counters", {"life": self._life, **told})

    def moved(self, held: _Sum, *, written: bool) -> None:
        told = {"moved_step": held.step, "moved_part": held.part, "moved_written": int(written)}
        tell("counters", {"life": self._life, **told})

    def _count(self) -> None:
        counts = Counts()
        while not self._over.wait(COUNT_S):
            tell("counters", {"life": self._life, **counts.read(), **configured.counted()})
        counts.close()

    def close(self) -> None:
        self._over.set()
        self.flush(time.perf_counter())


class _Fetching:
    """A loader's iterator that says how long it was waited for."""

    def __init__(self, inner: Iterator[Any], phases: Phases) -> None:
        self._inner = inner
        self._phases = phases

    def __iter__(self) -> _Fetching:
        return self

    def __next__(self) -> Any:
        began = self._phases.own()
        try:
            batch, faults = next(self._inner), self._phases.faults
            return batch if faults is None else faults.batch(batch)
        finally:
            self._phases.fetched(began)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _patch_iteration(loader: Any, phases: Phases) -> Callable[[], None] | None:
    """Have this one loader's iterators timed, wherever it is iterated; None where its type does not allow that."""
    kind = type(loader)
    if loader is None or not hasattr(kind, "__iter__") or not hasattr(loader, "__dict__"):
        return None

    def iterate(self: Any) -> Any:
        return _Fetching(kind.__iter__(self), phases)

    timed = type(kind.__name__, (kind,), {"__iter__": iterate, "__module__": kind.__module__})
    try:
        loader.__class__ = timed
    except (TypeError, AttributeError):
        return None

    def restore() -> None:
        if type(loader) is timed:
            loader.__class__ = kind

    return restore


def _patch_waits(phases: Phases) -> Callable[[], None]:
    """Time what a collective is waited for, wherever this thread waits: ``Work.wait`` is what all of c10d's calls end in."""
    if not torch.distributed.is_available():
        return _nothing
    kind: Any = torch.distributed.distributed_c10d.Work
    inner, thread = kind.wait, threading.get_ident()

    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return inner(self, *args, **kwargs)
        began, mark = phases.own(), phases.wait_mark()
        try:
            return inner(self, *args, **kwargs)
        finally:
            phases.waited(began, mark)

    kind.wait = wait

    def restore() -> None:
        if kind.wait is wait:
            kind.wait = inner

    return restore


def _patch_save(phases: Phases) -> Callable[[], None]:
    """A ``torch.save`` of the loop's own thread is a checkpoint."""
    inner, thread = torch.save, threading.get_ident()

    def save(*args: Any, **kwargs: Any) -> None:
        if threading.get_ident() != thread:
            inner(*args, **kwargs)
            return
        began = phases.own()
        try:
            inner(*args, **kwargs)
        finally:
            stalls.waited["checkpoint"] += phases.own() - began

    torch.save = save

    def restore() -> None:
        if torch.save is save:
            torch.save = inner

    return restore


def _on_gradient(parameter: Any, hook: Callable[[torch.Tensor], None]) -> Any:
    return parameter.register_post_accumulate_grad_hook(hook)


def _nothing() -> None:
    """There is nothing to undo."""


def _inner(optimizer: Any) -> Any:
    """What a wrapper such as accelerate's wraps: only the inner one has its hooks called."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How much a forward pass was given: whole numbers are tokens, of others what lies along the first axes counts."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, dict):
            return tokens(tuple(value.values()), {})
        if isinstance(value, list | tuple):
            return tokens(tuple(value), {})
        if isinstance(value, torch.Tensor) and value.dim():
            if not value.is_floating_point():
                return value.numel()
            return value.shape[0] * (value.shape[1] if value.dim() == 3 else 1)
    return 0


def figures(values: Sequence[Any]) -> list[float | str | None]:
    """Numbers as JSON has them: what is not finite is its name. Tensors of a GPU, whose step is over, are fetched at once, beside its work."""
    far = [n for n, value in enumerate(values) if isinstance(value, torch.Tensor) and value.is_cuda]
    found = list(values)
    if far:
        with _cuda.stream(_cuda.Stream()):
            near = torch.stack([values[n].float().reshape(()) for n in far]).tolist()
        for n, number in zip(far, near, strict=True):
            found[n] = number
    return [_figure(value) for value in found]


def _figure(value: Any) -> float | str | None:
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return float(f"{number:.6g}") if math.isfinite(number) else str(number)
