"""``penstock cost bill|trace|export|forecast|idle`` and ``penstock budget``."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput
from penstock.client.verb import Column, Invocation

if TYPE_CHECKING:
    from argparse import Namespace

Item = Mapping[str, Any]
_NANOS = 10**9
_PARTS = ("project", "user", "job", "node", "queue")
_WIDTH = 24  # characters of the longest bar
_SPARKS = " ▁▂▃▄▅▆▇█"


def bar(part: float, whole: float) -> str:
    return "#" * round(_WIDTH * max(part, 0) / whole) if whole > 0 else ""


def sparkline(values: Sequence[float]) -> str:
    """One character a value; the greatest is the tallest."""
    top = max(values, default=0.0)
    return "".join(_SPARKS[round(8 * max(each, 0) / top)] if top > 0 else _SPARKS[0] for each in values)


def _money(item: Item, _now: float = 0.0) -> str:
    return f"{item['nanos'] / _NANOS:.2f}"


def _month(arguments: Namespace) -> dict[str, str]:
    if arguments.month is not None and not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", arguments.month):
        raise InvalidInput(f"--month {arguments.month!r} is no month: write it like 2026-11")
    given = {"month": arguments.month, "rule": arguments.rule}
    return {key: value for key, value in given.items() if value}


def _bill(call: Invocation, arguments: Namespace) -> int:
    table = call.output.format == "table"
    by = None if arguments.rows else arguments.by or ("project" if table else None)
    bill = call.client.bill(**_month(arguments), **({"by": by} if by else {}))
    if not table:
        call.output.document(bill)
        return 0
    rows = bill["items"]
    whole = max((row["nanos"] for row in rows), default=0)
    name = "name" if by else "id"
    columns = [
        Column("KIND", lambda row, _: str(row["kind"])),
        Column((by or name).upper(), lambda row, _: str(row[name])),
        Column(bill["currency"], _money, right=True),
        Column("SHARE", lambda row, _: bar(row["nanos"], whole)),
    ]
    call.output.table(columns, rows, call.now)
    call.output.line(f"total {_money(bill)} {bill['currency']}")
    return 0


def _trace(call: Invocation, arguments: Namespace) -> int:
    if not arguments.row:
        raise InvalidInput("say which row: penstock cost bill --rows lists their ids")
    found = call.client.bill("trace", row=arguments.row, **_month(arguments))
    if call.output.format != "table":
        call.output.document(found)
        return 0
    names = ("id", "node", "resource", "quantity", "started_at", "ended_at")
    call.output.table([_plain(name) for name in names], found["items"], call.now)
    call.output.line(f"together {found['hours']:.6f} unit hours, {_money(found)} {found['currency']}")
    return 0


def _plain(name: str) -> Column:
    return Column(name.upper().replace("_", " "), lambda item, _: str(item[name]), right=name == "quantity")


def _export(call: Invocation, arguments: Namespace) -> int:
    if arguments.format != "csv":
        if arguments.rule:
            raise InvalidInput("--rule does not go with FOCUS, which keeps idle capacity in rows of its own")
        text = call.client.bill("focus", **_month(arguments))
    else:
        text = as_csv(call.client.bill(**_month(arguments)))
    if not arguments.out:
        call.output.raw(text.encode())
        return 0
    try:
        Path(arguments.out).write_text(text, "utf-8")
    except OSError as exc:
        raise InvalidInput(f"--out cannot be written: {exc}") from exc
    return 0


def as_csv(bill: Item) -> str:
    """The bill's own rows. A cell that a spreadsheet would take for a formula gets an apostrophe."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["id", "kind", *_PARTS, "paid", "hours", "amount", "currency"])
    for row in bill["items"]:
        named = [_safe(row["key"].get(part, "")) for part in _PARTS]
        amount = f"{row['nanos'] / _NANOS:.9f}"
        writer.writerow([row["id"], row["kind"], *named, "/".join(row["paid"]), row["hours"], amount, bill["currency"]])
    return file.getvalue()


