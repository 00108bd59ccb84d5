"""The whole bill over HTTP, its export, and budgets. The bill is the fleet's: whoever reads it sees every project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from penstock.base.errors import NotFound
from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint, Reply
from penstock.cost import bill, budgets, focus, forecast_routes
from penstock.cost.allocation import Interval, Row, Statement, summed
from penstock.cost.spec import Prices
from penstock.cost.terms import Terms
from penstock.store.store import Store
from penstock.tenancy.plan import visible


class BillQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    month: str | None = Field(
        default=None, pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$", description="2026-11; default: the present one"
    )
    rule: Literal["usage", "quota", "own"] | None = Field(
        default=None, description="who bears idle capacity; default: the price file's"
    )


class SumQuery(BillQuery):
    by: Literal["project", "user", "queue", "job", "node"] | None = Field(
        default=None, description="rows added up under one part of their key, the dearest first; default: each row"
    )


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
        statement = await self._statement(call.query, call.query.by)
        if call.query.by is not None:
            rows = [asdict(each) for each in summed(statement, call.query.by)]
        else:
            rows = [_row(row) for row in statement.rows]
        return {"currency": self._prices.currency, "nanos": statement.nanos, "items": rows}

    async def trace(self, call: Call) -> dict[str, Any]:
        """The usage intervals that one row stands for, cut to the month."""
        period = bill.month(call.query.month, self._store.clock())
        statement = await self._statement(call.query)
        row = next((each for each in statement.rows if _id(each) == call.query.row), None)
        if row is None:
            hint = "`penstock cost bill --rows`, with the same --month and --rule, lists the rows' ids."
            raise NotFound(f"the bill of that month has no row {call.query.row!r}", hint=hint)
        named = frozenset(row.intervals)

        def read(conn: Connection) -> list[dict[str, Any]]:
            return [_traced(each, period) for each in bill.used(conn, period) if each.id in named]

        items = await self._store.read_long(read)
        return {"currency": self._prices.currency, "nanos": row.nanos, "hours": row.hours, "items": items}

    async def focus(self, call: Call) -> Reply:
        period = bill.month(call.query.month, self._store.clock())

        def read(conn: Connection) -> str:
            made = bill.statement(conn, period, self._prices, self._terms)
            return focus.export(made, self._prices, since=period.since, until=period.until)

        text = await self._store.read_long(read)
        return Reply(text.encode(), 200, "text/plain; charset=utf-8")

    async def _statement(self, query: BillQuery, by: str | None = None) -> Statement:
        period, rule = bill.month(query.month, self._store.clock()), query.rule or self._terms.idle
        return await self._store.read_long(
            lambda conn: bill.statement(conn, period, self._prices, self._terms, rule, by=by)
        )

    async def list_budgets(self, call: Call) -> dict[str, Any]:
        now, mine = self._store.clock(), visible(call.actor)

        def read(conn: Connection) -> list[dict[str, Any]]:
            seen = [each for each in budgets.listed(conn) if mine is None or each.project in mine]
            return [
                budgets.to_json(each, budgets.spent(conn, each.project, self._prices, now), self._prices.currency)
                for each in seen
            ]

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


def _row(row: Row) -> dict[str, Any]:
    return {
        "id": _id(row),
        "kind": row.kind,
        "key": bill.named(row.key),
        "paid": list(row.pool),
        "nanos": row.nanos,
        "hours": row.hours,
        "intervals": list(row.intervals),
    }


def _traced(interval: Interval, period: bill.Period) -> dict[str, Any]:
    return {
        "id": interval.id,
        "node": interval.node,
        "resource": interval.resource,
        "quantity": interval.quantity,
        "started_at": format_time(max(interval.start, period.since)),
        "ended_at": format_time(min(interval.end, period.until)),
    }


def endpoints(store: Store, prices: Prices, terms: Terms) -> Sequence[Endpoint]:
    routes = BillRoutes(store, prices, terms)
    path = "/api/v1/projects/{project}/budget"
    return (
        *forecast_routes.endpoints(store, prices),
        Endpoint("GET", "/api/v1/cost/bill", "bill.read", routes.bill, "A month's bill by row", query=SumQuery),
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
