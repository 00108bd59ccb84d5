"""``penstock inject``: break something of a running job on purpose, see what is made of it, and put it back.

Run on the node itself, since faults act on its processes, control groups and links. The server decides whether it may be
done, and its ledger says who did it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from penstock.base.errors import Conflict, InvalidInput, NotFound, PenstockError
from penstock.base.quantities import parse_duration
from penstock.client.verb import Column, Invocation, Verb
from penstock.diagnosis.injecting import acting, catalogue, finding, notes
from penstock.diagnosis.injecting.spec import NEEDS_WORDS, Fault, Order, Target, words

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_COLUMNS = (
    Column("FAULT", lambda row, _: str(row["name"])),
    Column("CAUSE", lambda row, _: str(row["cause"])),
    Column("LAYER", lambda row, _: str(row["layer"])),
    Column("STRENGTH", lambda row, _: str(row["strength"])),
    Column("NEEDS", lambda row, _: ", ".join(row["needs"]) or "-"),
    Column("WHAT", lambda row, _: str(row["words"])),
)


def _configure(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("fault", nargs="?", metavar="FAULT", help="its name, or its cause's; --list shows them")
    add("--job", metavar="JOB", help="a running job whose ranks are on this machine")
    add("--rank", action="append", type=int, metavar="N", help="which rank, repeated for several; default: 0")
    add("--strength", type=float, metavar="X", help="in the unit that --list names")
    add("--for", dest="lasts", default="60s", metavar="TIME", help="how long; default: 60s. Undone then, or at Ctrl-C")
    add("--place", default="", metavar="PATH", help="a file or folder, for faults of storage")
    add("--yes", action="store_true", help="do not ask")
    add("--list", action="store_true", help="what can be broken, and what each needs")
    add("--undo", action="store_true", help="put back what an injection that was killed has left on this machine")


def _run(call: Invocation, arguments: Namespace) -> int:
    if arguments.list:
        return _list(call)
    if arguments.undo:
        return _undo(call)
    if arguments.fault is None or arguments.job is None:
        raise InvalidInput("say which fault, and --job which job", hint="`penstock inject --list` shows the faults.")
    fault = catalogue.named(arguments.fault)
    try:
        lasts = parse_duration(arguments.lasts)
    except ValueError as error:
        raise InvalidInput(f"--for {arguments.lasts!r}: {error}") from error
    ranks = [] if fault.everywhere else arguments.rank or [0]
    strength = fault.strength.default if arguments.strength is None else arguments.strength
    said = words(fault, ranks, strength, lasts)
    _confirm(f"{said}, of job {arguments.job}", yes=arguments.yes)
    asked = {"fault": fault.name, "ranks": ranks, "strength": strength, "for_s": lasts}
    permit = call.client.jobs.inject(arguments.job, asked)
    left: list[str] | None = None  # None: it was not done
    try:
        peers = finding.targets(permit["attempt"])
        order = acting.order(
            fault,
            _chosen(ranks, peers),
            peers,
            strength=strength,
            until=time.time() + lasts,
            place=arguments.place,
        )
        left = _hold(call, order, arguments.job, said)
    finally:
        call.client.jobs.injection_ended(
            arguments.job, {"id": permit["id"], "fault": fault.name, "left": left or [], "done": left is not None}
        )
    return 1 if left else 0


def _hold(call: Invocation, order: Order, job: str, said: str) -> list[str]:
    """Answers what could not be undone."""
    with _stopping() as stopped:
        try:
            with acting.injected(order, job) as note:
                call.output.note(f"{said}: done ({note.id}); Ctrl-C undoes it before its time")
                acting.hold(order, stopped)
        except PenstockError as error:
            mine = [note for note in notes.all_notes() if note.ours]
            if not mine:
                raise
            call.output.note(f"{error.message}\n{error.advice}")
            return [" ".join(map(str, step)) for note in mine for step in note.said["undo"]]
    call.output.note("undone")
    return []


def _chosen(ranks: Sequence[int], peers: Sequence[Target]) -> tuple[Target, ...]:
    missing = [rank for rank in ranks if rank not in {target.rank for target in peers}]
    if not peers or missing:
        here = ", ".join(str(target.rank) for target in sorted(peers, key=lambda target: target.rank))
        raise NotFound(
            f"rank {missing[0]} is not here: of this job this machine runs {here}"
            if peers
            else "none of its ranks runs on this machine, as far as you may see",
            hint="Run it on the rank's own node, as root or as the job's user; a job that has just started may need a moment more.",
        )
    return tuple(target for target in peers if target.rank in ranks)


@contextlib.contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Whether somebody wants this to end by now. Signals are heard, and nothing is left half done."""
    heard: list[int] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        heard.append(number)

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _confirm(what: str, *, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise Conflict("nobody is there to confirm it", hint="Give --yes where a program calls this.")
    sys.stderr.write(f"Inject {what}? Its work is disturbed. [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Conflict("nothing was done")


def _list(call: Invocation) -> int:
    rows = [_row(fault) for fault in catalogue.FAULTS.values()]
    if call.output.format != "table":
        call.output.document(rows)
        return 0
    call.output.table(_COLUMNS, rows, call.now)
    call.output.line()
    for need, text in NEEDS_WORDS.items():
        call.output.line(f"{need}: {text}")
    return 0


def _row(fault: Fault) -> dict[str, Any]:
    strength = f"{fault.strength.default:g} {fault.strength.unit}".strip() if fault.strength.unit else "-"
    return {
        "name": fault.name,
        "cause": fault.cause,
        "layer": fault.layer,
        "strength": strength,
        "needs": sorted(fault.needs),
        "ends_job": fault.ends_job,
        "words": fault.words,
    }


def _undo(call: Invocation) -> int:
    done, failures = notes.undo_all()
    for identity in done:
        call.output.line(f"{identity}: undone")
    for failure in failures:
        call.output.note(failure)
    if not done and not failures:
        call.output.line("nothing was left behind")
    return 1 if failures else 0


VERBS = {
    "inject": Verb(
        "penstock inject --list\npenstock inject slow-loader --job train --rank 1 --for 60s\npenstock inject --undo",
        _configure,
        _run,
        about="For game days: run on the node of the rank, by an administrator of the project, never in a project that is "
        "marked as production. Everything is undone at its time, at Ctrl-C, when the job ends; docs/game-days.md tells more.",
    )
}
