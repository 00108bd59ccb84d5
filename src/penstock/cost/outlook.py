"""The bill over the days of a month, and what the fleet will have cost by its end: what the cost page draws."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, func, select

from penstock.base.quantities import format_time
from penstock.base.routes import Call, Endpoint
from penstock.cost import bill
from penstock.cost.focus import month_of
from penstock.cost.forecast import DAYS, Running, forecast
from penstock.cost.plan import NANOS
from penstock.cost.spec import Prices
from penstock.cost.tables import capacity
from penstock.cost.terms import Terms
from penstock.store.store import Store

KINDS = ("used", "idle", "unused")
_DAY = 86400.0
_SETTLED_S = 3600.0  # after a day's end its ledger changes no more
_DAYS_KEPT = 400
_LATELY_S = 60.0


class OutlookQuery(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    month: str | None = Field(
        default=None, pattern=r"^[0-9]{4}-(0[1-9]|1[0-2])$", description="2026-11; default: the present one"
    )


_FIRST = select(func.min(capacity.c.started_at))


class Outlook:
    """The endpoint's body. Days that are over are added up once."""

    def __init__(self, store: Store, prices: Prices, terms: Terms) -> None:
        self._store, self._prices, self._terms = store, prices, terms
        self._known: OrderedDict[float, dict[str, int]] = OrderedDict()

    async def answer(self, call: Call) -> dict[str, Any]:
        now = self._store.clock()
        period = bill.month(call.query.month, now)
        return await self._store.read_long(lambda conn: self._outlook(conn, period, now))

    def _outlook(self, conn: Connection, period: bill.Period, now: float) -> dict[str, Any]:
        whole = self._kinds(conn, period)
        nanos = sum(whole.values())
        _, end = month_of(period.since)
        days = [{"day": _named(day.since), **self._day(conn, day, now)} for day in _days(period)]
        found: dict[str, Any] = {
            "currency": self._prices.currency,
            "since": format_time(period.since),
            "until": format_time(period.until),
            "ends": format_time(end),
            "nanos": nanos,
            **whole,
            "days": days,
            "forecast": None,
        }
        if end > now:
            found["forecast"] = self._forecast(conn, nanos, now, end)
        return found

    def _forecast(self, conn: Connection, nanos: int, now: float, end: float) -> dict[str, Any]:
        """By the last whole days (UTC) after the first that cost anything, and by what the fleet costs now."""
        today = now // _DAY * _DAY
        periods = [bill.Period(today - back * _DAY, today - (back - 1) * _DAY) for back in range(DAYS, 0, -1)]
        amounts = [sum(self._day(conn, each, now).values()) / NANOS for each in periods]
        first = next((n for n, amount in enumerate(amounts) if amount), len(amounts))
        recent = amounts[first + 1 :]  # the first may have begun in the middle
        began = conn.execute(_FIRST).scalar()  # a fleet may be younger than that
        lately = bill.Period(max(now - _LATELY_S, now if began is None else min(began, now)), now)
        spent = sum(self._kinds(conn, lately).values()) / NANOS
        rate = spent / (lately.until - lately.since) * 3600 if lately.until > lately.since else 0.0
        made = forecast(nanos / NANOS, recent, [Running(rate)], now=now, end=end, whose="what the fleet costs")
        return {"expected": made.expected, "low": made.low, "high": made.high, "per_hour": rate, "method": made.method}

    def _day(self, conn: Connection, day: bill.Period, now: float) -> dict[str, int]:
        if day.since in self._known and day.until - day.since == _DAY:
            return self._known[day.since]
        made = self._kinds(conn, day)
        if day.until - day.since == _DAY and now - day.until > _SETTLED_S:
            self._known[day.since] = made
            while len(self._known) > _DAYS_KEPT:
                self._known.popitem(last=False)
        return made

    def _kinds(self, conn: Connection, period: bill.Period) -> dict[str, int]:
        found = dict.fromkeys(KINDS, 0)
        for row in bill.statement(conn, period, self._prices, self._terms, by="project").rows:
            found[row.kind] += row.nanos
        return found


def _days(period: bill.Period) -> Iterator[bill.Period]:
    at = period.since
    while at < period.until:
        yield bill.Period(at, min(at + _DAY, period.until))
        at += _DAY


def _named(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def endpoints(store: Store, prices: Prices, terms: Terms) -> Sequence[Endpoint]:
    outlook = Outlook(store, prices, terms)
    what = "A month's bill by day and kind, and what it will be by the month's end"
    return (Endpoint("GET", "/api/v1/cost/outlook", "bill.read", outlook.answer, what, query=OutlookQuery),)
