"""The local engine: this machine as one node or several, a supervisor per attempt, found again after any restart."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from penstock.base.errors import EngineFailure, InvalidInput, NotFound, Problem
from penstock.base.reasons import Reason
from penstock.engines import launchers
from penstock.engines.local import cgroups, environment, folder, procs, rendering
from penstock.engines.local.cgroups import Cage
from penstock.engines.local.link import Link
from penstock.engines.local.logreader import LocalLogReader
from penstock.engines.local.machine import Machine, gpu_utilization, probe, split
from penstock.engines.local.notes import LIMIT
from penstock.engines.local.outbox import Outbox
from penstock.engines.local.session import open_session
from penstock.engines.local.spawner import Spawner
from penstock.engines.spec import (
    GpuSample,
    JobNeeds,
    Launch,
    LogReader,
    NodeOffer,
    Observation,
    Session,
    SessionRequest,
    Stage,
)

SWEEP_S = 5.0  # how often attempts are looked at whose supervisor might have died without a word
_QUICK_SWEEP_S = 0.5  # while one is there whose supervisor could not be asked yet
_RETRY_S = 1.0
_MOST_DEATHS = 3  # of supervisors of one attempt before any began: more is no accident
_STOP_PATIENCE_S = 20.0
_NOTES_READ = 1 << 18


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """``host_env`` is the server's environment, of which jobs see a few harmless names; ``max_pids`` bounds fork bombs."""

    host_env: Mapping[str, str] = field(default_factory=dict)
    local_nodes: int = 1
    max_pids: int = 8192
    url: str | None = None  # PENSTOCK_URL of jobs


@dataclass(slots=True)
class Active:
    """An attempt that has not been seen to end. ``frame`` is kept until the supervisor has been heard of."""

    run_dir: str
    nodes: frozenset[str]
    frame: bytes | None = None
    known: bool = False  # its supervisor was heard of by this server
    began: bool = False  # it was seen running
    since: float = 0.0
    deaths: int = 0  # supervisors that died before they could begin


