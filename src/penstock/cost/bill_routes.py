"""The whole bill over HTTP, its export, and budgets. The bill is the fleet's: whoever reads it sees every project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, select

from penstock.base.errors import InvalidInput, Problem
from penstock.base.routes import Call, Endpoint, Reply
from penstock.cost import budgets, focus
from penstock.cost.allocation import Interval, Statement, allocate, share_out
from penstock.cost.spec import Prices
from penstock.cost.tables import capacity, usage
from penstock.cost.terms import Terms
from penstock.store.store import Store
from penstock.tenancy.plan import visible


class BillQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    month: str | None = Field(None, pattern=r"^\d{4}-(0[1-9]|1[0-2])$", description="2026-11; default: the present one")
    rule: Literal["usage", "own"] | None = Field(None, description="who bears idle capacity; default: the price file's")


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
                "id": "/".join((row.kind, *row.pool, *row.key)),
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

    async def focus(self, call: Call) -> Reply:
        since, until = _month(call.query.month, self._store.clock())
        statement = await self._statement(since, until)
        text = focus.export(statement, self._prices, since=since, until=until)
        return Reply(text.encode(), 200, "text/csv; charset=utf-8")

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
    """The month until now at the latest. Raises InvalidInput for one that has not begun."""
    start, end = focus.month_of(now) if text is None else focus.month_named(text)
    if start >= now:
        raise InvalidInput("that month has not begun", details=[Problem("month", str(text))])
    return start, min(end, now)


def endpoints(store: Store, prices: Prices, terms: Terms) -> Sequence[Endpoint]:
    routes = BillRoutes(store, prices, terms)
    path = "/api/v1/projects/{project}/budget"
    return (
        Endpoint("GET", "/api/v1/cost/bill", "bill.read", routes.bill, "A month's bill by row", query=BillQuery),
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
