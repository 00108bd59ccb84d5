"""``penstock cost``: what was used, and what that costs by the price file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock.client.verb import Column, Invocation, Verb

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

_KEYS = ("project", "user", "job", "node", "attempt")


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


def _cost(call: Invocation, arguments: Namespace) -> int:
    if arguments.job:
        return show(call, call.client.jobs.cost(arguments.job))
    filters = {"by": arguments.by, "since": arguments.since, "until": arguments.until}
    if not arguments.all_projects:
        filters["project"] = call.settings.project
    return show(call, call.client.cost_report(**filters))


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", default="report", choices=("report",), help="the one report there is")
    parser.add_argument("--by", choices=("project", "user", "job", "node"), default="project", help="default: project")
    parser.add_argument("--job", metavar="JOB", help="one job, by attempt and node")
    parser.add_argument("--since", metavar="WHEN", help="7d (ago), or a time: 2026-01-31T12:00:00Z")
    parser.add_argument("--until", metavar="WHEN", help="likewise; default: now")
    parser.add_argument("-A", "--all-projects", action="store_true", help="all projects that you may see")


VERBS = {
    "cost": Verb(
        "penstock cost report --by user --since 7d\npenstock cost --job digits",
        _arguments,
        _cost,
        about="Usage is recorded from the first second; prices are the server's price file's (`penstock up --prices`).",
    )
}
