"""A month's bill as the ledgers have it: rows of usage and capacity -> a statement, and the weights that idle is shared by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from penstock.base.errors import NotFound
from penstock.cost import focus
from penstock.cost.allocation import KEY, Interval, Statement, allocate, share_out
from penstock.cost.quota import Weights, weights
from penstock.cost.spec import Prices
from penstock.cost.tables import capacity, usage
from penstock.cost.terms import Terms
from penstock.scheduling import live


@dataclass(frozen=True, slots=True)
class Period:
    since: float
    until: float


def month(text: str | None, now: float) -> Period:
    """The month until now at the latest. Raises NotFound for one that has not begun, and of years that no clock has."""
    try:
        start, end = focus.month_of(now) if text is None else focus.month_named(text)
    except (ValueError, OverflowError):
        start = end = -1.0
    if not 0 <= start < now:
        raise NotFound(f"there is no bill of {text}: months from 1970-01 to the present one have one")
    return Period(start, min(end, now))


def statement(conn: Connection, period: Period, prices: Prices, terms: Terms, rule: str | None = None) -> Statement:
    """What the fleet cost, and who bears it by ``rule`` (None: what is idle or unused keeps rows of its own)."""
    made = allocate(used(conn, period), up(conn, period), prices, terms, since=period.since, until=period.until)
    return made if rule is None else share_out(made, rule, queue_at=KEY.index("queue"), quotas=_weights(conn, rule))


def _weights(conn: Connection, rule: str) -> Weights:
    return weights(live.current(conn)) if rule == "quota" else Weights()


def used(conn: Connection, period: Period) -> Iterator[Interval]:
    for row in _within(conn, usage, period):
        yield Interval(
            row.node,
            row.resource,
            row.quantity,
            row.started_at,
            period.until if row.ended_at is None else row.ended_at,
            (row.project, row.user, row.job, row.node, row.queue),
            f"{row.job_id}.{row.attempt}/{row.node}/{row.resource}",
        )


def up(conn: Connection, period: Period) -> Iterator[Interval]:
    for row in _within(conn, capacity, period):
        end = period.until if row.ended_at is None else row.ended_at
        yield Interval(row.node, row.resource, row.quantity, row.started_at, end)


def _within(conn: Connection, table: Any, period: Period) -> Any:
    ended = table.c.ended_at.is_(None) | (table.c.ended_at > period.since)
    return conn.execute(select(table).where(table.c.started_at < period.until, ended))


def named(key: tuple[str, ...]) -> Mapping[str, str]:
    """A row's key by the names of its parts; none of what nobody used."""
    return dict(zip(KEY, key, strict=False))
