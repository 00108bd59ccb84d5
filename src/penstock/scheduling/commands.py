"""``penstock queues``: who may use how much, who does, who waits; and the queue file that says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput
from penstock.base.quantities import format_duration
from penstock.client.verb import Column, Invocation, Verb

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

BAR = 16


def _bar(item: Mapping[str, Any], _now: float) -> str:
    """Used of nominal; what is borrowed stands beyond the end."""
    if not item["nominal"]:
        return ""
    used = int(min(item["used"], item["nominal"]) / item["nominal"] * BAR)
    bar = "█" * used + "·" * (BAR - used)
    return bar + "+" if item["borrowed"] else bar


def _error(item: Mapping[str, Any], _now: float) -> str:
    """The median, and what nine in ten keep within, of so many."""
    found = item.get("start_error")
    if not found:
        return "-"
    return f"{format_duration(found['median_s'])} (P90 {format_duration(found['p90_s'])}, n={found['count']})"


def _figure(title: str, name: str) -> Column:
    return Column(title, lambda item, _: "-" if item[name] is None else f"{round(item[name], 1):.12g}", right=True)


_COLUMNS = [
    Column("QUEUE", lambda item, _: f"{item['queue']}{'' if item['in_file'] else ' (not in the file)'}"),
    Column("COHORT", lambda item, _: str(item["cohort"] or "-")),
    Column("FLAVOR", lambda item, _: str(item["flavor"])),
    Column("RESOURCE", lambda item, _: str(item["resource"])),
    _figure("NOMINAL", "nominal"),
    _figure("USED", "used"),
    _figure("PROMISED", "promised"),
    _figure("BORROWED", "borrowed"),
    _figure("LENT", "lent"),
    _figure("WAITING", "waiting"),
    Column("START ERROR", _error, right=True),
    Column("USE", _bar),
]


def _queues(call: Invocation, arguments: Namespace) -> int:
    _refuse_unused(arguments)
    if arguments.what != "list":
        return _apply(call, arguments) if arguments.what == "apply" else _compile(call, arguments)
    answer = call.client.queues()
    if call.output.format != "table":
        call.output.document(answer)
        return 0
    call.output.table(_COLUMNS, answer["items"], call.now)
    call.output.line(f"policy {answer['policy']}, generation {answer['generation']}")
    for warning in answer["warnings"]:
        call.output.line(f"warning: {warning}")
    return 0


_TAKES = {
    "list": set[str](),
    "apply": {"--file", "--dry-run", "--force"},
    "compile": {"--engine", "--dry-run", "--overwrite"},
}


def _refuse_unused(arguments: Namespace) -> None:
    """Raises InvalidInput for what was given and would change nothing."""
    every = sorted(set.union(*_TAKES.values()))
    given = {name for name in every if getattr(arguments, name.strip("-").replace("-", "_"))}
    wrong = sorted(given - _TAKES[arguments.what])
    if wrong:
        fitting = [what for what, takes in _TAKES.items() if set(wrong) <= takes]
        where = f"; `penstock queues {fitting[0]}` does" if fitting else ""
        raise InvalidInput(f"`penstock queues {arguments.what}` does not take {', '.join(wrong)}{where}")


_SIGNS = {"add": "+", "set": "~", "delete": "-"}


def _compile(call: Invocation, arguments: Namespace) -> int:
    if arguments.engine is None:
        raise InvalidInput("say which engine: `penstock queues compile --engine NAME`")
    answer = call.client.compile_queues(arguments.engine, dry_run=arguments.dry_run, overwrite=arguments.overwrite)
    if call.output.format != "table":
        call.output.document(answer)
        return 1 if answer["failed"] else 0
    tell = call.output.line
    for change in answer["changes"]:
        fields = "".join(f" {name}={value or 'none'}" for name, value in sorted(change["fields"].items()))
        tell(f"{_SIGNS[change['action']]} {change['what']}:{fields} ({change['why']})")
    for what, lines in (
        ("changed by hand", [f"{one['message']} (--overwrite sets it back)" for one in answer["drift"]]),
        ("left", answer["left"]),
        ("not in Slurm", answer["cannot"]),
        ("refused", answer["failed"]),
    ):
        for line in lines:
            tell(f"{what}: {line}")
    count = len(answer["changes"]) - len(answer["failed"])
    if answer["dry_run"]:
        tell(
            f"{answer['engine']}: {count} changes would be made" if count else f"{answer['engine']}: nothing to change"
        )
    else:
        tell(f"{answer['engine']}: {count} changes made" if count else f"{answer['engine']}: nothing to change")
    return 1 if answer["failed"] else 0


def _apply(call: Invocation, arguments: Namespace) -> int:
    if arguments.file is None:
        raise InvalidInput("say which file: `penstock queues apply -f FILE`")
    try:
        with open(arguments.file, "rb") as file:
            text = file.read()
    except OSError as error:
        raise InvalidInput(f"cannot read {arguments.file}: {error.strerror}") from error
    answer = call.client.apply_queues(text, dry_run=arguments.dry_run, force=arguments.force)
    if call.output.format != "table":
        call.output.document(answer)
        return 0
    what = "would hold" if answer["dry_run"] else f"hold since now (generation {answer['generation']})"
    call.output.line(f"{arguments.file}: {', '.join(answer['queues'])} {what}, policy {answer['policy']}")
    for warning in answer["warnings"]:
        call.output.line(f"warning: {warning}")
    return 0


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", default="list", choices=("list", "apply", "compile"), help="default: list")
    parser.add_argument("-f", "--file", metavar="FILE", help="the queue file (YAML) to apply")
    parser.add_argument("--dry-run", action="store_true", help="apply, compile: show what would be, and change nothing")
    parser.add_argument(
        "--force", action="store_true", help="apply it though jobs are left without a queue that takes them"
    )
    parser.add_argument("--engine", metavar="NAME", help="compile: into whose accounts, associations and QoS")
    parser.add_argument("--overwrite", action="store_true", help="compile: set back what was changed there by hand")


VERBS = {
    "queues": Verb(
        "penstock queues\npenstock queues apply -f queues.yaml --dry-run\npenstock queues apply -f queues.yaml\npenstock queues compile --engine c1 --dry-run",
        _arguments,
        _queues,
        about="A queue file replaces the one before it; what runs goes on, and counts against its queue. START ERROR is how far "
        "off the start was that jobs were first told, over a week's starts: the median, and what nine in ten keep within. "
        "`compile` puts the queue file that holds into the accounting of an engine that schedules itself.",
    )
}
