"""Cost over HTTP: a report over the projects that the caller may see, and one job's cost by attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from penstock.base.errors import NotFound
from penstock.base.routes import Call, Endpoint
from penstock.cost import queries
from penstock.cost.plan import price, shorten
from penstock.cost.queries import Window
from penstock.cost.spec import Prices
from penstock.cost.windows import read_window
from penstock.jobs import submit
from penstock.store.store import Store
from penstock.tenancy.plan import visible


class ReportQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    by: Literal["project", "user", "queue", "job", "node"] = "project"
    project: str | None = Field(None, max_length=63)
    since: str | None = Field(None, max_length=40, description="RFC 3339, or how long ago, such as 7d")
    until: str | None = Field(None, max_length=40, description="RFC 3339, or how long ago; default: now")
    limit: int = Field(500, ge=1, le=5000, description="Items at most; the cheapest are folded into the last one.")


class Quantities(BaseModel):
    cpu_hours: float
    memory_gib_hours: float
    gpu_hours: float


class Item(BaseModel):
    key: dict[str, str | int]
    amount: float
    quantities: Quantities


class Report(BaseModel):
    currency: str
    by: str
    since: str | None
    until: str | None
    items: list[Item]
    total: float


class CostRoutes:
    """The endpoints' bodies; ``endpoints`` lists them."""

    def __init__(self, store: Store, prices: Prices) -> None:
        self._store = store
        self._prices = prices

    async def report(self, call: Call) -> dict[str, Any]:
        query: ReportQuery = call.query
        window = read_window(query.since, query.until, self._store.clock())
        projects = visible(call.actor)
        if query.project is not None:
            if projects is not None and query.project not in projects:
                raise NotFound(f"there is no project {query.project!r}")
            projects = frozenset({query.project})

        def read(conn: Connection) -> dict[str, Any]:
            bill = price(queries.usages(conn, query.by, window, projects=projects), self._prices)
            bill, folded = shorten(bill, query.limit)
            return queries.report(bill, by=query.by, window=window, currency=self._prices.currency, folded=folded)

        return await self._store.read_long(read)

    async def job(self, call: Call) -> dict[str, Any]:
        now = self._store.clock()
        return await self._store.read(lambda conn: self._job(conn, call.path["project"], call.path["name"], now))

    def _job(self, conn: Connection, project: str, name: str, now: float) -> dict[str, Any]:
        ids = _job_ids(conn, project, name)
        began, ended, still = queries.span(conn, ids)
        until = now if still or ended is None else ended
        bill = price(queries.usages(conn, "attempt", Window(None, until), job_ids=ids), self._prices)
        return queries.report(bill, by="attempt", window=Window(began, until), currency=self._prices.currency)


def _job_ids(conn: Connection, project: str, name: str) -> list[str]:
    """The job's own, or for the parent of an array also its tasks'."""
    row = submit.find(conn, project, name)
    tasks = row.array_count if row.array_count is not None and row.array_of is None else 0
    return [row.id, *(submit.find(conn, project, f"{name}-{index}").id for index in range(tasks))]


def endpoints(store: Store, prices: Prices) -> Sequence[Endpoint]:
    routes = CostRoutes(store, prices)
    return (
        Endpoint(
            "GET",
            "/api/v1/cost/report",
            "cost.read",
            routes.report,
            "What was used and what it costs, by project, user, queue, job or node",
            query=ReportQuery,
            answer=Report,
        ),
        Endpoint(
            "GET",
            "/api/v1/projects/{project}/jobs/{name}/cost",
            "cost.read",
            routes.job,
            "What one job has cost, by attempt and node",
            answer=Report,
        ),
    )
