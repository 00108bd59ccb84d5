"""``penstock logs``, ``why``, ``cancel`` and ``delete``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput, PenstockError
from penstock.client.verb import Invocation, Verb
from penstock.jobs.commands.follow import follow_log
from penstock.jobs.commands.view import because

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.client.resources import Resource


def _logs(call: Invocation, arguments: Namespace) -> int:
    options: dict[str, Any] = {
        "rank": arguments.rank,
        "attempt": arguments.attempt,
        "follow": arguments.follow or None,
        "since": arguments.since,
        "tail": arguments.tail,
        "prefix": arguments.prefix,
        "timestamps": arguments.timestamps or None,
        "raw": arguments.raw or None,
    }
    if call.output.format != "table":
        raise InvalidInput("a log is plain text", hint="Leave out --output.")
    if arguments.tail is not None and arguments.tail < 0:
        raise InvalidInput(f"--tail {arguments.tail}: write a number of lines, 0 or more")
    if arguments.follow:
        follow_log(call, arguments.job, options)
        return 0
    empty = True
    with call.client.jobs.logs(arguments.job, **options) as log:
        for chunk in log:
            empty = False
            call.output.raw(chunk)
    if empty:
        _note_of_none(call, arguments.job)
    return 0


def _note_of_none(call: Invocation, name: str) -> None:
    """Where there is no log because nothing has run yet: says so, and why."""
    job = call.client.jobs.get(name)
    if not job.status.get("attempt") or job.phase == "Pending":
        cause = because(job.reason, job.status.get("message"), job.phase)
        call.output.note(f"job {name} has no log yet: {job.phase}" + (f" ({cause})" if cause else ""))


def _logs_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("job", metavar="JOB")
    add("-f", "--follow", action="store_true", help="go on until the job ends, over all its attempts")
    add("--rank", metavar="RANK", help="one rank's log (0, 1, ... or launcher); default: all, merged by time")
    add("--since", metavar="WHEN", help="10m (ago), or a time: 2026-01-31T12:00:00Z")
    add("--tail", type=int, metavar="N", help="the last N lines")
    add("--attempt", type=int, metavar="N", help="default: the newest")
    prefix = parser.add_mutually_exclusive_group()
    prefix.add_argument("--prefix", action="store_true", default=None, help="begin each line with its rank")
    prefix.add_argument(
        "--no-prefix",
        action="store_false",
        dest="prefix",
        default=None,
        help="not so (default: where several ranks are merged)",
    )
    add("--timestamps", action="store_true", help="begin each line with its time")
    add("--raw", action="store_true", help="leave control sequences in: a log may then take over the terminal")


def _why(call: Invocation, arguments: Namespace) -> int:
    why = call.client.jobs.why(arguments.job)
    out = call.output
    if out.format != "table":
        out.document(why)
        return 0
    cause = because(why["reason"], why.get("message"), why["phase"])
    out.line(f"{why['project']}/{why['name']} is {why['phase']}" + (f": {cause}" if cause != why["phase"] else ""))
    for title, lines in (("Evidence", why.get("evidence")), ("What helps", why.get("helps"))):
        if lines:
            out.line(f"{title}:")
            for line in lines:
                out.line(f"  {line}")
    return 0


def _cancel(call: Invocation, arguments: Namespace) -> int:
    def cancel(name: str) -> Resource:
        return call.client.jobs.cancel(name, reason=arguments.reason)

    return _each(call, arguments.jobs, cancel)


def _delete(call: Invocation, arguments: Namespace) -> int:
    return _each(call, arguments.jobs, call.client.jobs.delete)


def _each(call: Invocation, names: list[str], do: Any) -> int:
    """Does it to every name: one that fails is told, and the others are done all the same."""
    code, done = 0, []
    for name in names:
        try:
            job = do(name)
        except PenstockError as error:
            if len(names) == 1:
                raise
            call.output.note(f"{name}: {error}")
            code = error.exit_code
            continue
        if job is None:
            done.append({"kind": "Job", "name": name, "deleted": True})
            words = "deleted"
        else:
            done.append(job)
            words = f"{job.phase} ({job.reason})"
        if call.output.format == "table":
            call.output.line(f"{name}: {words}")
    if call.output.format != "table":
        call.output.document(done[0] if len(names) == 1 else {"items": done})
    return code


def _names(parser: ArgumentParser) -> None:
    parser.add_argument("jobs", nargs="+", metavar="JOB")


def _names_and_reason(parser: ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("--reason", metavar="TEXT", help="why, for the ledger")


def _name(parser: ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB")


VERBS = {
    "logs": Verb(
        "penstock logs -f digits\npenstock logs --rank 1 --tail 50 digits\npenstock logs --since 10m --timestamps digits",
        _logs_arguments,
        _logs,
    ),
    "why": Verb("penstock why digits", _name, _why),
    "cancel": Verb(
        "penstock cancel digits\npenstock cancel --reason 'wrong data' sweep-1 sweep-2",
        _names_and_reason,
        _cancel,
        about="SIGTERM first, SIGKILL after the job's grace period.",
    ),
    "delete": Verb("penstock delete digits", _names, _delete, about="Its log and checkpoints go with it."),
}
