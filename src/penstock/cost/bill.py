"""A month's bill as the ledgers have it: rows of usage and capacity -> a statement, and the weights that idle is shared by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, literal, select

from penstock.base.errors import NotFound
from penstock.cost import focus
from penstock.cost.allocation import KEY, Interval, Statement, allocate, on_nodes, share_out
from penstock.cost.quota import Weights, weights
from penstock.cost.spec import Prices
from penstock.cost.tables import capacity, usage
from penstock.cost.terms import Terms
from penstock.scheduling import live

_HINT = "Name a month that has begun, like 2026-11; without one the present month's bill is read."


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
        raise NotFound(f"there is no bill of {text}: months from 1970-01 to the present one have one", hint=_HINT)
    return Period(start, min(end, now))


def statement(
    conn: Connection, period: Period, prices: Prices, terms: Terms, rule: str | None = None, *, by: str | None = None
) -> Statement:
    """What the fleet cost, and who bears it by ``rule`` (None: what is idle or unused keeps rows of its own). ``by`` a
    part of ``KEY`` alone the rows are few, and name no usage intervals; else each names its own. By node, what is idle is
    the node's own, whatever the rule: it arose there.
    """
    made = allocate(used(conn, period, by), up(conn, period), prices, terms, since=period.since, until=period.until)
    if by == "node" and rule is not None:
        whole = used(conn, period, by), up(conn, period)
        return on_nodes(made, *whole, terms, since=period.since, until=period.until)
    return made if rule is None else share_out(made, rule, queue_at=KEY.index("queue"), quotas=_weights(conn, rule))


def _weights(conn: Connection, rule: str) -> Weights:
    return weights(live.current(conn)) if rule == "quota" else Weights()


_SPAN = ("node", "resource", "quantity", "started_at", "ended_at")
_UP = tuple(capacity.c[name] for name in _SPAN)


def used(conn: Connection, period: Period, by: str | None = None) -> Iterator[Interval]:
    """Usage in a period; a month may have a million rows, so nothing is done here that need not be."""
    parts = KEY if by is None else (by, "project") if by == "job" else (by,)
    key_columns = (usage.c[part] if part in parts else literal("").label(f"no_{part}") for part in KEY)
    columns = [*(usage.c[name].label(f"of_{name}") for name in _SPAN), *key_columns]
    if by is None:
        columns += [usage.c.job_id, usage.c.attempt]
    keys: dict[tuple[str, ...], tuple[str, ...]] = {}
    for row in _within(conn, usage, columns, period):
        node, resource, quantity, start, end, *_ = row
        key = tuple(row[5:10])
        id_ = f"{row[10]}.{row[11]}/{node}/{resource}" if by is None else ""
        until = period.until if end is None else end
        yield Interval(node, resource, quantity, start, until, keys.setdefault(key, key), id_)


def up(conn: Connection, period: Period) -> Iterator[Interval]:
    for node, resource, quantity, start, end in _within(conn, capacity, _UP, period):
        yield Interval(node, resource, quantity, start, period.until if end is None else end)


def _within(conn: Connection, table: Any, columns: Sequence[Any], period: Period) -> Any:
    ended = table.c.ended_at.is_(None) | (table.c.ended_at > period.since)
    query = select(*columns).where(table.c.started_at < period.until, ended)
    return conn.execute(query, execution_options={"yield_per": 5000})


def named(key: tuple[str, ...]) -> Mapping[str, str]:
    """A row's key by the names of its parts; none of what nobody used."""
    return dict(zip(KEY, key, strict=False))
