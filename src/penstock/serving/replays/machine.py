"""One replica of a replay: what it has, and when the next of it is done.

Between two events all goes on at one pace, so nothing is stepped through: a request that needs 300 tokens is ready when the
replica's count of tokens has gone on by 300.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from heapq import heappop, heappush
from typing import Any, Protocol

from penstock.serving.profile import Curve
from penstock.serving.replays.traces import Request


@dataclass(frozen=True, slots=True)
class Engine:
    """A language model in one replica: continuous batching, prompts in chunks between the others' tokens.

    The defaults are a roofline of Llama 3 8B in bfloat16 on one A100 80GB SXM, from published sizes alone: 8.03e9 parameters
    are 16.06 GFLOP a token, at half of 312 TFLOPS; a prompt of 61,000 tokens spends as much again on attention (32 layers of
    4096); 16.06 GB of weights at 75% of 2,039 GB/s are read for each step, and 131,072 bytes for each token in the cache (8
    heads of 128 in 32 layers); what 90% of 80 GB leave is 400,000 tokens of cache. Chunk and sequences: vLLM's defaults.
    """

    prefill: float = 9700.0  # tokens of prompts a second
    attention: float = 61_000.0  # tokens of a prompt at which attention doubles its time
    chunk: float = 2048.0  # tokens of prompts in one step
    step: float = 0.0105  # seconds for the weights
    sequence: float = 0.0001  # and for each sequence
    context: float = 8.6e-8  # and for each token in the cache
    cache: float = 400_000.0  # tokens
    sequences: float = 256.0  # at once


def engine_of(body: Any) -> Engine:
    """Faults are ValueErrors that say where."""
    if not isinstance(body, Mapping):
        raise ValueError("engine: must be a mapping")  # noqa: TRY004 - a fault of what users wrote, as the others
    known = {one.name for one in fields(Engine)}
    if unknown := sorted(set(body) - known):
        raise ValueError(f"engine.{unknown[0]}: is none of {', '.join(sorted(known))}")
    for name, value in body.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"engine.{name}: must be a number above zero")
    return Engine(**{name: float(value) for name, value in body.items()})


class Job:
    """One request on its way. ``first``: when its first token came."""

    __slots__ = ("at", "end", "first", "number", "request")

    def __init__(self, number: int, request: Request, at: float) -> None:
        self.number, self.request, self.at = number, request, at
        self.first: float = math.nan
        self.end: float = math.nan


class Machine(Protocol):
    """``due``: when something ends next. Events are handed on in order: ``advance`` goes at most to ``due()``."""

    load: int

    def add(self, job: Job, now: float) -> None: ...
    def due(self) -> float: ...
    def advance(self, now: float) -> list[Job]: ...


class TokenMachine:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.load = 0
        self._waiting: deque[Job] = deque()
        self._prompt: Job | None = None
        self._left = 0.0  # seconds of the prompt, were it alone
        self._answers: list[tuple[float, int, Job]] = []
        self._tokens = 0.0  # that each running request has got since the beginning
        self._cached = 0.0
        self._at = 0.0

    def add(self, job: Job, now: float) -> None:
        self._move(now)
        self.load += 1
        self._waiting.append(job)
        self._admit()

    def due(self) -> float:
        prompts, tokens = self._paces()
        at = math.inf
        if self._prompt is not None:
            at = self._at + self._left / prompts
        if self._answers:
            at = min(at, self._at + (self._answers[0][0] - self._tokens) / tokens)
        return at

    def advance(self, now: float) -> list[Job]:
        self._move(now)
        done = []
        while self._answers and self._answers[0][0] <= self._tokens + 1e-6:
            done.append(heappop(self._answers)[2])
        job = self._prompt
        if job is not None and self._left <= 1e-9:
            job.first, self._prompt = now, None
            if job.request.output <= 1:
                done.append(job)
            else:
                heappush(self._answers, (self._tokens + job.request.output - 1, job.number, job))
        for job in done:
            job.end = now
            self._cached -= job.request.prompt + job.request.output
        self.load -= len(done)
        self._admit()
        return done

    def _paces(self) -> tuple[float, float]:
        """Of a prompt, as a part of its pace alone, and tokens a second of each that is being answered."""
        engine = self._engine
        reading = engine.context * self._cached
        if self._prompt is not None:
            alone = engine.chunk / engine.prefill
            return alone / (alone + reading), 1 / (alone + reading)
        return 0.0, 1 / (engine.step + engine.sequence * len(self._answers) + reading)

    def _move(self, now: float) -> None:
        spent = now - self._at
        if spent > 0:
            prompts, tokens = self._paces()
            self._left = max(0.0, self._left - spent * prompts)
            self._tokens += spent * tokens
        self._at = max(now, self._at)

    def _admit(self) -> None:
        """The next prompt, when the cache has room for it and its answer; one that never fits gets all of it."""
        if self._prompt is not None or not self._waiting:
            return
        request, engine = self._waiting[0].request, self._engine
        size = request.prompt + request.output
        if self._answers and (self._cached + size > engine.cache or len(self._answers) >= engine.sequences):
            return
        self._prompt = self._waiting.popleft()
        self._cached += size
        self._left = request.prompt / engine.prefill * (1 + request.prompt / engine.attention)


class CurveMachine:
    """A replica that is known by its curve alone: so many at once, each at its share of the throughput; others wait."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve
        self._most = max(1, math.floor(curve.points[-1].concurrency))
        self.load = 0
        self._waiting: deque[Job] = deque()
        self._running: list[tuple[float, int, Job]] = []
        self._work = 0.0
        self._at = 0.0

    def add(self, job: Job, now: float) -> None:
        self._move(now)
        self.load += 1
        self._waiting.append(job)
        self._admit()

    def due(self) -> float:
        return self._at + (self._running[0][0] - self._work) / self._pace() if self._running else math.inf

    def advance(self, now: float) -> list[Job]:
        self._move(now)
        done = []
        while self._running and self._running[0][0] <= self._work + 1e-9:
            job = heappop(self._running)[2]
            job.first = job.end = now
            done.append(job)
        self.load -= len(done)
        self._admit()
        return done

    def _pace(self) -> float:
        return self._curve.at(float(len(self._running))).throughput / len(self._running)

    def _move(self, now: float) -> None:
        if self._running and now > self._at:
            self._work += (now - self._at) * self._pace()
        self._at = max(now, self._at)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._most:
            job = self._waiting.popleft()
            heappush(self._running, (self._work + max(job.request.work, 1e-6), job.number, job))
