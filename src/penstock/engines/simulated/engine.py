"""A fleet of any size in memory: the same protocol, scripted run times and faults, time from the clock it is given.

Nothing really runs. What a command does is read from its words (``script.py``). Of an attempt only two small files are
kept (``records.py``), from which the next server works out how it ended meanwhile, or goes on with it.

One factor, ``speed``, divides every duration that a job states (run time, time limit, grace) and those between failures;
all times that are told are the clock's own.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.base.errors import Conflict, InvalidInput, NotFound, Problem
from penstock.base.quantities import format_duration
from penstock.base.reasons import Reason
from penstock.engines.launchers import LAUNCHERS
from penstock.engines.simulated import records
from penstock.engines.simulated.script import Script
from penstock.engines.simulated.shape import MIG, Fleet, offers
from penstock.engines.spec import (
    GpuSample,
    JobNeeds,
    Launch,
    LogReader,
    LogRequest,
    NodeOffer,
    Observation,
    RankExit,
    RankGroup,
    Session,
    SessionRequest,
    Stage,
)

DEFAULT_RUN_S = 600.0  # of commands that say nothing of how long they take
FAULTS = (
    "a GPU has fallen off the bus (Xid 79)",
    "an uncorrectable ECC error (Xid 48)",
    "the power supply failed",
    "the kernel panicked",
    "the link to the leaf switch is down",
)
_SIGTERM, _SIGKILL = 15, 9


@dataclass(slots=True)
class _Run:
    """One attempt that runs. ``timers`` are its planned end, its time limit and the end of its grace."""

    launch: Launch
    script: Script
    speed: float
    seen: Observation
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    stopping: tuple[str, str] | None = None


class SimulatedEngine:
    """``default_run_s`` is how long commands run that do not say it; ``on_change`` is called when nodes fail or return."""

    name = "simulated"
    schedules_itself = False
    unknown_since: float | None = None

    def __init__(
        self,
        fleet: Fleet,
        *,
        default_run_s: float = DEFAULT_RUN_S,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self.fleet = fleet
        self.default_run_s = default_run_s
        self.on_change: Callable[[], None] = lambda: None
        self._clock = clock
        self._rng = rng or random.Random()
        self._well = offers(fleet)
        self._names = frozenset(offer.name for offer in self._well)
        self._offers: tuple[NodeOffer, ...] = self._well
        self._down: dict[str, str] = {}  # nodes, and why
        self._runs: dict[str, _Run] = {}
        self._sink: Callable[[Observation], None] = lambda _seen: None
        self._timers: set[asyncio.TimerHandle] = set()

    async def start(self, sink: Callable[[Observation], None]) -> None:
        self._sink = sink
        self._await_failure()

    async def close(self) -> None:
        """Jobs go on; nobody is told."""
        self._sink = lambda _seen: None
        for timer in self._timers:
            timer.cancel()
        for run in self._runs.values():
            for timer in run.timers:
                timer.cancel()

    # -- what it offers

    def nodes(self) -> Sequence[NodeOffer]:
        """The same object while nothing changes."""
        return self._offers

    def validate(self, needs: JobNeeds) -> list[Problem]:
        found = []
        if needs.launcher not in LAUNCHERS:
            found.append(Problem("launcher", f"{needs.launcher!r} is none of {', '.join(LAUNCHERS)}"))
        least = needs.least or needs.nodes
        if least > len(self._well):
            found.append(Problem("nodes", f"{least} nodes are asked for and this fleet has {len(self._well)}"))
        return found

    async def gpu_samples(self) -> Sequence[GpuSample]:
        """Of every GPU that running attempts hold; those who share one are busy on it together. MIG instances do not tell."""
        busy: dict[tuple[str, str], float] = {}
        for run in self._runs.values():
            for group in run.launch.groups:
                part = (group.gpu_milli or 1000) / 1000
                for gpu in group.gpus:
                    if not gpu.startswith(MIG):
                        key = (group.node, gpu)
                        busy[key] = busy.get(key, 0.0) + part * run.script.gpu_busy
        now = self._clock()
        return [GpuSample(node, gpu, min(100 * level, 100.0), now) for (node, gpu), level in busy.items()]

    # -- running

    async def submit(self, launch: Launch) -> None:
        """Raises ValueError for a command whose times cannot be read."""
        script = Script.parse(launch.command, self.default_run_s)
        if not records.claim(launch.run_dir):
            return
        now = self._clock()
        records.write_run(launch, now, self.fleet.speed)
        run = self._begin(launch, script, self.fleet.speed, now)
        self._sink(run.seen)
        if run.seen.stage is Stage.RUNNING:
            self._plan(run, now)

    def _begin(self, launch: Launch, script: Script, speed: float, started_at: float) -> _Run:
        """In the books; over at once where a node of its own is down."""
        now = self._clock()
        run = _Run(launch, script, speed, Observation(launch.attempt_id, Stage.RUNNING, now, started_at=started_at))
        self._runs[launch.attempt_id] = run
        gone = [group.node for group in launch.groups if group.node in self._down or group.node not in self._names]
        if gone:
            self._over(run, Reason.NodeLost, f"node {gone[0]} was lost", None, _SIGKILL, now)
        return run

    def _plan(self, run: _Run, now: float) -> None:
        """Its end and its limit, as far as they lie ahead; what lies behind has happened, in its order."""
        launch, began = run.launch, run.seen.started_at or now
        limit = math.inf if launch.time_limit_s is None else began + launch.time_limit_s / run.speed
        end = began + run.script.run_s / run.speed
        if limit < end:
            if run.script.ignores_term:
                end = min(end, limit + launch.grace_s / run.speed)
            else:
                end = limit
        if end <= now:
            self._due(run, end, limit)
            return
        if limit <= now:
            run.stopping = self._limit_words(run)
        self._at(run, end, lambda: self._due(run, end, limit))

    def _due(self, run: _Run, end: float, limit: float) -> None:
        """The end that was planned has come."""
        if run.stopping is None and limit <= end:
            run.stopping = self._limit_words(run)
        natural = end >= (run.seen.started_at or end) + run.script.run_s / run.speed
        code, number = run.script.exit_code, None
        if run.stopping is not None:
            if natural:
                self._end(run, *run.stopping, code, None, end)
            else:
                number = _SIGKILL if run.script.ignores_term else _SIGTERM
                self._end(run, *run.stopping, None, number, end)
        elif code:
            self._end(run, Reason.Failed, f"the command exited with code {code}", code, None, end)
        else:
            self._end(run, Reason.Completed, "", 0, None, end)

    def _limit_words(self, run: _Run) -> tuple[str, str]:
        limit = run.launch.time_limit_s or 0.0
        words = f"it ran longer than its time limit of {limit:g} s"
        if run.speed != 1:
            words += f" ({format_duration(limit / run.speed)} at speed {run.speed:g})"
        return Reason.TimeLimit, words

    def _at(self, run: _Run, at: float, call: Callable[[], None]) -> None:
        after_s = at - self._clock()
        if math.isfinite(after_s):
            run.timers.append(asyncio.get_running_loop().call_later(max(after_s, 0.0), call))

    def _end(self, run: _Run, reason: str, message: str, code: int | None, number: int | None, at: float) -> None:
        if run.seen.stage is Stage.RUNNING:
            self._over(run, reason, message, code, number, at)
            self._sink(run.seen)

    def _over(self, run: _Run, reason: str, message: str, code: int | None, number: int | None, at: float) -> None:
        """Write down how it ended, and forget it."""
        for timer in run.timers:
            timer.cancel()
        launch = run.launch
        ranks = tuple(
            RankExit(group.node_rank * launch.procs + local, group.node, code, number, ended_at=at)
            for group in launch.groups
            for local in range(launch.procs)
        )
        run.seen = replace(
            run.seen,
            stage=Stage.EXITED,
            at=self._clock(),
            ended_at=at,
            reason=reason,
            message=message,
            exit_code=code,
            signal=number,
            ranks=ranks,
        )
        records.write_exit(launch.run_dir, run.seen)
        self._runs.pop(launch.attempt_id, None)

    async def submit_array(self, launches: Sequence[Launch]) -> None:
        """One after the other."""
        for launch in launches:
            await self.submit(launch)

    async def adopt(self, attempt_id: str, run_dir: str) -> Observation:
        """What it does, or how it ended while no server was there: both follow from when it began."""
        now = self._clock()
        run = self._runs.get(attempt_id)
        if run is not None:
            return run.seen
        record = records.read(run_dir, records.EXIT)
        if record is not None:
            return records.ended(attempt_id, record, now)
        record = records.read(run_dir, records.RUN)
        if record is None:
            records.abandon(run_dir)
            return Observation(attempt_id, Stage.ABSENT, now)
        launch = self._launch(attempt_id, run_dir, record)
        script = Script.parse(launch.command, self.default_run_s)
        run = self._begin(launch, script, record["speed"], record["started_at"])
        if run.seen.stage is Stage.RUNNING:
            self._plan(run, now)
        return run.seen

    def _launch(self, attempt_id: str, run_dir: str, record: Mapping[str, Any]) -> Launch:
        return _launch(attempt_id, run_dir, record)

    async def stop(self, attempt_id: str, run_dir: str, *, reason: str, grace_s: float) -> None:
        if (await self.adopt(attempt_id, run_dir)).stage is Stage.ABSENT:
            if records.claim(run_dir):
                now = self._clock()
                words = "stopped before it began"
                records.write_exit(
                    run_dir, Observation(attempt_id, Stage.EXITED, now, ended_at=now, reason=reason, message=words)
                )
            return
        run = self._runs.get(attempt_id)
        if run is None:
            return
        run.stopping = run.stopping or (reason, "")
        if run.script.ignores_term:
            at = self._clock() + grace_s / run.speed
            self._at(run, at, lambda: self._end(run, *(run.stopping or (reason, "")), None, _SIGKILL, at))
        else:
            self._end(run, *run.stopping, None, _SIGTERM, self._clock())

    # -- nodes that fail

    async def lose(self, node: str) -> None:
        self._check_node(node)
        self._fell(node, "lost (fault drill)")

    async def restore(self, node: str) -> None:
        self._check_node(node)
        self._back(node)

    async def cordon(self, node: str, why: str | None, *, force: bool = False) -> None:
        """Nothing to do: whoever places work here knows. Raises NotFound."""
        self._check_node(node)

    def _check_node(self, node: str) -> None:
        if node not in self._names:
            raise NotFound(f"there is no node {node!r} in this fleet")

    def _fell(self, node: str, why: str) -> None:
        self._down[node] = why
        self._offer()
        now = self._clock()
        for run in list(self._runs.values()):
            if any(group.node == node for group in run.launch.groups):
                self._end(run, Reason.NodeLost, f"node {node} was lost", None, _SIGKILL, now)

    def _back(self, node: str) -> None:
        if self._down.pop(node, None) is not None:
            self._offer()

    def _offer(self) -> None:
        self._offers = tuple(
            replace(offer, ready=False, message=self._down[offer.name]) if offer.name in self._down else offer
            for offer in self._well
        )
        self.on_change()

    def _await_failure(self) -> None:
        if self.fleet.mtbf_s is not None:
            self._later(self._rng.expovariate(len(self._well) / self.fleet.mtbf_s), self._fail)

    def _fail(self) -> None:
        """Chance takes a node that is well, and repairs it after a while."""
        well = [offer.name for offer in self._well if offer.name not in self._down]
        if well:
            node = self._rng.choice(well)
            self._fell(node, f"simulated: {self._rng.choice(FAULTS)}")
            self._later(self._rng.expovariate(1 / self.fleet.repair_s), lambda: self._back(node))
        self._await_failure()

    def _later(self, after_s: float, call: Callable[[], None]) -> None:
        def due() -> None:
            self._timers.discard(timer)
            call()

        timer = asyncio.get_running_loop().call_later(after_s / self.fleet.speed, due)
        self._timers.add(timer)

    # -- reading and entering

    def report(self, attempt_id: str, **progress: Any) -> None:
        """Play a rank's report of progress."""
        self._sink(Observation(attempt_id, Stage.RUNNING, self._clock(), progress=progress))

    def logs(self, run_dir: str) -> LogReader:
        record = records.read(run_dir, records.RUN)
        return PrintedLog("" if record is None else _printed(record, self.default_run_s))

    async def session(self, attempt_id: str, run_dir: str, request: SessionRequest) -> Session:
        """There is nothing to enter. Raises InvalidInput, NotFound, Conflict, as every engine's does."""
        if request.port is None and not request.command:
            raise InvalidInput("no command was given", details=[Problem("command", "give at least one word")])
        if attempt_id not in self._runs:
            raise NotFound("the job is not running: there is nothing to enter")
        raise Conflict("a simulated job has no processes to enter")


