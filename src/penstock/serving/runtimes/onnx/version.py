"""One version of one model: its executor, kept alive; its line; what it takes and gives."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from penstock.serving.runtimes.onnx.errors import Refused, invalid, unavailable
from penstock.serving.runtimes.onnx.link import Link, Start
from penstock.serving.runtimes.onnx.plan import Policy, backoff
from penstock.serving.runtimes.onnx.queue import Queue, Send, Timing, request_rows
from penstock.serving.runtimes.onnx.statistics import Statistics
from penstock.serving.runtimes.onnx.tensors import Tensor, TensorSpec

log = logging.getLogger("penstock.onnx")
_HEALTHY_S = 60.0  # an executor that lived so long begins anew at the shortest back-off


class State(StrEnum):
    """Triton's words, so that its clients read them."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    UNLOADING = "UNLOADING"


@dataclass(frozen=True, slots=True)
class Limits:
    threads: int = 1
    max_queue: int = 1024
    request_timeout: float = 30.0
    max_body: int = 64 << 20
    policy: Policy = field(default_factory=Policy)


class Version:
    """``start`` once; then it is kept running until ``close``."""

    def __init__(self, name: str, version: str, path: str, limits: Limits) -> None:
        self.name, self.version, self.path = name, version, path
        self.limits = limits
        self.file = file_id(path)
        self.state = State.LOADING
        self.reason = ""
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.stages: Mapping[str, float] = {}
        self.statistics = Statistics()
        self._loop = asyncio.get_running_loop()
        bounds = (limits.max_queue, max(limits.max_body, 1 << 20), limits.request_timeout)
        self.queue = Queue(limits.policy, bounds, self.statistics, f"{name} version {version}")
        self._link: Link | None = None
        self._crashes = 0
        self._ready_at = 0.0
        self._again: asyncio.TimerHandle | None = None
        self._settled: asyncio.Event = asyncio.Event()

    @property
    def label(self) -> str:
        return f"{self.name} version {self.version}"

    @property
    def ready(self) -> bool:
        return self.state is State.READY

    @property
    def batching(self) -> bool:
        return self.queue.batching

    @property
    def pid(self) -> int | None:
        return self._link.pid if self._link is not None else None

    def start(self) -> None:
        self._again = None
        policy = self.limits.policy
        try:
            self._link = Link(Start(self.path, self.limits.threads, policy.warmed, self.name), self)
        except OSError as error:
            self.gone(f"could not be started: {error}")

    async def settled(self) -> None:
        """Ready, or known not to become so by itself."""
        await self._settled.wait()

    # What the link says.

    def loaded(self, message: Mapping[str, Any]) -> None:
        described = message["ready"]
        self.inputs = _specs(described["inputs"])
        self.outputs = _specs(described["outputs"])
        self.stages = message["stages"]
        if described["note"]:
            log.warning("%s: %s", self.label, described["note"])
        assert self._link is not None
        self.queue.batching = described["batching"] and self.limits.policy.most > 1
        self.queue.outputs = self.outputs
        self.state, self.reason = State.READY, ""
        self._ready_at = self._loop.time()
        self._settled.set()
        self.queue.open(Send(self._link.send, self._link.tensors, self._link.kill))

    def refused(self, message: str) -> None:
        """The file is no model that can be served; starting again would not help."""
        self._fail(f"cannot be loaded: {message}")

    def answered(self, message: Mapping[str, Any]) -> None:
        self.queue.answered(message)

    def gone(self, why: str) -> None:
        self._link = None
        if self.state in (State.UNAVAILABLE, State.UNLOADING):
            self.queue.crashed(why)
            return
        lived = self.state is State.READY and self._loop.time() - self._ready_at > _HEALTHY_S
        self._crashes = 1 if lived else self._crashes + 1
        was_ready = bool(self._ready_at)
        pause = backoff(self._crashes)
        log.error("%s: its process %s; again in %.1f s", self.label, why, pause)
        self.statistics.restarts += 1
        self.state, self.reason = State.LOADING, f"its process {why}; it is started again"
        self.queue.crashed(why)
        if not was_ready and self._crashes >= 3:
            self._fail(f"its process {why} while it loaded, {self._crashes} times")
            return
        self._again = self._loop.call_later(pause, self.start)

    def _fail(self, reason: str) -> None:
        log.error("%s: %s", self.label, reason)
        self.state, self.reason = State.UNAVAILABLE, reason
        self._settled.set()
        self.queue.refuse_all(unavailable(f"{self.label}: {reason}"))

    def check_ready(self) -> None:
        """Raises Refused where no request can be read: not described yet, or not to come back by itself."""
        if self.state in (State.UNAVAILABLE, State.UNLOADING) or not self.inputs:
            self.statistics.failed("refused", 0)
            raise unavailable(f"{self.label} is not ready: {self.reason or 'it loads'}")

    async def infer(
        self, tensors: Sequence[Tensor], outputs: tuple[str, ...], timeout: float, gone: Callable[[], bool]
    ) -> tuple[list[Tensor], Timing]:
        """``tensors`` in the model's order and checked (``arranged``). Raises Refused."""
        self.check_ready()
        if self.batching:
            request_rows(tensors)
        timeout = min(timeout, self.limits.request_timeout) if timeout > 0 else self.limits.request_timeout
        return await self.queue.infer(tensors, outputs, timeout, gone)

    def invalid(self) -> None:
        """A request was refused before it got into the line."""
        self.statistics.failed("invalid", 0)

    def check_outputs(self, wanted: Sequence[str]) -> tuple[str, ...]:
        known = {spec.name for spec in self.outputs}
        for name in wanted:
            if name not in known:
                raise invalid(f"outputs: {name!r:.100}: {self.label} has {', '.join(sorted(known))}")
        return tuple(wanted)

    async def drain(self, within: float) -> None:
        """Takes no more; returns when what it has is answered, or the time is over."""
        self.state, self.reason = State.UNLOADING, "it is unloaded"
        deadline = self._loop.time() + within
        while not self.queue.idle and self._link is not None and self._loop.time() < deadline:
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        self.state, self.reason = State.UNLOADING, "it is unloaded"
        if self._again is not None:
            self._again.cancel()
        if self._link is not None:
            link, self._link = self._link, None
            self.queue.crashed("was ended")
            await link.close()
        self.queue.refuse_all(Refused(503, f"{self.label}: it was unloaded", retry_after=1))
        self.queue.close()
        self._settled.set()


def file_id(path: str) -> tuple[int, int, int]:
    """What tells a file from the one that replaces it."""
    try:
        there = os.stat(path)
    except OSError:
        return (0, 0, 0)
    return (there.st_ino, there.st_size, there.st_mtime_ns)


def _specs(told: Sequence[Sequence[Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, datatype, tuple(shape), word) for name, datatype, shape, word in told)


def arranged(version: Version, given: Mapping[str, Tensor]) -> list[Tensor]:
    """A request's inputs in the model's order. Raises Refused where one lacks or is unknown."""
    if len(given) != len(version.inputs):
        known = [spec.name for spec in version.inputs]
        missing = [name for name in known if name not in given]
        strange = [name for name in given if name not in known]
        if missing:
            raise invalid(
                f"inputs: {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; {version.label} takes {', '.join(known)}"
            )
        raise invalid(f"inputs: {', '.join(strange)[:200]}: {version.label} takes {', '.join(known)}")
    try:
        return [given[spec.name] for spec in version.inputs]
    except KeyError as error:
        raise invalid(f"inputs: {error.args[0]} is missing") from None
