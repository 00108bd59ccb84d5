"""``penstock cost``: what was used, and what that costs by the price file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput
from penstock.client.verb import Column, Invocation, Verb
from penstock.cost.bill_commands import BILL, budget

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_KEYS = ("project", "user", "queue", "job", "node", "attempt")


def _key(name: str) -> Column:
    return Column(name.upper(), lambda item, _: str(item["key"].get(name, "")))


def _quantity(title: str, name: str) -> Column:
    return Column(title, lambda item, _: f"{item['quantities'][name]:.4f}", right=True)


def _amount(item: Mapping[str, Any], _now: float) -> str:
    return money(item["amount"])


def money(amount: float) -> str:
    """Four decimals; six where four would show nothing."""
    return f"{amount:.4f}" if amount == 0 or abs(amount) >= 0.01 else f"{amount:.6f}"


def columns(report: Mapping[str, Any]) -> list[Column]:
    """Those of the report's keys, the quantities, and the amount in its currency."""
    named = {name for item in report["items"] for name in item["key"]} or {report["by"]}
    return [
        *(_key(name) for name in _KEYS if name in named),
        _quantity("CPU-HOURS", "cpu_hours"),
        _quantity("GIB-HOURS", "memory_gib_hours"),
        _quantity("GPU-HOURS", "gpu_hours"),
        Column(str(report["currency"]), _amount, right=True),
    ]


def show(call: Invocation, report: Mapping[str, Any]) -> int:
    if call.output.format == "table":
        call.output.table(columns(report), report["items"], call.now)
        call.output.line(f"total {money(report['total'])} {report['currency']}")
    else:
        call.output.document(report)
    return 0


_TAKES = {  # besides what each answers without being asked: `bill` and `idle` are of all projects
    "report": {"--by", "--job", "--since", "--until", "--all-projects"},
    "bill": {"--by", "--month", "--rule", "--rows", "--all-projects"},
    "trace": {"ROW", "--month", "--rule"},
    "export": {"--month", "--rule", "--format", "--out"},
    "forecast": set(),
    "idle": {"--by", "--since", "--until", "--all-projects"},
}
_EVERY = (
    "ROW",
    "--by",
    "--job",
    "--since",
    "--until",
    "--all-projects",
    "--month",
    "--rule",
    "--rows",
    "--format",
    "--out",
)


def _refuse_unused(arguments: Namespace) -> None:
    """Raises InvalidInput for what was given and would change nothing: an answer to another question is a wrong one."""
    what = arguments.what
    given = [name for name in _EVERY if getattr(arguments, name.strip("-").lower().replace("-", "_"))]
    takes = {"--job"} if what == "report" and arguments.job else _TAKES[what]
    if what == "bill" and arguments.rows:
        takes = takes - {"--by"}
    wrong = [name for name in given if name not in takes]
    if wrong:
        which = f"cost {what}" + "".join(f" {name}" for name in ("--job", "--rows") if name in given and name in takes)
        known = ", ".join(name for name in _EVERY if name in takes) or "nothing"
        raise InvalidInput(f"`{which}` does not take {', '.join(wrong)}; it takes {known}")


def _cost(call: Invocation, arguments: Namespace) -> int:
    _refuse_unused(arguments)
    if arguments.what != "report":
        return BILL[arguments.what](call, arguments)
    if arguments.job:
        return show(call, call.client.jobs.cost(arguments.job))
    filters = {"by": arguments.by or "project", "since": arguments.since, "until": arguments.until}
    if not arguments.all_projects:
        filters["project"] = call.settings.project
    return show(call, call.client.cost_report(**filters))


def _arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("what", nargs="?", default="report", choices=("report", *BILL), help=f"report (default), {', '.join(BILL)}")
    add("row", nargs="?", metavar="ROW", help="trace: the id of a row of the bill")
    add("--by", choices=("project", "user", "queue", "job", "node"), help="report, bill: default: project; idle: user")
    add("--job", metavar="JOB", help="one job, by attempt and node")
    add("--since", metavar="WHEN", help="7d (ago), or a time: 2026-01-31T12:00:00Z")
    add("--until", metavar="WHEN", help="likewise; default: now")
    add("-A", "--all-projects", action="store_true", help="all projects that you may see")
    add("--month", metavar="MONTH", help="bill, trace, export: 2026-11; default: the present one")
    add(
        "--rule",
        choices=("usage", "quota", "own"),
        help="bill, trace, export csv: who bears idle capacity; default: the price file's",
    )
    add("--rows", action="store_true", help="bill: each row with its id, not summed")
    add("--format", choices=("focus", "csv"), help="export: default focus")
    add("--out", metavar="FILE", help="export: where to write it (default: standard output)")


def _budget_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("what", choices=("list", "set", "delete"), help="list, set or delete")
    add("name", nargs="?", metavar="PROJECT", help="set, delete: the project")
    add("--amount", metavar="AMOUNT", help="set: a month, in the price file's currency")
    add("--threshold", type=int, action="append", metavar="PERCENT", help="set: warn at it; again for more (80, 100)")
    add("--refuse", action="store_true", help="set: refuse new work once it is spent")
    add("--contact", default="", metavar="WHO", help="set: whom a refusal names")


VERBS = {
    "cost": Verb(
        "penstock cost report --by user --since 7d\npenstock cost --job digits\npenstock cost bill --by job\n"
        "penstock cost export --format focus --month 2026-11 --out bill.csv\npenstock cost forecast\npenstock cost idle --by user --since 30d",
        _arguments,
        _cost,
        about="Usage is recorded from the first second; prices are the server's price file's (`penstock up --prices`). "
        "The bill is the whole fleet's, with what was idle.",
    ),
    "budget": Verb(
        "penstock budget set vision --amount 5000 --threshold 80 --refuse --contact finance\npenstock budget list",
        _budget_arguments,
        budget,
        about="A budget is a project's for a calendar month (UTC), at prices on demand, without idle.",
    ),
}