def _launch(attempt_id: str, run_dir: str, record: Mapping[str, Any]) -> Launch:
    """As much of it as was kept."""
    job_id, _, number = attempt_id.rpartition(".")
    groups = tuple(
        RankGroup(group["node"], group["node_rank"], 0.0, None, tuple(group["gpus"]), group.get("gpu_milli", 0))
        for group in record["groups"]
    )
    return Launch(
        attempt_id,
        job_id,
        "",
        "",
        "",
        int(number),
        run_dir,
        run_dir.rpartition("/")[0],
        groups,
        record["procs"],
        "none",
        tuple(record["command"]),
        time_limit_s=record["time_limit_s"],
        grace_s=record["grace_s"],
    )


def _printed(record: Mapping[str, Any], default_run_s: float) -> str:
    """What the script prints; of one that prints nothing, that nothing really ran."""
    script = Script.parse(record["command"], default_run_s)
    if script.prints or script.run_s == 0:
        return script.prints
    nodes = [group["node"] for group in record["groups"]]
    where = ", ".join(nodes[:4]) + (f" and {len(nodes) - 4} more" if len(nodes) > 4 else "")
    took = "until it is stopped" if math.isinf(script.run_s) else f"for {format_duration(script.run_s)}"
    return f"simulated on {where}, {took}: {' '.join(record['command'])}\n"


class PrintedLog:
    """What the script printed, all at once."""

    def __init__(self, text: str) -> None:
        self._text = text

    def ranks(self) -> list[str]:
        return ["0"] if self._text else []

    async def read(self, request: LogRequest, finished: Callable[[], bool]) -> AsyncIterator[bytes]:
        if self._text:
            yield self._text.encode()
        while request.follow and not finished():
            await asyncio.sleep(0.1)

    async def progress(self) -> list[Mapping[str, Any]]:
        return []

    async def watched(self) -> list[Mapping[str, Any]]:
        return []