def _safe(text: str) -> str:
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _forecast(call: Invocation, _arguments: Namespace) -> int:
    found = call.client.forecast(call.settings.project)
    if call.output.format != "table":
        call.output.document(found)
        return 0
    line, currency = call.output.line, found["currency"]
    line(f"{found['project']} has spent {found['spent']:.2f} {currency} this month")
    if found["days"]:
        line(f"days      {sparkline(found['days'])}  (the last {len(found['days'])} whole days)")
    span = "" if found["low"] is None else f", 80% between {found['low']:.2f} and {found['high']:.2f}"
    line(f"expected  {found['expected']:.2f} {currency} by {found['until']}{span}")
    if found["budget"] is not None:
        share = 100 * found["expected"] / float(found["budget"])
        line(f"budget    {found['budget']} {currency}: {share:.0f}% of it is expected")
    line(f"method    {found['method']}")
    return 0


def budget(call: Invocation, arguments: Namespace) -> int:
    if arguments.what == "list":
        return _budgets(call)
    if not arguments.name or (arguments.what == "set" and not arguments.amount):
        raise InvalidInput("say which project" + (", and --amount" if arguments.what == "set" else ""))
    body = {
        "amount": arguments.amount,
        "thresholds": arguments.threshold or [80, 100],
        "refuse": arguments.refuse,
        "contact": arguments.contact,
    }
    call.client.set_budget(arguments.name, body if arguments.what == "set" else None)
    call.output.note(f"project {arguments.name}: budget " + ("set" if arguments.what == "set" else "deleted"))
    return 0


def _budgets(call: Invocation) -> int:
    items = call.client.budgets()
    if call.output.format != "table":
        call.output.document({"items": items})
        return 0
    columns = [
        Column("PROJECT", lambda item, _: str(item["project"])),
        Column("AMOUNT", lambda item, _: str(item["amount"]), right=True),
        Column("SPENT", lambda item, _: str(item["spent"]), right=True),
        Column("SHARE", lambda item, _: bar(min(float(item["spent"]), float(item["amount"])), float(item["amount"]))),
        Column("STATE", lambda item, _: _state(item)),
        Column("WARNS AT", lambda item, _: ", ".join(f"{each}%" for each in item["thresholds"])),
        Column("REFUSES", lambda item, _: "yes" if item["refuse"] else "no"),
        Column("CONTACT", lambda item, _: str(item["contact"])),
    ]
    call.output.table(columns, items, call.now)
    return 0


def _state(item: Item) -> str:
    if item["refusing"]:
        return "refuses new work"
    return "ok" if item["reached"] is None else f"over {item['reached']}%"


def _idle(call: Invocation, arguments: Namespace) -> int:
    """Who left GPUs idle; without dates of the last seven days."""
    by = arguments.by or "user"
    if by == "node":
        raise InvalidInput("idle GPUs are told by user, project, queue or job")
    found = call.client.cost_idle(by=by, since=arguments.since or "7d", until=arguments.until)
    if call.output.format != "table":
        call.output.document(found)
        return 0
    columns = [
        *(_part(name) for name in (("project", "job") if by == "job" else (by,))),
        Column("IDLE GPU-HOURS", lambda item, _: f"{item['idle_gpu_hours']:.2f}", right=True),
        Column("OF", lambda item, _: f"{item['gpu_hours']:.2f}", right=True),
        Column("SHARE", lambda item, _: bar(item["idle_gpu_hours"], item["gpu_hours"])),
        Column("IDLE NOW", lambda item, _: str(item["idle_now"]), right=True),
        Column(str(found["currency"]), lambda item, _: f"{item['amount']:.2f}", right=True),
    ]
    call.output.table(columns, found["items"], call.now)
    call.output.line(f"total {found['total']:.2f} {found['currency']} since {found['since']}")
    return 0


def _part(name: str) -> Column:
    return Column(name.upper(), lambda item, _: str(item["key"][name]))


BILL: dict[str, Callable[[Invocation, Namespace], int]] = {
    "bill": _bill,
    "trace": _trace,
    "export": _export,
    "forecast": _forecast,
    "idle": _idle,
}
