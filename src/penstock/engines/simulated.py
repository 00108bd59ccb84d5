"""A fleet of any size in memory: the same protocol, scripted run times and faults, time from the clock it is given.

Commands are scripts: ``sleep 5`` runs for five seconds, ``exit 3`` fails at once, words may be joined by ``then``
(``sleep 5 then exit 3``); ``ignore-term`` says ``ready`` and leaves SIGTERM unheard; ``idle-gpu`` leaves its
GPUs alone while it runs. Every other command runs for ``default_run_s``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.base.errors import Conflict, InvalidInput, NotFound, Problem
from penstock.base.reasons import Reason
from penstock.engines.launchers import LAUNCHERS
from penstock.engines.spec import (
    Gpu,
    GpuSample,
    JobNeeds,
    Launch,
    LogReader,
    LogRequest,
    NodeOffer,
    Observation,
    RankExit,
    Session,
    SessionRequest,
    Stage,
)

_SIGTERM, _SIGKILL = 15, 9


@dataclass(frozen=True, slots=True)
class Script:
    """What a command does: run for ``run_s``, then exit with ``exit_code``."""

    run_s: float
    exit_code: int = 0
    ignores_term: bool = False
    prints: str = ""
    gpu_busy: float = 0.9  # of its GPUs' time

    @classmethod
    def parse(cls, command: Sequence[str], default_run_s: float) -> Script:
        script = cls(default_run_s)
        words = iter(command)
        for word in words:
            if word == "sleep":
                script = replace(script, run_s=float(next(words, "0")))
            elif word == "exit":
                timed = "sleep" in command
                script = replace(script, exit_code=int(next(words, "0")), run_s=script.run_s if timed else 0.0)
            elif word == "echo":
                script = replace(script, prints=next(words, "") + "\n", run_s=0.0)
            elif word == "idle-gpu":
                script = replace(script, gpu_busy=0.0)
            elif word == "ignore-term":
                script = replace(script, ignores_term=True, prints="ready\n")
        return script


@dataclass(slots=True)
class _Run:
    """One attempt. ``timers`` are its planned end, its time limit and the end of its grace."""

    launch: Launch
    script: Script
    started_at: float
    seen: Observation
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    stopping: tuple[str, str] | None = None


class SimulatedEngine:
    """``speed`` makes simulated seconds pass faster: 60 runs a minute in one second."""

    name = "simulated"
    schedules_itself = False

    def __init__(  # a fleet is described by this many numbers
        self,
        nodes: int = 4,
        *,
        cpus: float = 8.0,
        memory: int = 32 << 30,
        gpus_per_node: int = 0,
        clock: Callable[[], float] = time.time,
        speed: float = 1.0,
    ) -> None:
        self._offers = [
            NodeOffer(f"node-{n}", cpus, memory, tuple(Gpu(f"SIM-{n}-{g}", "simulated") for g in range(gpus_per_node)))
            for n in range(nodes)
        ]
        self.default_run_s = 0.0
        self._clock = clock
        self._speed = speed
        self._lost: set[str] = set()
        self._runs: dict[str, _Run] = {}
        self._by_dir: dict[str, str] = {}
        self._sink: Callable[[Observation], None] = lambda _seen: None

    async def start(self, sink: Callable[[Observation], None]) -> None:
        self._sink = sink

    async def close(self) -> None:
        """Jobs go on; nobody is told."""
        self._sink = lambda _seen: None

    def nodes(self) -> Sequence[NodeOffer]:
        return [
            replace(offer, ready=False, message="lost (fault drill)") if offer.name in self._lost else offer
            for offer in self._offers
        ]

    def validate(self, needs: JobNeeds) -> list[Problem]:
        found = []
        if needs.launcher not in LAUNCHERS:
            found.append(Problem("launcher", f"{needs.launcher!r} is none of {', '.join(LAUNCHERS)}"))
        if needs.nodes > len(self._offers):
            found.append(Problem("nodes", f"{needs.nodes} nodes are asked for and this fleet has {len(self._offers)}"))
        return found

    async def submit(self, launch: Launch) -> None:
        if launch.attempt_id in self._runs:
            return
        now = self._clock()
        script = Script.parse(launch.command, self.default_run_s)
        seen = Observation(launch.attempt_id, Stage.RUNNING, now, started_at=now)
        run = self._runs[launch.attempt_id] = _Run(launch, script, now, seen)
        self._by_dir[launch.run_dir] = launch.attempt_id
        lost = [group.node for group in launch.groups if group.node in self._lost]
        if lost:
            self._end(run, Reason.NodeLost, f"node {lost[0]} was lost", None, _SIGKILL)
            return
        self._sink(seen)
        if launch.time_limit_s is not None:
            self._later(run, launch.time_limit_s, lambda: self._limit(run))
        self._later(run, script.run_s, lambda: self._exit(run))

    def _later(self, run: _Run, after_s: float, call: Callable[[], None]) -> None:
        run.timers.append(asyncio.get_running_loop().call_later(after_s / self._speed, call))

    def _exit(self, run: _Run) -> None:
        code = run.script.exit_code
        if run.stopping is not None:
            self._end(run, *run.stopping, code, None)
        elif code:
            self._end(run, Reason.Failed, f"the command exited with code {code}", code, None)
        else:
            self._end(run, Reason.Completed, "", 0, None)

    def _limit(self, run: _Run) -> None:
        limit = run.launch.time_limit_s
        self._stop(run, Reason.TimeLimit, f"it ran longer than its time limit of {limit:g} s", run.launch.grace_s)

    def _stop(self, run: _Run, reason: str, message: str, grace_s: float) -> None:
        if run.seen.stage is not Stage.RUNNING:
            return
        run.stopping = run.stopping or (reason, message)
        if run.script.ignores_term:
            self._later(run, grace_s, lambda: self._end(run, *(run.stopping or ("", "")), None, _SIGKILL))
        else:
            self._end(run, *run.stopping, None, _SIGTERM)

    def _end(self, run: _Run, reason: str, message: str, code: int | None, number: int | None) -> None:
        if run.seen.stage is not Stage.RUNNING:
            return
        for timer in run.timers:
            timer.cancel()
        now, launch = self._clock(), run.launch
        ranks = tuple(
            RankExit(group.node_rank * launch.procs + local, group.node, code, number, ended_at=now)
            for group in launch.groups
            for local in range(launch.procs)
        )
        run.seen = replace(
            run.seen,
            stage=Stage.EXITED,
            at=now,
            ended_at=now,
            reason=reason,
            message=message,
            exit_code=code,
            signal=number,
            ranks=ranks,
        )
        self._sink(run.seen)

    async def adopt(self, attempt_id: str, run_dir: str) -> Observation:
        run = self._runs.get(attempt_id)
        return Observation(attempt_id, Stage.ABSENT, self._clock()) if run is None else run.seen

    async def stop(self, attempt_id: str, run_dir: str, *, reason: str, grace_s: float) -> None:
        run = self._runs.get(attempt_id)
        if run is not None:
            self._stop(run, reason, "", grace_s)
            return
        now = self._clock()
        seen = Observation(
            attempt_id, Stage.EXITED, now, ended_at=now, reason=reason, message="stopped before it began"
        )
        launch = Launch(attempt_id, "", "", "", "", 0, run_dir, "", (), 1, "none", ())
        self._runs[attempt_id] = _Run(launch, Script(0.0), now, seen)
        self._by_dir[run_dir] = attempt_id

    async def gpu_samples(self) -> Sequence[GpuSample]:
        """Of every GPU that a running attempt holds."""
        now = self._clock()
        return [
            GpuSample(group.node, gpu, 100 * run.script.gpu_busy, now)
            for run in self._runs.values()
            if run.seen.stage is Stage.RUNNING
            for group in run.launch.groups
            for gpu in group.gpus
        ]

    async def lose(self, node: str) -> None:
        self._check_node(node)
        self._lost.add(node)
        for run in list(self._runs.values()):
            if any(group.node == node for group in run.launch.groups):
                self._end(run, Reason.NodeLost, f"node {node} was lost", None, _SIGKILL)

    async def restore(self, node: str) -> None:
        self._check_node(node)
        self._lost.discard(node)

    def _check_node(self, node: str) -> None:
        if all(offer.name != node for offer in self._offers):
            raise NotFound(f"there is no node {node!r} in this fleet")

    def report(self, attempt_id: str, **progress: Any) -> None:
        """Play a rank's report of progress."""
        self._sink(Observation(attempt_id, Stage.RUNNING, self._clock(), progress=progress))

    def logs(self, run_dir: str) -> LogReader:
        run = self._runs.get(self._by_dir.get(run_dir, ""))
        return _PrintedLog("" if run is None else run.script.prints)

    async def session(self, attempt_id: str, run_dir: str, request: SessionRequest) -> Session:
        """There is nothing to enter. Raises InvalidInput, NotFound, Conflict, as every engine's does."""
        if request.port is None and not request.command:
            raise InvalidInput("no command was given", details=[Problem("command", "give at least one word")])
        run = self._runs.get(attempt_id)
        if run is None or run.seen.stage is not Stage.RUNNING:
            raise NotFound("the job is not running: there is nothing to enter")
        raise Conflict("a simulated job has no processes to enter")


class _PrintedLog:
    """What the script printed, all at once."""

    def __init__(self, text: str) -> None:
        self._text = text

    def ranks(self) -> list[str]:
        return ["0"] if self._text else []

    async def read(self, request: LogRequest, finished: Callable[[], bool]) -> AsyncIterator[bytes]:
        if self._text:
            yield self._text.encode()
        while request.follow and not finished():
            await asyncio.sleep(0.02)

    def progress(self) -> list[Mapping[str, Any]]:
        return []
