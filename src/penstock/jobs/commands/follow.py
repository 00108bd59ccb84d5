"""Following a job to its end: its log as it comes, a progress bar below, and its exit code at last."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from penstock.base.errors import NotFound, PenstockError, Unavailable
from penstock.base.quantities import format_duration, format_time, parse_time
from penstock.client.kinds import is_final
from penstock.client.resources import RESUME_PAUSES_S, Resource
from penstock.client.verb import Invocation
from penstock.jobs.commands.view import bar, why_column

if TYPE_CHECKING:
    from penstock.client.client import Client
    from penstock.client.verb import Live

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
    watcher = Watcher(call.client, job, live)
    watcher.start()
    try:
        if call.output.format == "table" and not job.spec.get("array"):
            _show_log(call.client, job, live, watcher)
            watcher.join(_ENDING_S)
        while watcher.is_alive():
            watcher.join(1.0)  # in slices: Ctrl-C is seen between them
    finally:
        live.close()
    if watcher.error is not None:
        raise watcher.error
    return watcher.job


class Watcher(threading.Thread):
    """Keeps ``job`` as the server last told it, and the bar with it; ends when the job has."""

    def __init__(self, client: Client, job: Resource, live: Live) -> None:
        super().__init__(daemon=True)
        self.job = job
        self.error: PenstockError | None = None
        self._client = client
        self._live = live

    def run(self) -> None:
        try:
            for job in self._client.jobs.watch(self.job.name, project=self.job.project):
                self.job = job
                if not is_final(job):
                    self._live.show(bar(job))
        except PenstockError as error:
            self.error = error


def _show_log(client: Client, job: Resource, live: Live, watcher: Watcher) -> None:
    """Writes the log as it comes. A stream that breaks off is taken up where it was, to the second."""
    since: float | None = None
    pauses = iter(RESUME_PAUSES_S)
    while True:
        try:
            with client.jobs.logs(job.name, project=job.project, follow=True, since=format_time(since)) as log:
                for chunk in log:
                    since, pauses = time.time(), iter(RESUME_PAUSES_S)
                    live.write(chunk)
            return
        except NotFound:
            return  # deleted meanwhile; the watcher says so
        except Unavailable as error:
            pause_s = next(pauses, None)
            if pause_s is None:
                raise
            watcher.join(pause_s)
            if not watcher.is_alive() and watcher.error is not None:
                raise watcher.error from error


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
