"""What an inference service costs per 1,000 requests: its replicas' jobs priced, over what the gateway counted in the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Connection

from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint
from penstock.cost import queries
from penstock.cost.plan import amount, price
from penstock.cost.queries import Window
from penstock.cost.spec import Prices
from penstock.jobs import submit
from penstock.serving import versions
from penstock.serving.jobs import labels
from penstock.serving.room import Serving
from penstock.store.store import Store


class ServiceCost(BaseModel):
    currency: str
    since: str | None  # none: nothing was counted yet
    until: str | None
    replicas: int  # jobs that ran in this time
    total: float
    requests: float
    per_1000: float | None  # none: no request


class ServiceCostRoutes:
    def __init__(self, store: Store, prices: Prices, serving: Serving) -> None:
        self._store, self._prices, self._serving = store, prices, serving

    async def cost(self, call: Call) -> dict[str, Any]:
        project, name = call.path["project"], call.path["name"]
        control = self._serving.loaded
        extent = control.traffic.history.extent(project, name) if control is not None else None

        def read(conn: Connection) -> dict[str, Any]:
            versions.find(conn, project, name)
            if extent is None:
                return self._told(None, 0, 0, 0.0)
            window = Window(extent[0], extent[1])
            jobs = submit.labelled(conn, project, labels(name), window.until, window.since)
            bill = price(queries.usages(conn, "job", window, job_ids=jobs), self._prices)
            return self._told(window, len(jobs), bill.nanos, extent[2])

        return await self._store.read(read)

    def _told(self, window: Window | None, jobs: int, nanos: int, requests: float) -> dict[str, Any]:
        total = amount(nanos)
        return {
            "currency": self._prices.currency,
            "since": format_time(window.since) if window is not None else None,
            "until": format_time(window.until) if window is not None else None,
            "replicas": jobs,
            "total": total,
            "requests": requests,
            "per_1000": 1000 * nanos / 1e9 / requests if requests else None,
        }


def endpoints(store: Store, prices: Prices, serving: Serving) -> Sequence[Endpoint]:
    routes = ServiceCostRoutes(store, prices, serving)
    return (
        Endpoint(
            "GET",
            "/api/v1/projects/{project}/services/{name}/cost",
            "cost.read",
            routes.cost,
            "What a service cost in the last half hour, and per 1,000 requests",
            answer=ServiceCost,
        ),
    )
