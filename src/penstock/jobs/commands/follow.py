"""Following a job to its end: its log as it comes, a progress bar below, and its exit code at last."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from penstock.base.errors import NotFound, PenstockError, Unavailable
from penstock.base.quantities import format_duration, format_time, parse_time
from penstock.client.kinds import is_final
from penstock.client.resources import RESUME_PAUSES_S, Resource
from penstock.client.verb import Invocation
from penstock.jobs.commands.view import bar, why_column

if TYPE_CHECKING:
    from penstock.client.client import Client
    from penstock.client.verb import Live

PATIENCE_S = 2.0  # a job that waits longer says why
_ENDING_S = 30.0  # the log has ended: how long the job's own end may take to follow


def follow_new(call: Invocation, job: Resource) -> int:
    """Follows a job that was just made; answers its exit code."""
    out = call.output
    if out.format == "table":
        out.note(f"job {job.project}/{job.name} was made")
    if job.spec.get("interactive") and not job.spec.get("command"):
        return _work_in(call, job)
    final = follow(call, job)
    if out.format == "table":
        out.note(ending(final))
    else:
        out.document(final)
    return exit_code(final)


def follow(call: Invocation, job: Resource) -> Resource:
    """Shows the log until the job has ended; answers the job as it is then."""
    live = call.output.live()
    told = not sys.stderr.isatty()  # a terminal has the bar, which says it
    watcher = Watcher(call.client, job, live, Waiting(call.output.note) if told else None)
    watcher.start()
    try:
        if call.output.format == "table" and not job.spec.get("array"):
            show_log(call.client, watcher, live.write)
            watcher.join(_ENDING_S)
        while watcher.is_alive():
            watcher.join(1.0)  # in slices: Ctrl-C is seen between them
    except Unavailable as error:
        raise _goes_on(job, error) from error
    finally:
        watcher.close()
        live.close()
    if isinstance(watcher.error, Unavailable):
        raise _goes_on(job, watcher.error)
    if watcher.error is not None:
        raise watcher.error
    return watcher.job


def follow_log(call: Invocation, name: str, options: Mapping[str, Any]) -> None:
    """``logs -f``: the log until the job's end, whatever becomes of the server meanwhile."""
    job = Resource(name=name, project=call.settings.project)
    watcher = Watcher(call.client, job, None, Waiting(call.output.note))
    watcher.start()
    try:
        show_log(call.client, watcher, call.output.raw, options)
    finally:
        watcher.close()


def _goes_on(job: Resource, error: Unavailable) -> Unavailable:
    return Unavailable(
        f"{error.message}; the job goes on: penstock logs -f {job.name}",
        hint="Follow it once the server is back: `penstock up` starts it again.",
    )


class Waiting:
    """Tells why a job has not begun: once it has waited a while, and whenever the reason changes."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._text = self._said = ""
        self._due = False
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def see(self, job: Resource) -> None:
        with self._lock:
            self._text = f"job {job.name} waits: {why_column(job, 0.0)}" if job.phase == "Pending" else ""
            if self._text and self._timer is None:
                self._timer = threading.Timer(PATIENCE_S, self._say)
                self._timer.daemon = True
                self._timer.start()
        if self._due:
            self._say()

    def _say(self) -> None:
        with self._lock:
            self._due = True
            if self._text and self._text != self._said:
                self._said = self._text
                self._note(self._text)

    def close(self) -> None:
        with self._lock:
            self._text = ""
            if self._timer is not None:
                self._timer.cancel()


class Watcher(threading.Thread):
    """Keeps ``job`` as the server last told it, and the bar with it; ends when the job has."""

    def __init__(self, client: Client, job: Resource, live: Live | None, waiting: Waiting | None = None) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.error: PenstockError | None = None
        self._client = client
        self._live = live
        self._waiting = waiting

    def run(self) -> None:
        try:
            for job in self._client.jobs.watch(self.job.name, project=self.job.project):
                self.job = job
                if self._waiting is not None:
                    self._waiting.see(job)
                if self._live is not None and not is_final(job):
                    self._live.show(bar(job))
        except PenstockError as error:
            self.error = error

    def close(self) -> None:
        if self._waiting is not None:
            self._waiting.close()


def show_log(
    client: Client, watcher: Watcher, write: Callable[[bytes], None], options: Mapping[str, Any] | None = None
) -> None:
    """Writes the log as it comes. A stream that breaks off is taken up where it was, for a minute.

    Raises Unavailable where the server does not come back, and at once where it was never heard.
    """
    job, asked = watcher.job, {**(options or {}), "follow": True}
    pauses, begun = iter(RESUME_PAUSES_S), options is None
    while True:
        broken: Unavailable | None = None
        try:
            with client.jobs.logs(job.name, project=job.project, **asked) as log:
                begun = True
                for chunk in log:
                    asked |= {"since": format_time(time.time()), "tail": None}
                    pauses = iter(RESUME_PAUSES_S)
                    write(chunk)
            if asked.get("attempt") is not None:
                return
        except NotFound:
            if begun and options is None:
                return  # deleted meanwhile; the watcher says so
            raise
        except Unavailable as error:
            broken = error
        pause_s = next(pauses, None)
        if broken is not None and not begun:
            raise broken
        if pause_s is None:
            lost = broken or watcher.error
            if not isinstance(lost, Unavailable):
                return
            raise lost if options is None else _goes_on(job, lost)
        # A log that came to its end is the whole log only where the job has ended too: a server that stops ends both.
        watcher.join(pause_s if broken is not None else max(pause_s, 1.0))
        if not watcher.is_alive():
            if watcher.error is None:
                return
            if not isinstance(watcher.error, Unavailable):
                raise watcher.error
        client.transport.find_again()


def _work_in(call: Invocation, job: Resource) -> int:
    """An interactive job without a command: a terminal in it, once it runs."""
    from penstock.jobs.commands.session import open_shell  # noqa: PLC0415 - sessions alone need a WebSocket

    live = call.output.live()
    try:
        for seen in call.client.jobs.watch(job.name, project=job.project):
            live.show(bar(seen))
            if seen.phase == "Running" or is_final(seen):
                job = seen
                break
    finally:
        live.close()
    if is_final(job):
        call.output.note(ending(job))
        return exit_code(job)
    code = open_shell(call, job.name, job.project)
    call.output.note(
        f"job {job.name} still holds its resources until it is idle for its time: "
        f"penstock shell {job.name}, or penstock cancel {job.name}"
    )
    return code


def ending(job: Resource) -> str:
    """One line: what became of it, why, and how long it ran."""
    status = job.status
    began, ended = status.get("started_at"), status.get("finished_at")
    took = f" after {format_duration(parse_time(ended) - parse_time(began))}" if began and ended else ""
    restarts = f", {status['restarts']} restart{'s' * (status['restarts'] != 1)}" if status.get("restarts") else ""
    return f"job {job.project}/{job.name}: {job.phase}{took}{restarts} ({why_column(job, 0.0)})"


def exit_code(job: Resource) -> int:
    """0 for Succeeded; else the job's own exit code, 128 + its signal, or 1."""
    if job.phase == "Succeeded":
        return 0
    status = job.status
    if code := status.get("exit_code"):
        return int(code)
    return 128 + int(status["signal"]) if status.get("signal") else 1
