"""The processes of one attempt: started by us (ranks, or one launcher a node) or, through the shim, by a launcher."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from typing import Any, Protocol

from penstock.engines.local import child, folder, procs, quick
from penstock.engines.local.child import LaunchError, Start
from penstock.engines.local.ending import Failure, root_cause, split
from penstock.engines.local.failing import Failings
from penstock.engines.local.logwriter import LogWriter
from penstock.engines.local.loop import Loop
from penstock.engines.local.reports import Progress
from penstock.engines.local.setup import Setup
from penstock.engines.local.streams import Output, Reports

_NOTE_BYTES = 1 << 16


class Listener(Protocol):
    """Who is told what happens."""

    def happened(self, reason: str, message: str, **fields: Any) -> None: ...
    def progressed(self, summary: dict[str, Any]) -> None: ...
    def stop(self, reason: str, message: str, grace_s: float) -> None: ...


class Main:
    """A process that the supervisor started; ``rank`` is None for a launcher."""

    __slots__ = ("at", "exit_code", "group", "over", "pid", "rank", "signal", "who")

    def __init__(self, pid: int, group: int, rank: int | None, who: str) -> None:
        self.pid, self.group, self.rank, self.who = pid, group, rank, who
        self.exit_code: int | None = None
        self.signal: int | None = None
        self.at = 0.0
        self.over = False

    @property
    def failed(self) -> bool:
        return self.over and self.exit_code != 0


class Ranked:
    """One rank as its shim tells of it."""

    __slots__ = ("at", "exit_code", "node", "pid", "restart", "running", "signal")

    def __init__(self, node: str) -> None:
        self.node = node
        self.pid = 0
        self.restart = 0
        self.running = False
        self.exit_code: int | None = None
        self.signal: int | None = None
        self.at: float | None = None


class Ranks:
    """Starts them, reads them, knows how each ended."""

    def __init__(self, launch: dict[str, Any], setup: Setup, loop: Loop, listener: Listener) -> None:
        self.launch = launch
        self.mains: list[Main] = []
        self.outputs: list[Output] = []
        self._output_of: dict[str, Output] = {}  # by stream
        self.reports: list[Reports] = []
        self.restarts = 0
        self._ranked: dict[int, Ranked] = {}
        self._setup = setup
        self._loop = loop
        self._listener = listener
        self._progress = Progress(folder.PROGRESS, loop, listener.progressed)
        self._failings = Failings(folder.LOGS)
        self._notes_fd = -1
        self._refusal: LaunchError | None = None
        self._world = launch["procs"] * len(launch["groups"])
        self._shimmed = any(group["shimmed"] for group in launch["rendered"])

    # -- start

    def start(self) -> None:
        """Start every process and wait until each has become its program. Raises LaunchError."""
        if self._shimmed:
            self._open_fifos()
        errors, told = os.pipe2(os.O_CLOEXEC)
        try:
            for index, rendered in enumerate(self.launch["rendered"]):
                self._start_group(index, rendered, told)
        finally:
            os.close(told)
        with open(errors, "rb") as file:
            text = file.read()
        if text:
            failure = json.JSONDecoder().raw_decode(text.decode())[0]
            raise LaunchError(failure["reason"], failure["message"])

    def _start_group(self, index: int, rendered: dict[str, Any], errors: int) -> None:
        for worker in rendered["workers"]:
            rank = None if rendered["shimmed"] else worker["rank"]
            stream = _stream_name(rank, index)
            reader, writer = self._pipe()
            env = {**rendered["env"], **worker["env"]}
            start = self._setup.start(index, rendered["argv"], env, writer)
            if rank is None:
                env["PENSTOCK_SUPERVISOR_PID"] = str(os.getpid())
            else:
                report_reader, start.report = self._pipe()
                env["PENSTOCK_REPORT_FD"] = str(child.REPORT_FD)
                self.reports.append(Reports(self._loop, report_reader, rank, self._progress))
            main = Main(0, index, rank, self._called(rank, index))
            self.mains.append(main)
            main.pid = self._spawn(start, errors, main)
            os.close(writer)
            if start.report is not None:
                os.close(start.report)
            self._listen(reader, stream)

    def _spawn(self, start: Start, errors: int, main: Main) -> int:
        if not (self.plain and quick.can(start)):
            return child.spawn(start, errors)
        try:
            return quick.spawn(start)
        except LaunchError as error:
            main.over, main.exit_code, main.at = True, error.exit_code, time.time()
            raise

    def _pipe(self) -> tuple[int, int]:
        """A pipe of which our end does not block and theirs does, owned by the job's user."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        self._setup.give(writer)
        return reader, writer

    def _listen(self, fd: int, stream: str) -> None:
        path = f"{folder.LOGS}/{stream}"
        writer = LogWriter(path, self.launch["log_first_bytes"], self.launch["log_newest_bytes"])
        self.outputs.append(Output(self._loop, fd, writer))
        self._output_of[stream] = self.outputs[-1]

    def _called(self, rank: int | None, group: int) -> str:
        if rank is None:
            return f"the launcher on {self.launch['groups'][group]['node']}"
        return "the command" if self._world == 1 else f"rank {rank}"

    def _open_fifos(self) -> None:
        """Launchers close what they do not know, so ranks find their pipes by path (``io/<rank>.out``, ``.report``)."""
        os.mkdir(folder.IO, 0o711)
        with open(f"{folder.IO}/rank.py", "wb") as file:
            file.write(_shim_source())
        os.chmod(f"{folder.IO}/rank.py", 0o644)
        self._notes_fd = self._fifo("notes")
        self._loop.watch(self._notes_fd, self._read_notes)
        for rank in range(self._world):
            self._ranked[rank] = Ranked(self.launch["groups"][rank // self.launch["procs"]]["node"])
            self._listen(self._fifo(f"{rank}.out"), str(rank))
            self.reports.append(Reports(self._loop, self._fifo(f"{rank}.report"), rank, self._progress))

    def _fifo(self, name: str) -> int:
        """Opened for both directions: it never comes to an end while ranks are started again."""
        path = f"{folder.IO}/{name}"
        os.mkfifo(path, 0o600)
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._setup.give(fd)
        return fd

    # -- what happens

    def exited(self, pid: int, status: int) -> Main | None:
        main = next((main for main in self.mains if main.pid == pid and not main.over), None)
        if main is None:
            return None
        main.over = True
        main.exit_code, main.signal = split(status)
        main.at = time.time()
        if main.failed:
            failure = Failure(main.who, main.exit_code, main.signal, main.at)
            node = self.launch["groups"][main.group]["node"]
            if not self._shimmed:
                self._failed(failure, main.rank, node)
            if self._world > 1:
                fields = {"rank": main.rank, "exit_code": main.exit_code, "signal": main.signal}
                self._listener.happened("RankExited", str(failure), node=node, **fields)
        return main

    def _failed(self, failure: Failure, rank: int | None, node: str) -> None:
        """What the dead have said counts: how far they came, and their last words."""
        output = self._output_of.get(str(rank))
        if output is not None:
            output.drain()
        for report in self.reports:
            report.drain()
        self._failings.exited(failure, rank, node)

    def _read_notes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for line in os.read(self._notes_fd, _NOTE_BYTES).splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                    self._take_note(json.loads(line))

    def _take_note(self, note: dict[str, Any]) -> None:
        """From a shim, that is from the job's user: believed of this job's ranks, and of nothing else."""
        rank = self._ranked[note["rank"]]
        if note["event"] == "start":
            self._rank_started(rank, int(note["restart"]), int(note["pid"]), int(note["node_rank"]))
        elif note["event"] == "exit":
            rank.running = False
            rank.exit_code, rank.signal, rank.at = note["code"], note["signal"], float(note["at"])
            consequence = rank.signal == signal.SIGTERM and self._one_failed_before(rank)
            failure = Failure(f"rank {int(note['rank'])}", note["code"], note["signal"], rank.at)
            if note["code"] != 0:
                self._failed(failure, int(note["rank"]), rank.node)
            if note["code"] != 0 and not consequence:
                fields = {"rank": note["rank"], "exit_code": note["code"], "signal": note["signal"]}
                self._listener.happened("RankExited", str(failure), node=rank.node, **fields)
        elif note["event"] == "refused" and self._refusal is None:
            self._refusal = LaunchError(str(note["reason"]), str(note["message"])[:1000])
            self._listener.stop(self._refusal.reason, self._refusal.message, 0.0)

    def _one_failed_before(self, rank: Ranked) -> bool:
        """Launchers end the other ranks when one fails: those exits are no news."""
        others = (other for other in self._ranked.values() if other is not rank and other.restart == rank.restart)
        return any(other.at is not None and other.exit_code != 0 for other in others)

    def _rank_started(self, rank: Ranked, restart: int, pid: int, node_rank: int) -> None:
        rank.running, rank.pid, rank.restart = True, pid, restart
        rank.exit_code = rank.signal = rank.at = None
        rank.node = self.launch["groups"][node_rank]["node"]
        if restart <= self.restarts:
            return
        failed = self._failings.settle(self.restarts, self._progress.reached)
        self.restarts, self._progress.reached = restart, None
        allowed = self.launch["restarts_left"]
        if restart > allowed:
            message = f"the launcher restarted its ranks {restart} times where {allowed} were left"
            self._listener.stop("RestartsExhausted", message, self.launch["grace_s"])
        else:
            message = f"all ranks were started again (restart {restart} of {allowed} in place)"
            self._listener.happened("RankRestarted", message, restart=restart, failure=failed)

    # -- questions

    @property
    def plain(self) -> bool:
        """One process, and no launcher: ``finish`` then closes all that was opened for it."""
        return self._world == 1 and not self._shimmed

    def all_over(self) -> bool:
        return all(main.over for main in self.mains)

    def first_failure(self) -> Failure | None:
        """The likeliest cause among what has failed. Ranks that a launcher restarted, or outlived, do not count."""
        mains = [Failure(m.who, m.exit_code, m.signal, m.at) for m in self.mains if m.failed]
        if not mains:
            return None
        ranked = [
            Failure(f"rank {number}", rank.exit_code, rank.signal, rank.at)
            for number, rank in self._ranked.items()
            if rank.at is not None and rank.exit_code != 0 and rank.restart == self.restarts
        ]
        return root_cause(ranked or mains)

    def failures(self, *, last: bool) -> list[dict[str, Any]]:
        """Each time that ranks failed, with its root; asked once all are over. ``last``: by themselves this time too."""
        if last:
            self._failings.settle(self.restarts, self._progress.reached)
        return self._failings.known

    def plain_exit(self) -> tuple[int | None, int | None]:
        if not self.mains or not self.mains[0].over:
            return None, None
        return self.mains[0].exit_code, self.mains[0].signal

    def exits(self) -> list[dict[str, Any]]:
        if self._shimmed:
            return [
                {
                    "rank": n,
                    "node": r.node,
                    "exit_code": r.exit_code,
                    "signal": r.signal,
                    "restarts": r.restart,
                    "ended_at": r.at,
                }
                for n, r in self._ranked.items()
            ]
        nodes = self.launch["groups"]
        return [
            {
                "rank": m.rank,
                "node": nodes[m.group]["node"],
                "exit_code": m.exit_code,
                "signal": m.signal,
                "restarts": 0,
                "ended_at": m.at or None,
            }
            for m in self.mains
        ]

    def groups_on(self, node: str) -> list[int]:
        return [index for index, group in enumerate(self.launch["groups"]) if group["node"] == node]

    def out_of_memory(self) -> list[str]:
        """Nodes on which the kernel ended a process for the job's memory limit."""
        return [
            self.launch["groups"][index]["node"]
            for index, cage in enumerate(self._setup.cages)
            if self.launch["groups"][index]["memory"] and cage.out_of_memory()
        ]

    def summary(self) -> dict[str, Any] | None:
        return self._progress.summary()

    def last_output(self) -> float:
        """Monotonic time at which a rank last wrote anything."""
        return max((output.last_at for output in self.outputs), default=0.0)

    def members(self, group: int | None = None) -> list[int]:
        """Processes of the job, or of one group."""
        groups = range(len(self.launch["groups"])) if group is None else (group,)
        inside = [self._setup.pids(index) for index in groups]
        if all(pids is not None for pids in inside):
            return [pid for pids in inside for pid in pids or ()]
        if group is None:
            return procs.descendants(os.getpid())
        mains = {main.pid for main in self.mains if main.group == group and not main.over}
        return [pid for pid in procs.descendants(os.getpid()) if procs.session_of(pid) in mains]

    # -- end

    def terminate(self) -> None:
        """SIGTERM: to what the ranks started first and to our own children last, as launchers pass it on."""
        mains = [main.pid for main in self.mains if not main.over]
        procs.send((pid for pid in self.members() if pid not in mains), signal.SIGTERM)
        procs.send(mains, signal.SIGTERM)

    def kill_group(self, index: int) -> None:
        if not self._setup.cages[index].kill():
            procs.send(self.members(index), signal.SIGKILL)

    def finish(self) -> None:
        """After the last process is gone: read what is left in the pipes."""
        if self._notes_fd >= 0:
            self._read_notes()
        for output in self.outputs:
            output.finish()
        for report in self.reports:
            report.finish()
        self._progress.close()


def _stream_name(rank: int | None, group: int) -> str:
    if rank is not None:
        return str(rank)
    return "launcher" if group == 0 else f"launcher-{group}"


def _shim_source() -> bytes:
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "rank.py"), "rb") as file:
        return file.read()
