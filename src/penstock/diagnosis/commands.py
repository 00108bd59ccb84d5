"""``penstock diagnose JOB``: why it is slow, hangs or failed, with what speaks for it and against it."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.client.sparkline import sparkline
from penstock.client.verb import Column, Invocation, Verb

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

WIDTH = 96  # of a paragraph
_PICTURE = 72  # characters of the step times
_CAUSES = 3  # shown in full
_RANKS = 16
_EVENTS = 8


def _arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "job",
        metavar="JOB",
        help="a job, running or finished; slurm:12345 is one that was submitted to that engine itself",
    )
    add("--ticket", metavar="TEXT", help='what is wrong in words: "training is slow since this morning"')
    add("--all", action="store_true", help="every cause that was weighed, not only the first ones")


def _diagnose(call: Invocation, arguments: Namespace) -> int:
    offset = time.localtime(call.now).tm_gmtoff
    query = {"ticket": arguments.ticket, "offset_s": offset} if arguments.ticket else {}
    found = call.client.jobs.diagnosis(arguments.job, **query)
    if call.output.format != "table":
        call.output.document(found)
        return 0
    for line in paragraphs(found):
        call.output.line(line)
    _tables(call, found, _CAUSES if not arguments.all else len(found["causes"]))
    return 0


def paragraphs(found: Mapping[str, Any]) -> Iterator[str]:
    """The report's sentences, and the picture of the steps' times."""
    for sentence in found["summary"]:
        yield from textwrap.wrap(str(sentence), WIDTH)
    lengths = [length for _, length in found["steps"]]
    if len(lengths) > 1:
        yield ""
        yield f"ms a step  {sparkline(lengths, max(lengths), _PICTURE)}  {min(lengths):.0f} to {max(lengths):.0f}"
        if found["change"] is not None:
            yield f"           {_mark(found)}"


def _mark(found: Mapping[str, Any]) -> str:
    """Where it became longer."""
    steps = [number for number, _ in found["steps"]]
    width = min(_PICTURE, len(steps))
    place = sum(int(number) < int(found["change"]["step"]) for number in steps) * width // len(steps)
    return " " * place + f"^ step {found['change']['step']}"


def _phase(title: str, phase: str) -> Column:
    return Column(title, lambda row, _: _ms(row[phase]), right=True)


RANKS = (
    Column("RANK", lambda row, _: str(row["rank"]), right=True),
    Column("NODE", lambda row, _: str(row["node"])),
    _phase("STEP", "total"),
    _phase("DATA", "data"),
    _phase("COMPUTE", "compute"),
    _phase("COMM", "comm"),
    _phase("OF IT WAITING", "wait"),
    _phase("SAVING", "checkpoint"),
    _phase("GC", "gc"),
    Column("NO CORE", lambda row, _: "" if row["run_delay"] is None else f"{row['run_delay']:.0%}", right=True),
)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _tables(call: Invocation, found: Mapping[str, Any], many: int) -> None:
    out = call.output
    for number, cause in enumerate(found["causes"][:many], 1):
        out.line()
        out.line(f"{number}. {cause['cause']} ({cause['score']:.2f}){_who(cause['culprits'])}: {cause['name']}")
        for mark, words in (("+", cause["for"]), ("-", cause["against"])):
            for text in words:
                for part, line in enumerate(textwrap.wrap(str(text), WIDTH - 5)):
                    out.line(f"   {mark if part == 0 else ' '} {line}")
        if number == 1:
            for text in cause["do"]:
                out.line(f"   > {text}")
    if found["ranks"] and any(row["steps"] for row in found["ranks"]):
        out.line()
        out.table(RANKS, found["ranks"][:_RANKS], call.now)
    if found["timeline"]:
        out.line()
        out.table(TIMELINE, found["timeline"][-_EVENTS:], call.now)
    for text in found["missing"]:
        out.note(f"not known: {text}")


TIMELINE = (
    Column("AT", lambda row, _: str(row["at"])),
    Column("WHAT", lambda row, _: str(row["what"])),
    Column("", lambda row, _: str(row["message"])),
)


def _who(culprits: Sequence[Mapping[str, Any]]) -> str:
    names = [f"{one['kind']} {one['name']}" for one in culprits if one["kind"] != "job"]
    return f" {', '.join(names)}" if names else ""


VERBS = {
    "diagnose": Verb(
        'penstock diagnose train\npenstock diagnose train --ticket "slow since this morning"\npenstock diagnose train -o json',
        _arguments,
        _diagnose,
        about="Collects what is known of a job (its steps, counters, logs, nodes, configuration) and ranks the causes that explain it. "
        "`healthy` and `unknown` are answers. What each cause is: `penstock causes`; how it is decided: docs/diagnosis.md.",
    )
}
