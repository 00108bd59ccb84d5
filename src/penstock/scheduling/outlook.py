"""How far off start estimates are, measured: the first that a job in line is told, against when it then starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.engine import Connection

from penstock.base.routes import Sample
from penstock.scheduling.estimates import Estimate, error_summary
from penstock.scheduling.tables import outlooks
from penstock.store.store import Tx

KEPT_S = 7 * 86400.0  # starts that count
MOST = 20_000  # of the newest starts
_BEGAN = outlooks.update().where(
    outlooks.c.job_id == bindparam("b_id"), outlooks.c.attempt == bindparam("b_attempt"), outlooks.c.began.is_(None)
)
_TOLD = outlooks.insert()
_FORGET = outlooks.delete().where(outlooks.c.job_id == bindparam("b_id"), outlooks.c.attempt == bindparam("b_attempt"))
_OPEN = select(outlooks.c.job_id, outlooks.c.attempt).where(outlooks.c.began.is_(None))
_RECENT = select(outlooks.c.queue, outlooks.c.begins, outlooks.c.began).where(outlooks.c.began >= bindparam("since"))
_NEWEST = _RECENT.order_by(outlooks.c.began.desc()).limit(MOST)
Waits = dict[str, int]  # job id -> the attempt that it waits for


def load(conn: Connection) -> Waits:
    """Who was told something and has not started."""
    return {row.job_id: row.attempt for row in conn.execute(_OPEN)}


def tell(tx: Tx, told: Waits, line: Mapping[str, tuple[int, str]], found: Mapping[str, Estimate]) -> None:
    """Keep the first estimate of everybody in ``line`` (by id: the attempt waited for, the queue) who has none yet;
    who has left the line without a start is forgotten, and so are starts of long ago.
    """
    gone = [(id_, attempt) for id_, attempt in told.items() if line.get(id_, (0, ""))[0] != attempt]
    for id_, _ in gone:
        del told[id_]
    if gone:
        tx.conn.execute(_FORGET, [{"b_id": id_, "b_attempt": attempt} for id_, attempt in gone])
    new: list[dict[str, Any]] = [
        {
            "job_id": id_, "attempt": attempt, "queue": queue, "told_at": tx.now, "begins": found[id_].start,
            "firm": found[id_].firm, "began": None,
        }
        for id_, (attempt, queue) in line.items()
        if id_ not in told and id_ in found
    ]  # fmt: skip
    if new:
        tx.conn.execute(_FORGET, [{"b_id": row["job_id"], "b_attempt": row["attempt"]} for row in new])
        tx.conn.execute(_TOLD, new)
    told |= {row["job_id"]: row["attempt"] for row in new}
    tx.conn.execute(outlooks.delete().where(outlooks.c.began < tx.now - KEPT_S))


def began(tx: Tx, told: Waits, ids: Iterable[str]) -> None:
    """They start now."""
    known = [(id_, told.pop(id_)) for id_ in ids if id_ in told]
    if known:
        tx.conn.execute(_BEGAN, [{"b_id": id_, "b_attempt": attempt, "began": tx.now} for id_, attempt in known])


def errors(conn: Connection, now: float) -> dict[str, dict[str, Any]]:
    """By queue, over the starts of the last days that had an estimate: how many, and how far off it was."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    for queue, told, at in conn.execute(_NEWEST, {"since": now - KEPT_S}):
        pairs.setdefault(queue, []).append((told, at))
    found = {queue: error_summary(some) for queue, some in sorted(pairs.items())}
    return {queue: asdict(one) for queue, one in found.items() if one is not None}


def samples(conn: Connection, now: float) -> list[Sample]:
    """What /metrics says of them."""
    found = errors(conn, now)
    size = "How far off the start was that a job was first told, over a week's starts: a quantile of its size."
    return [
        *(
            Sample("queue_estimated_starts", "gauge", "Starts of the last week that had an estimate.", {"queue": name}, one["count"])
            for name, one in found.items()
        ),
        *(
            Sample("queue_start_error_seconds", "gauge", size, {"queue": name, "quantile": quantile}, one[key])
            for name, one in found.items()
            for quantile, key in (("0.5", "median_s"), ("0.9", "p90_s"))
        ),
        *(
            Sample("queue_start_bias_seconds", "gauge", "By how much such starts were later than told, on average.", {"queue": name}, one["bias_s"])
            for name, one in found.items()
        ),
    ]  # fmt: skip
