"""A project's forecast for this month over HTTP, and the intervals that one row of the bill stands for."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, func, select

from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint
from penstock.cost import budgets, queries
from penstock.cost.focus import month_of
from penstock.cost.forecast import DAYS, Running, forecast
from penstock.cost.plan import NANOS, Usage, price
from penstock.cost.queries import Window
from penstock.cost.spec import Prices
from penstock.cost.tables import usage
from penstock.jobs import submit
from penstock.jobs.spec import JobSpec
from penstock.store.store import Store

_DAY = 86400.0


class ForecastRoutes:
    """The endpoint's body; ``endpoints`` lists it."""

    def __init__(self, store: Store, prices: Prices) -> None:
        self._store, self._prices = store, prices

    async def forecast(self, call: Call) -> dict[str, Any]:
        project, now = call.path["project"], self._store.clock()
        return await self._store.read_long(lambda conn: self._forecast(conn, project, now))

    def _forecast(self, conn: Connection, project: str, now: float) -> dict[str, Any]:
        _, end = month_of(now)
        days = self._days(conn, project, now)
        spent = budgets.spent(conn, project, self._prices, now)
        found = forecast(float(spent), days, self._running(conn, project), now=now, end=end)
        budget = next((each for each in budgets.listed(conn) if each.project == project), None)
        return {
            "project": project,
            "currency": self._prices.currency,
            "until": format_time(end),
            "spent": float(spent),
            "days": days,
            "expected": found.expected,
            "low": found.low,
            "high": found.high,
            "method": found.method,
            "budget": None if budget is None else str(budget.amount),
        }

    def _days(self, conn: Connection, project: str, now: float) -> list[float]:
        """What each of the last whole days (UTC) cost, from the first whole day of the project's usage on."""
        first = conn.execute(select(func.min(usage.c.started_at)).where(usage.c.project == project)).scalar()
        today = now // _DAY * _DAY
        starts = [today - _DAY * back for back in range(DAYS, 0, -1)]
        windows = [Window(start, start + _DAY) for start in starts if first is not None and start >= first]
        bills = [price(queries.usages(conn, "project", each, projects={project}), self._prices) for each in windows]
        return [float(Decimal(bill.nanos) / NANOS) for bill in bills]

    def _running(self, conn: Connection, project: str) -> list[Running]:
        """What is open now: its cost an hour, and when its job's time limit ends it."""
        query = select(usage).where(usage.c.project == project, usage.c.ended_at.is_(None))
        held: dict[tuple[str, float], list[Usage]] = {}
        for row in conn.execute(query):
            held.setdefault((row.job_id, row.started_at), []).append(Usage((), row.resource, row.quantity * 3600))
        found = []
        for (job_id, started), used in held.items():
            job = submit.by_id(conn, job_id)
            limit = JobSpec.model_validate_json(job.spec).time_limit if job is not None else None
            found.append(Running(price(used, self._prices).nanos / NANOS, None if limit is None else started + limit))
        return found


def endpoints(store: Store, prices: Prices) -> Sequence[Endpoint]:
    routes = ForecastRoutes(store, prices)
    path = "/api/v1/projects/{project}/forecast"
    return (Endpoint("GET", path, "cost.read", routes.forecast, "What the project will have spent by the month's end"),)
