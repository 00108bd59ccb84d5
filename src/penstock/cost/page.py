"""View models of the cost pages: pure functions from the API's JSON to what a template shows. Amounts are in the currency."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any
from urllib.parse import quote, urlencode

from penstock.base.errors import InvalidInput, Problem

NANOS = 10**9
BY = ("project", "user", "queue", "job", "node")
KINDS = {
    "used": "used",
    "idle": "idle: up, and nobody's",
    "unused": "committed, but not up",
}
MOST_ROWS = 300  # of a table; the cheapest beyond are added up


@dataclass(frozen=True, slots=True)
class Bar:
    """A day; heights in percent of the dearest day, from the bottom up."""

    day: str
    x: float
    width: float
    parts: tuple[tuple[str, float, float], ...]  # kind, y of its top, height
    text: str


@dataclass(frozen=True, slots=True)
class Share:
    kind: str
    amount: float
    percent: float


@dataclass(frozen=True, slots=True)
class Month:
    """The top of the page: so far, by kind, by day, and what it may come to."""

    month: str
    total: float
    shares: tuple[Share, ...]
    bars: tuple[Bar, ...]
    top: float
    expected: float | None
    low: float | None
    high: float | None
    per_hour: float | None
    method: str
    days_left: float


def before(month_name: str) -> str:
    return (_first(month_name) - timedelta(days=1)).strftime("%Y-%m")


def after(month_name: str, present: str) -> str | None:
    """None where the next one has not begun."""
    name = (_first(month_name) + timedelta(days=32)).strftime("%Y-%m")
    return name if name <= present else None


def window(month_name: str) -> tuple[str, str]:
    """Its first moment, and that of the next month."""
    first = _first(month_name)
    following = (first + timedelta(days=32)).replace(day=1)
    return f"{first}T00:00:00Z", f"{following}T00:00:00Z"


def _first(month_name: str) -> date:
    try:
        found = date.fromisoformat(f"{month_name}-01")
    except ValueError:
        found = date.min
    if not 1970 <= found.year < 9000:
        raise InvalidInput(f"{month_name[:20]!r} is no month: write 2026-11", details=[Problem("month", "is no month")])
    return found


def month(outlook: Mapping[str, Any]) -> Month:
    since = date.fromisoformat(str(outlook["since"])[:10])
    ends = date.fromisoformat(str(outlook["ends"])[:10])
    name = since.strftime("%Y-%m")
    total = outlook["nanos"] / NANOS
    forecast = outlook.get("forecast") or {}
    sums = [sum(day[kind] for kind in KINDS) for day in outlook["days"]]
    length = (ends - since).days
    return Month(
        month=name,
        total=total,
        shares=tuple(Share(kind, outlook[kind] / NANOS, _percent(outlook[kind], outlook["nanos"])) for kind in KINDS),
        bars=tuple(_bar(n, day, length, max(sums, default=0)) for n, day in enumerate(outlook["days"])),
        top=max(sums, default=0) / NANOS,
        expected=forecast.get("expected"),
        low=forecast.get("low"),
        high=forecast.get("high"),
        per_hour=forecast.get("per_hour"),
        method=str(forecast.get("method") or ""),
        days_left=max(0.0, (ends - date.fromisoformat(str(outlook["until"])[:10])).days),
    )


def _bar(n: int, day: Mapping[str, Any], length: int, top: int) -> Bar:
    at, parts = 100.0, []
    for kind in KINDS:
        height = _percent(day[kind], top)
        at -= height
        parts.append((kind, at, height))
    told = ", ".join(f"{day[kind] / NANOS:,.2f} {kind}" for kind in KINDS if day[kind])
    width = 100 / length
    return Bar(
        str(day["day"]), n * width + width * 0.1, width * 0.8, tuple(parts), f"{day['day']}: {told or 'nothing'}"
    )


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """What one project (user, queue, job, node) bears; ``href`` leads to the rows of the bill behind it."""

    name: str
    kind: str
    amount: float
    percent: float
    href: str


def lines(bill: Mapping[str, Any], by: str, month_name: str) -> tuple[Line, ...]:
    """The dearest first. What nobody bears has no name of its own."""
    whole = bill["nanos"]
    items = sorted(bill["items"], key=lambda item: -item["nanos"])
    found = [
        Line(
            str(item["name"])
            or {"idle": "Idle capacity", "unused": "Unused commitments"}.get(item["kind"], "(nobody)"),
            item["kind"],
            item["nanos"] / NANOS,
            _percent(item["nanos"], whole),
            ""
            if by == "node" and item["kind"] != "used" and item["name"]  # a share of rows, which are by pool
            else f"/cost/rows?{urlencode({'month': month_name, 'by': by, 'name': item['name'], 'kind': item['kind']})}",
        )
        for item in items[:MOST_ROWS]
    ]
    if rest := items[MOST_ROWS:]:
        nanos = sum(item["nanos"] for item in rest)
        found.append(Line(f"{len(rest):,} others", "used", nanos / NANOS, _percent(nanos, whole), ""))
    return tuple(found)


def own_lines(report: Mapping[str, Any]) -> tuple[Line, ...]:
    """The same from a report over the projects that somebody may see: what is used, and no more."""
    whole = float(report["total"])
    return tuple(
        Line(
            "/".join(str(part) for part in item["key"].values()),
            "used",
            float(item["amount"]),
            _percent(float(item["amount"]), whole),
            _job_href(item["key"]),
        )
        for item in report["items"][:MOST_ROWS]
    )


def _job_href(key: Mapping[str, Any]) -> str:
    if not key.get("job"):
        return ""
    return f"/jobs/{quote(str(key['project']), safe='')}/{quote(str(key['job']), safe='')}"


@dataclass(frozen=True, slots=True)
class BillRow:
    id: str
    kind: str
    project: str
    user: str
    job: str
    node: str
    queue: str
    paid: str
    hours: float
    amount: float
    traced: str  # address of its usage intervals
    job_href: str


def bill_rows(
    bill: Mapping[str, Any], by: str, name: str, kind: str, month_name: str
) -> tuple[tuple[BillRow, ...], int]:
    """The rows behind one line, the dearest first, and how many of them are not shown."""
    picked = [row for row in bill["items"] if row["kind"] == kind and _key(row["key"], by) == name]
    picked.sort(key=lambda row: -row["nanos"])
    shown = tuple(_bill_row(row, month_name) for row in picked[:MOST_ROWS])
    return shown, len(picked) - len(shown)


def _key(key: Mapping[str, Any], by: str) -> str:
    name = str(key.get(by) or "")
    return f"{key.get('project', '')}/{name}" if by == "job" and name else name


def _bill_row(row: Mapping[str, Any], month_name: str) -> BillRow:
    key = row["key"]
    return BillRow(
        id=str(row["id"]),
        kind=row["kind"],
        project=str(key.get("project") or ""),
        user=str(key.get("user") or ""),
        job=str(key.get("job") or ""),
        node=str(key.get("node") or ""),
        queue=str(key.get("queue") or ""),
        paid=" ".join(str(part).replace("_", " ") for part in row["paid"]),
        hours=float(row["hours"]),
        amount=row["nanos"] / NANOS,
        traced=f"/cost/trace?{urlencode({'month': month_name, 'row': row['id']})}" if row["intervals"] else "",
        job_href=_job_href(key),
    )


@dataclass(frozen=True, slots=True)
class Budget:
    project: str
    amount: float
    spent: float
    percent: float
    expected: float | None
    tone: str
    word: str


def budgets(items: Iterable[Mapping[str, Any]], forecasts: Mapping[str, Mapping[str, Any]]) -> tuple[Budget, ...]:
    """The fullest first."""
    found = []
    for item in items:
        amount, spent = float(item["amount"]), float(item["spent"])
        forecast = forecasts.get(str(item["project"]))
        expected = float(forecast["expected"]) if forecast else None
        share = float(item["share"])
        tone, word = _standing(item, share, amount, expected)
        found.append(Budget(str(item["project"]), amount, spent, share, expected, tone, word))
    return tuple(sorted(found, key=lambda budget: -budget.percent))


def _standing(item: Mapping[str, Any], share: float, amount: float, expected: float | None) -> tuple[str, str]:
    if item.get("refusing"):
        return "bad", "used up: new work is refused"
    if share >= 100:
        return "bad", "used up"
    if expected is not None and expected > amount:
        return "wait", "will not last the month"
    if item.get("reached"):
        return "wait", f"past {item['reached']}%"
    return "ok", "within"


@dataclass(frozen=True, slots=True)
class IdleLine:
    name: str
    gpu_hours: float
    held_hours: float
    amount: float
    now: int  # GPUs


def idle_lines(report: Mapping[str, Any] | None) -> tuple[IdleLine, ...]:
    """GPUs that were held and did nothing, by whom."""
    found = [
        IdleLine(
            "/".join(str(part) for part in item["key"].values()),
            float(item["idle_gpu_hours"]),
            float(item["gpu_hours"]),
            float(item["amount"]),
            int(item["idle_now"]),
        )
        for item in (report or {}).get("items") or ()
    ]
    return tuple(sorted(found, key=lambda line: -line.amount))[:20]