class LocalEngine:
    """See docs/internals.md, "engines/", for the run folder that it shares with supervisors."""

    name = "local"
    schedules_itself = False
    unknown_since: float | None = None

    def __init__(
        self,
        spawner: Spawner,
        config: LocalConfig,
        *,
        clock: Callable[[], float] = time.time,
        machine: Callable[[], Machine] = probe,
    ) -> None:
        self._spawner = spawner
        self._config = config
        self._clock = clock
        self._offers = split(machine(), config.local_nodes)
        self._lost: set[str] = set()
        self._layout = cgroups.discover()
        counted = "pids" in self._layout.limits
        self._renderer = rendering.Renderer(
            config.host_env, config.max_pids, config.url, sys.executable, counted=counted
        )
        self._active: dict[str, Active] = {}
        self._sink: Callable[[Observation], None] = lambda _seen: None
        self._outbox: Outbox | None = None
        self._rest = b""
        self._sweep: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    # -- life

    async def start(self, sink: Callable[[Observation], None]) -> None:
        """Begin to listen; attempts of earlier servers are taken up by ``adopt``."""
        self._sink = sink
        asyncio.get_running_loop().add_reader(self._spawner.notes[0], self._read_notes)
        self._outbox = Outbox(self._spawner.channel, self._spawner_lost)
        self._spawn(asyncio.to_thread(cgroups.sweep, self._layout))

    async def close(self) -> None:
        """The spawner ends; jobs and their supervisors go on."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
        for task in list(self._tasks):
            task.cancel()
        asyncio.get_running_loop().remove_reader(self._spawner.notes[0])
        if self._outbox is not None:
            await self._outbox.close()
        for fd in self._spawner.notes:
            os.close(fd)

    def _spawner_lost(self) -> None:
        """Start another; supervisors do not need it. What it may not have begun is sent again: the claim decides."""
        if self._closed:
            return
        old = self._spawner
        with contextlib.suppress(ChildProcessError):
            os.waitpid(old.pid, os.WNOHANG)
        self._spawner = Spawner.start(old.notes)
        self._outbox = Outbox(self._spawner.channel, self._spawner_lost)
        for active in self._active.values():
            if active.frame is not None:
                self._outbox.send(active.frame)
            active.known = False
        self._sweep_in(_QUICK_SWEEP_S)

    # -- what it offers

    def nodes(self) -> Sequence[NodeOffer]:
        """The machine's nodes; those that were lost are not ready."""
        return [
            replace(offer, ready=False, message="lost (fault drill)") if offer.name in self._lost else offer
            for offer in self._offers
        ]

    def validate(self, needs: JobNeeds) -> list[Problem]:
        """Every reason for which this machine could never run such a job."""
        found = environment.problems(needs.environment)
        if needs.launcher not in launchers.LAUNCHERS:
            found.append(Problem("launcher", f"{needs.launcher!r} is none of {', '.join(launchers.LAUNCHERS)}"))
        if (needs.least or needs.nodes) > len(self._offers):
            here = f"this server has {len(self._offers)}"
            found.append(
                Problem("nodes", f"{needs.least or needs.nodes} nodes are asked for and {here}: see --local-nodes")
            )
        return found

    # -- running

    async def submit(self, launch: Launch) -> None:
        """Hand it to the spawner. What becomes of it comes through the sink."""
        if launch.attempt_id in self._active:
            return
        gone = [group.node for group in launch.groups if group.node in self._lost]
        if gone:
            now = self._clock()
            message = f"node {gone[0]} was lost"
            self._sink(
                Observation(launch.attempt_id, Stage.EXITED, now, ended_at=now, reason=Reason.NodeLost, message=message)
            )
            return
        frame = self._renderer.frame(launch)
        nodes = frozenset(group.node for group in launch.groups)
        self._active[launch.attempt_id] = Active(launch.run_dir, nodes, frame, since=time.monotonic())
        self._send(frame)
        self._sweep_in(SWEEP_S)

    async def submit_array(self, launches: Sequence[Launch]) -> None:
        """One after the other: the spawner is as quick with them."""
        for launch in launches:
            await self.submit(launch)

    def _send(self, frame: bytes) -> None:
        if self._outbox is None:
            raise EngineFailure("the local engine was not started")
        self._outbox.send(frame)

    async def adopt(self, attempt_id: str, run_dir: str) -> Observation:
        """What an attempt of an earlier server does, or how it ended. ABSENT: it never began, and may be submitted."""
        seen = await asyncio.to_thread(self._look, attempt_id, run_dir)
        if seen.stage in (Stage.STARTING, Stage.RUNNING):
            self._active[attempt_id] = Active(
                run_dir, await asyncio.to_thread(_nodes_of, run_dir), since=time.monotonic()
            )
            await self._introduce(attempt_id)
        else:
            self._active.pop(attempt_id, None)
        return seen

    async def _introduce(self, attempt_id: str) -> None:
        """Give a supervisor our notes pipe; when it cannot be asked yet, the sweep tries again."""
        active = self._active.get(attempt_id)
        link = Link.connect(active.run_dir) if active else None
        if active is not None and link is not None:
            try:
                with contextlib.suppress(EngineFailure):
                    await link.ask({"op": "notes"}, (self._spawner.notes[1],))
                    active.known = True
            finally:
                link.close()
        self._sweep_in(SWEEP_S if active is None or active.known else _QUICK_SWEEP_S)

    def _look(self, attempt_id: str, run_dir: str) -> Observation:
        """Blocking: read the run folder; settle it when its supervisor is dead."""
        now = self._clock()
        if (record := folder.read_json(f"{run_dir}/{folder.EXIT}")) is not None:
            return from_record(attempt_id, record, now)
        if not os.path.isdir(run_dir):
            return Observation(attempt_id, Stage.ABSENT, now)
        lock = folder.open_lock(run_dir, create=True)
        if lock is None:
            started = folder.read_json(f"{run_dir}/{folder.STARTED}")
            if started is None:
                return Observation(attempt_id, Stage.STARTING, now)
            return Observation(attempt_id, Stage.RUNNING, now, started_at=started["at"])
        if (record := folder.read_json(f"{run_dir}/{folder.EXIT}")) is not None:
            os.close(lock)
            return from_record(attempt_id, record, now)
        started = folder.read_json(f"{run_dir}/{folder.STARTED}")
        if started is None:
            folder.abandon(run_dir, lock)
            return Observation(attempt_id, Stage.ABSENT, now)
        record = self._settle(attempt_id, run_dir, started, now)
        os.close(lock)
        return from_record(attempt_id, record, now)

    def _settle(self, attempt_id: str, run_dir: str, started: dict[str, Any], now: float) -> dict[str, Any]:
        """Its supervisor is dead: end what it left, and write down that the end is not known."""
        cage = Cage(self._layout, attempt_id).attach()
        while (left := procs.marked(attempt_id)) or cage.pids():
            cage.kill()
            procs.send(left, signal.SIGKILL)
            time.sleep(0.005)
        cage.remove()
        if started["boot_id"] == procs.boot_id():
            reason, message = Reason.SupervisorLost, "its supervisor was killed; its processes were ended"
        else:
            reason, message = Reason.NodeLost, "the machine was restarted while it ran"
        record = {
            "format": folder.FORMAT,
            "lost": True,
            "reason": reason,
            "message": message,
            "exit_code": None,
            "signal": None,
        }
        record |= {"started_at": started["at"], "ended_at": now, "restarts": 0, "ranks": []}
        folder.write_exit(f"{run_dir}/{folder.EXIT}", record)
        return record

    async def stop(self, attempt_id: str, run_dir: str, *, reason: str, grace_s: float) -> None:
        """SIGTERM, and after ``grace_s`` SIGKILL; the end's reason will be ``reason``. Also before it has begun."""
        request = {"op": "stop", "reason": reason, "message": "", "grace_s": grace_s}
        deadline = time.monotonic() + _STOP_PATIENCE_S
        pause = 0.005
        while time.monotonic() < deadline:
            link = Link.connect(run_dir)
            if link is not None:
                try:
                    await link.ask(request)
                    return
                except EngineFailure:
                    pass  # it ended while we asked: seen below
                finally:
                    link.close()
            message = "stopped before it began"
            seen = await asyncio.to_thread(self._look_or_forestall, attempt_id, run_dir, reason, message)
            if seen.stage in (Stage.EXITED, Stage.LOST):
                self._ended(seen)
                return
            await asyncio.sleep(pause)
            pause = min(0.2, pause * 2)
        raise EngineFailure(f"the supervisor of {attempt_id} cannot be reached in {run_dir}")

    def _look_or_forestall(self, attempt_id: str, run_dir: str, reason: str, message: str) -> Observation:
        """Blocking: what is; and where nothing is, take the claim, so that nothing will ever be."""
        seen = self._look(attempt_id, run_dir)
        if seen.stage is not Stage.ABSENT:
            return seen
        now = self._clock()
        record = {"format": folder.FORMAT, "reason": reason, "message": message, "exit_code": None}
        record |= {"signal": None, "started_at": None, "ended_at": now, "restarts": 0, "ranks": []}
        try:
            lock = folder.claim(run_dir)
        except OSError:  # where no folder can be made, no supervisor can make one either
            self._active.pop(attempt_id, None)
            return from_record(attempt_id, record, now)
        if lock is None:
            return replace(seen, stage=Stage.STARTING)
        folder.write_json(f"{run_dir}/{folder.EXIT}", record, durable=True)
        os.close(lock)
        return from_record(attempt_id, record, now)

    async def gpu_samples(self) -> Sequence[GpuSample]:
        """What NVML says of the machine's GPUs; it is not asked where there are none."""
        if not any(offer.gpus for offer in self._offers):
            return ()
        found, now = await asyncio.to_thread(gpu_utilization), self._clock()
        return [
            GpuSample(offer.name, gpu.id, found[gpu.id], now)
            for offer in self._offers
            for gpu in offer.gpus
            if gpu.id in found
        ]

    async def lose(self, node: str) -> None:
        """End every process on ``node`` at once and offer it no more. Raises NotFound."""
        self._check_node(node)
        self._lost.add(node)
        struck = [active.run_dir for active in self._active.values() if node in active.nodes]
        await asyncio.gather(*(self._strike(run_dir, node) for run_dir in struck))

    async def _strike(self, run_dir: str, node: str) -> None:
        deadline = time.monotonic() + _STOP_PATIENCE_S
        while time.monotonic() < deadline and not folder.ended(run_dir):
            link = Link.connect(run_dir)
            if link is not None:
                with contextlib.suppress(EngineFailure):
                    await link.ask({"op": "lose", "node": node})
                link.close()
                return
            await asyncio.sleep(0.01)

    async def restore(self, node: str) -> None:
        """Offer a lost node again. Raises NotFound."""
        self._check_node(node)
        self._lost.discard(node)

    async def cordon(self, node: str, why: str | None, *, force: bool = False) -> None:
        """Nothing to do: whoever places work here knows. Raises NotFound."""
        self._check_node(node)

    def _check_node(self, node: str) -> None:
        if all(offer.name != node for offer in self._offers):
            raise NotFound(f"there is no node {node!r} on this machine")

    # -- reading and entering

    def logs(self, run_dir: str) -> LogReader:
        return LocalLogReader(run_dir)

    async def session(self, attempt_id: str, run_dir: str, request: SessionRequest) -> Session:
        """A terminal, a command, or a port. Raises InvalidInput, NotFound, Conflict."""
        if request.port is None and not request.command:
            raise InvalidInput("no command was given", details=[Problem("command", "give at least one word")])
        return await open_session(run_dir, request)

    # -- notes

    def _read_notes(self) -> None:
        try:
            data = os.read(self._spawner.notes[0], _NOTES_READ)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._take_note(json.loads(line))
        if len(self._rest) > LIMIT:
            self._rest = b""

    def _take_note(self, note: dict[str, Any]) -> None:
        attempt_id = note["id"]
        active = self._active.get(attempt_id)
        if active is None:
            return
        kind, now = note["n"], self._clock()
        if kind == "exited" and "reason" in note:
            self._ended(from_record(attempt_id, note, now))
        elif kind in ("exited", "gone"):
            self._spawn(self._resolve(attempt_id))
        elif kind == "refused":
            self._retry(attempt_id, active, str(note["message"]))
        else:
            active.known, active.began, active.frame = True, True, None
            seen = Observation(attempt_id, Stage.RUNNING, now, restarts=int(note.get("restarts", 0)))
            if kind == "started":
                seen = replace(seen, started_at=note["at"], failures=rendering.failures(note.get("failures")))
            elif kind == "rank":
                happened = {**note["happened"]}
                failed = happened.pop("failure", None)
                seen = replace(seen, happened=(happened,), failures=rendering.failures([failed] if failed else ()))
            elif kind == "progress":
                seen = replace(seen, progress=note["progress"])
            self._sink(seen)

    def _ended(self, seen: Observation) -> None:
        if self._active.pop(seen.attempt_id, None) is not None:
            self._sink(seen)

    def _retry(self, attempt_id: str, active: Active, message: str) -> None:
        """It could not even be claimed (disk full, no process free): nothing is lost, so it is tried until it can be."""
        self._sink(Observation(attempt_id, Stage.STARTING, self._clock(), message=message))
        if active.frame is not None:
            asyncio.get_running_loop().call_later(_RETRY_S, self._send_again, attempt_id)

    def _send_again(self, attempt_id: str) -> None:
        active = self._active.get(attempt_id)
        if active is not None and active.frame is not None and not self._closed:
            self._send(active.frame)

    # -- watching for supervisors that died without a word

    def _sweep_in(self, after_s: float) -> None:
        if self._closed or not self._active:
            return
        loop = asyncio.get_running_loop()
        if self._sweep is not None:
            if self._sweep.when() <= loop.time() + after_s:
                return
            self._sweep.cancel()
        self._sweep = loop.call_later(after_s, self._begin_sweep)

    def _begin_sweep(self) -> None:
        self._sweep = None
        self._spawn(self._sweep_all())

    async def _sweep_all(self) -> None:
        young = time.monotonic() - _QUICK_SWEEP_S
        for attempt_id, active in list(self._active.items()):
            if active.frame is not None and active.since > young:
                continue
            if not _alive(active.run_dir):
                await self._resolve(attempt_id)
            elif not active.known:
                await self._introduce(attempt_id)
        self._sweep_in(SWEEP_S)

    async def _resolve(self, attempt_id: str) -> None:
        """Its supervisor is gone: tell how it ended, or start it again when it never began."""
        active = self._active.get(attempt_id)
        if active is None:
            return
        last_words = _last_words(active.run_dir)
        seen = await asyncio.to_thread(self._look, attempt_id, active.run_dir)
        if seen.stage in (Stage.EXITED, Stage.LOST):
            self._ended(seen)
        elif seen.stage is Stage.ABSENT and active.frame is not None:
            active.deaths += 1
            if active.deaths < _MOST_DEATHS:
                self._send_again(attempt_id)
            else:
                message = f"its supervisor died {active.deaths} times before it could begin{last_words}"
                reason = Reason.LaunchFailed
                self._ended(
                    await asyncio.to_thread(self._look_or_forestall, attempt_id, active.run_dir, reason, message)
                )
        elif seen.stage is Stage.ABSENT and not await asyncio.to_thread(procs.marked, attempt_id):
            message = "its supervisor died before it began"
            if active.began:
                message = "its run folder was removed while it ran, so how it ended cannot be known"
            self._ended(
                replace(seen, stage=Stage.LOST, ended_at=seen.at, reason=Reason.SupervisorLost, message=message)
            )

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _last_words(run_dir: str) -> str:
    """The last line of the traceback that a dying supervisor left, if any: its folder is cleared when it is looked at."""
    try:
        with open(f"{run_dir}/{folder.TRACEBACK}", "rb") as file:
            lines = file.read()[-4096:].decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return ": " + next((line.strip() for line in reversed(lines) if line.strip()), "")


def _alive(run_dir: str) -> bool:
    """Whether a supervisor holds the folder and has not finished."""
    if os.path.exists(f"{run_dir}/{folder.EXIT}") or not os.path.isdir(run_dir):
        return False
    lock = folder.open_lock(run_dir)
    if lock is None:
        return True
    os.close(lock)
    return False


def _nodes_of(run_dir: str) -> frozenset[str]:
    launch = folder.read_json(f"{run_dir}/{folder.LAUNCH}") or {}
    return frozenset(group["node"] for group in launch.get("groups", ()))


def from_record(attempt_id: str, record: Mapping[str, Any], now: float) -> Observation:
    """exit.json as an observation."""
    return Observation(
        attempt_id,
        Stage.LOST if record.get("lost") else Stage.EXITED,
        now,
        started_at=record["started_at"],
        ended_at=record["ended_at"],
        reason=record["reason"],
        message=record["message"],
        exit_code=record["exit_code"],
        signal=record["signal"],
        restarts=record["restarts"],
        ranks=tuple(rendering.rank_exit(rank) for rank in record["ranks"] if rank["rank"] is not None),
        progress=record.get("progress"),
        failures=rendering.failures(record.get("failures")),
    )
