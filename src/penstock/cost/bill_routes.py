"""The whole bill over HTTP, its export, and budgets. The bill is the fleet's: whoever reads it sees every project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, select

from penstock.base.errors import NotFound
from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint, Reply
from penstock.cost import budgets, focus, forecast_routes
from penstock.cost.allocation import Interval, Row, Statement, allocate, share_out
from penstock.cost.spec import Prices
from penstock.cost.tables import capacity, usage
from penstock.cost.terms import Terms
from penstock.store.store import Store
from penstock.tenancy.plan import visible


class BillQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    month: str | None = Field(
        None, pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$", description="2026-11; default: the present one"
    )
    rule: Literal["usage", "own"] | None = Field(None, description="who bears idle capacity; default: the price file's")


class TraceQuery(BillQuery):
    row: str = Field(max_length=2000, description="the id of a row of the bill")


class BudgetBody(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    amount: str = Field(max_length=32)
    thresholds: list[int] = Field(default=[80, 100], max_length=20)
    refuse: bool = False
    contact: str = Field("", max_length=200)


class BillRoutes:
    """The endpoints' bodies; ``endpoints`` lists them."""

    def __init__(self, store: Store, prices: Prices, terms: Terms) -> None:
        self._store, self._prices, self._terms = store, prices, terms

    async def bill(self, call: Call) -> dict[str, Any]:
        since, until = _month(call.query.month, self._store.clock())
        statement = share_out(await self._statement(since, until), call.query.rule or self._terms.idle)
        rows = [
            {
                "id": _id(row),
                "kind": row.kind,
                "key": dict(zip(("project", "user", "job", "node"), row.key, strict=False)),
                "paid": list(row.pool),
                "nanos": row.nanos,
                "hours": row.hours,
                "intervals": list(row.intervals),
            }
            for row in statement.rows
        ]
        return {"currency": self._prices.currency, "nanos": statement.nanos, "items": rows}

    async def trace(self, call: Call) -> dict[str, Any]:
        """The usage intervals that one row stands for, cut to the month."""
        since, until = _month(call.query.month, self._store.clock())
        statement = share_out(await self._statement(since, until), call.query.rule or self._terms.idle)
        row = next((each for each in statement.rows if _id(each) == call.query.row), None)
        if row is None:
            raise NotFound(f"the bill of that month has no row {call.query.row!r}")
        used, _ = await self._store.read_long(lambda conn: _intervals(conn, since, until))
        named = frozenset(row.intervals)
        items = [_traced(each, since, until) for each in used if each.id in named]
        return {"currency": self._prices.currency, "nanos": row.nanos, "hours": row.hours, "items": items}

    async def focus(self, call: Call) -> Reply:
        since, until = _month(call.query.month, self._store.clock())
        statement = await self._statement(since, until)
        text = focus.export(statement, self._prices, since=since, until=until)
        return Reply(text.encode(), 200, "text/plain; charset=utf-8")

    async def _statement(self, since: float, until: float) -> Statement:
        def read(conn: Connection) -> Statement:
            used, up = _intervals(conn, since, until)
            return allocate(used, up, self._prices, self._terms, since=since, until=until)

        return await self._store.read_long(read)

    async def list_budgets(self, call: Call) -> dict[str, Any]:
        now, mine = self._store.clock(), visible(call.actor)

        def read(conn: Connection) -> list[dict[str, Any]]:
            seen = [each for each in budgets.listed(conn) if mine is None or each.project in mine]
            return [budgets.to_json(each, budgets.spent(conn, each.project, self._prices, now)) for each in seen]

        return {"items": await self._store.read_long(read)}

    async def set_budget(self, call: Call) -> None:
        body: BudgetBody = call.body
        budget = budgets.parse(
            call.path["project"], body.amount, body.thresholds, refuse=body.refuse, contact=body.contact
        )
        await self._store.write(lambda tx: budgets.put(tx, budget, actor=call.actor.user))

    async def delete_budget(self, call: Call) -> None:
        await self._store.write(lambda tx: budgets.delete(tx, call.path["project"], actor=call.actor.user))


def _id(row: Row) -> str:
    """Unique in its bill: each part is quoted, so that a slash in a name cannot make two rows one."""
    return "/".join(quote(part, safe=":") for part in (row.kind, *row.pool, *row.key))


def _traced(interval: Interval, since: float, until: float) -> dict[str, Any]:
    return {
        "id": interval.id,
        "node": interval.node,
        "resource": interval.resource,
        "quantity": interval.quantity,
        "started_at": format_time(max(interval.start, since)),
        "ended_at": format_time(min(interval.end, until)),
    }


def _intervals(conn: Connection, since: float, until: float) -> tuple[list[Interval], list[Interval]]:
    def within(table: Any) -> Any:
        ended = table.c.ended_at.is_(None) | (table.c.ended_at > since)
        return conn.execute(select(table).where(table.c.started_at < until, ended)).all()

    used = [
        Interval(
            row.node,
            row.resource,
            row.quantity,
            row.started_at,
            until if row.ended_at is None else row.ended_at,
            (row.project, row.user, row.job, row.node),
            f"{row.job_id}.{row.attempt}/{row.node}/{row.resource}",
        )
        for row in within(usage)
    ]
    up = [
        Interval(row.node, row.resource, row.quantity, row.started_at, until if row.ended_at is None else row.ended_at)
        for row in within(capacity)
    ]
    return used, up


def _month(text: str | None, now: float) -> tuple[float, float]:
    """The month until now at the latest. Raises NotFound for one that has not begun, and of years that no clock has."""
    try:
        start, end = focus.month_of(now) if text is None else focus.month_named(text)
    except (ValueError, OverflowError):
        start = end = -1.0
    if not 0 <= start < now:
        raise NotFound(f"there is no bill of {text}: months from 1970-01 to the present one have one")
    return start, min(end, now)


def endpoints(store: Store, prices: Prices, terms: Terms) -> Sequence[Endpoint]:
    routes = BillRoutes(store, prices, terms)
    path = "/api/v1/projects/{project}/budget"
    return (
        *forecast_routes.endpoints(store, prices),
        Endpoint("GET", "/api/v1/cost/bill", "bill.read", routes.bill, "A month's bill by row", query=BillQuery),
        Endpoint(
            "GET",
            "/api/v1/cost/trace",
            "bill.read",
            routes.trace,
            "The usage that one row of the bill stands for",
            query=TraceQuery,
        ),
        Endpoint(
            "GET",
            "/api/v1/cost/focus",
            "bill.read",
            routes.focus,
            "The same as FOCUS 1.2",
            query=BillQuery,
            kind="text",
        ),
        Endpoint("GET", "/api/v1/budgets", "cost.read", routes.list_budgets, "Budgets, and what is spent of them"),
        Endpoint("PUT", path, "budgets.write", routes.set_budget, "Set a budget", body=BudgetBody, status=204),
        Endpoint("DELETE", path, "budgets.write", routes.delete_budget, "Delete a budget", status=204),
    )
