"""A process per attempt: claims the run folder, starts the ranks, watches them, ends all of them, records how it went.

It outlives the server that asked for it. It runs user code only after the claim and ``started.json``, and it reports an
end only after nothing of the job is left. After a plain end it may see to another attempt, one at a time: making a
process costs more than all that a short job needs of it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import time
from typing import Any

from penstock.engines.local import folder, kernel, procs
from penstock.engines.local.cgroups import Layout
from penstock.engines.local.child import LaunchError
from penstock.engines.local.control import Control
from penstock.engines.local.ending import Ending, Failure
from penstock.engines.local.loop import Loop
from penstock.engines.local.notes import Notes
from penstock.engines.local.ranks import Ranks
from penstock.engines.local.setup import Setup

# A note of the start is held back this long: a job that is over by then is told of once, and needs no control socket.
_START_NOTE_AFTER_S = 0.015
_LISTEN_AGAIN_S = 1.0
_UNKILLABLE_S = 60.0  # how long processes in uninterruptible sleep are waited for


def supervise(frame: bytes, notes_fd: int, layout: Layout) -> bool:
    """Run the attempt that ``frame`` (a Launch as JSON, rendered) describes; returns when it is over or another's.

    True when nothing of it is left in this process, which can then see to another.
    """
    launch = json.loads(frame)
    notes = Notes(notes_fd, launch["attempt_id"])
    try:
        lock = folder.claim(launch["run_dir"])
        if lock is None:
            return False
        os.chdir(launch["run_dir"])
        fd = os.open(folder.LAUNCH, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        kernel.write_all(fd, frame)
        os.close(fd)
    except FileExistsError:
        return False
    except OSError as error:
        notes.send(
            "refused", patient=True, message=f"cannot make the run folder: {error.strerror}", no_space=_full(error)
        )
        return False
    if not Attempt(launch, notes, layout).run():
        return False
    os.chdir("/")
    os.close(lock)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return True


def _full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


class Attempt:
    """The life of one attempt. The working directory is the run folder, so every path here is short."""

    def __init__(self, launch: dict[str, Any], notes: Notes, layout: Layout) -> None:
        self.launch = launch
        self.notes = notes
        self.loop = Loop()
        self.started_at: float | None = None
        self.ending = Ending(launch)
        self.setup = Setup(launch, layout)
        self.ranks = Ranks(launch, self.setup, self.loop, self)
        self.control = Control(self)
        self._told_start = False
        self._grace_over = False

    def run(self) -> bool:
        """Whether it ended so plainly that this process is as it was before."""
        kernel.become_subreaper()
        kernel.name_process("penstock-job")
        signal.signal(signal.SIGTERM, self._on_term)
        plain = False
        try:
            self._start()
            while not self._over():
                self.loop.turn(self._reap)
            plain = not self.ending.term_sent and self.ranks.plain and not self.control.asked
        except LaunchError as error:
            self.ending.refuse(error.reason, error.message)
        except OSError as error:
            self.ending.refuse(
                "LaunchFailed", f"could not start: {error.strerror} ({error.filename or 'no file named'})"
            )
        self._finish()
        if plain:
            self.loop.close()
        return plain

    # -- the way in

    def _start(self) -> None:
        self.setup.prepare()
        self.started_at = time.time()
        folder.write_new_json(
            folder.STARTED,
            {
                "format": folder.FORMAT,
                "pid": os.getpid(),
                "start_time": procs.start_time(os.getpid()),
                "boot_id": procs.boot_id(),
                "at": self.started_at,
            },
        )
        self.ranks.start()
        self.loop.at("started", _START_NOTE_AFTER_S, self._tell_start)
        if self.launch.get("time_limit_s"):
            self.loop.at("limit", self.launch["time_limit_s"], self._time_is_up)
        if self.launch.get("idle_timeout_s") and self.launch.get("interactive"):
            self.control.watch_idleness(self.launch["idle_timeout_s"])

    def _tell_start(self) -> None:
        """Also the moment from which it can be asked: a job that was over before needs no socket either."""
        try:
            self.control.listen()
        except OSError:  # the disk is full: the job goes on, and can be asked when there is space
            self.loop.at("listen", _LISTEN_AGAIN_S, self._tell_start)
        self._told_start = True
        self.notes.send("started", pid=os.getpid(), at=self.started_at)

    def tell_status(self) -> None:
        """Bring a new server up to date."""
        known = self.ranks.failures(last=False)[-1:]  # a note is short, and the end tells all
        self.notes.send("started", pid=os.getpid(), at=self.started_at, failures=known, restarts=self.ranks.restarts)

    def progressed(self, summary: dict[str, Any]) -> None:
        self.notes.send("progress", progress=summary)

    def happened(self, reason: str, message: str, **fields: Any) -> None:
        """A rank exited or was started again."""
        now = time.time()
        entry = {"reason": reason, "message": message, "at": now, **fields}
        with contextlib.suppress(OSError), open(folder.EVENTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, separators=(",", ":")) + "\n")
        if not self._told_start:
            self._tell_start()
        self.notes.send("rank", happened=entry, restarts=self.ranks.restarts)

    # -- what may come over it

    def _reap(self) -> None:
        """Collect every dead child; the ranks' exits are judged together, as one may have brought down another."""
        ended = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            main = self.ranks.exited(pid, status)
            ended = ended or main is not None
            self.control.exited(pid, status)
        if ended:
            self.judge()

    def judge(self) -> None:
        """After exits: a failed one brings down the rest, with grace."""
        failure = self.ranks.first_failure()
        if failure is not None and not self.ending.decided and not self.ranks.all_over():
            self.fail(failure)

    def fail(self, failure: Failure) -> None:
        self.ending.fail(failure)
        self._let_end(self.launch["grace_s"])

    def stop(self, reason: str, message: str, grace_s: float) -> None:
        """SIGTERM to everything now, SIGKILL after the grace. A second call can only shorten the grace."""
        self.ending.decide(reason, message)
        self._let_end(grace_s)

    def lose(self, node: str) -> None:
        """As if the node's power went: its groups die at once, the others get their grace."""
        lost = self.ranks.groups_on(node)
        if not lost:
            return
        self.ending.decide("NodeLost", f"node {node} was lost", override=True)
        for index in lost:
            self.ranks.kill_group(index)
        if len(lost) == len(self.launch["groups"]):
            self._grace_over = True
        else:
            self._let_end(self.launch["grace_s"])

    def _let_end(self, grace_s: float) -> None:
        if not self.ending.term_sent:
            self.ending.term_sent = True
            self.ranks.terminate()
        self.loop.at("grace", grace_s, self._end_grace)

    def _end_grace(self) -> None:
        self._grace_over = True

    def _time_is_up(self) -> None:
        limit = self.launch["time_limit_s"]
        self.stop("TimeLimit", f"it ran longer than its time limit of {limit:g} s", self.launch["grace_s"])

    def _on_term(self, _number: int, _frame: object) -> None:
        """The machine goes down, or an administrator ends us: the job goes first."""
        self.loop.at(
            "told", 0, lambda: self.stop("NodeDrained", "the supervisor was told to end", self.launch["grace_s"])
        )

    def _over(self) -> bool:
        if self._grace_over:
            return True
        if not self.ranks.all_over():
            return False
        # Asked to stop, what the ranks left behind (a worker saving its state) may use the rest of the grace too.
        return not self.ending.term_sent or not procs.children(os.getpid())

    # -- the way out

    def _finish(self) -> None:
        self.control.close()
        stuck = self._end_everything()
        ended_at = time.time()
        out_of_memory = self.ranks.out_of_memory()
        self.ranks.finish()
        record = self.ending.record(self.ranks, out_of_memory=out_of_memory, stuck=stuck)
        record.update(
            format=folder.FORMAT, started_at=self.started_at, ended_at=ended_at, progress=self.ranks.summary()
        )
        self.setup.remove()
        with contextlib.suppress(FileNotFoundError):  # somebody removed the run folder: the server is told all the same
            folder.write_exit(folder.EXIT, record)
        self.notes.send("exited", patient=True, **record)

    def _end_everything(self) -> int:
        """Leave no process of the job; the number of those that even SIGKILL does not end (stuck in the kernel)."""
        deadline = time.monotonic() + _UNKILLABLE_S
        pause = 0.0005
        while True:
            try:
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    self.ranks.exited(*ended)
                    self.control.exited(*ended)
            except ChildProcessError:
                return 0
            self.setup.kill()
            procs.kill_below(os.getpid())
            if time.monotonic() > deadline:
                return len(procs.descendants(os.getpid()))
            time.sleep(pause)
            pause = min(0.05, pause * 2)
