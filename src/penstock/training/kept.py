"""The table of what ended attempts were: read and written here alone."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select, tuple_
from sqlalchemy.engine import Connection, Row

from penstock.base.routes import Sample
from penstock.store.store import Tx
from penstock.training.tables import goodput

SAMPLED_S = 86_400.0  # what /metrics tells of
_SAMPLED = 5000  # attempts, the newest


@dataclass(frozen=True, slots=True)
class Summary:
    """One attempt's row. ``lives`` and ``told`` are plain JSON."""

    job_id: str
    attempt: int
    project: str
    job: str
    user: str
    began_at: float
    ended_at: float
    gpus: float
    cpus: float
    parts: Mapping[str, int]
    measured: bool
    lives: Sequence[Any]
    told: Sequence[Any]

    @property
    def device(self) -> str:
        return "gpu" if self.gpus else "cpu"

    @property
    def weight(self) -> float:
        return self.gpus or self.cpus


def of(row: Row[Any]) -> Summary:
    values = row._asdict()
    return Summary(**values | {name: json.loads(values[name]) for name in ("parts", "lives", "told")})


def of_job(conn: Connection, job_id: str) -> dict[int, Summary]:
    """By attempt."""
    return {row.attempt: of(row) for row in conn.execute(select(goodput).where(goodput.c.job_id == job_id))}


def since(conn: Connection, moment: float, projects: Collection[str] | None, limit: int) -> list[Summary]:
    """Of attempts that ended after ``moment``, the newest first; without their lives and words, which are large."""
    query = _light().where(goodput.c.ended_at > moment)
    if projects is not None:
        query = query.where(goodput.c.project.in_(sorted(projects)))
    return [_lightly(row) for row in conn.execute(query.order_by(goodput.c.ended_at.desc()).limit(limit))]


def _light() -> Any:
    return select(*(column for column in goodput.c if column.name not in ("lives", "told")))


def _lightly(row: Row[Any]) -> Summary:
    values = row._asdict()
    return Summary(**values | {"parts": json.loads(values["parts"]), "lives": (), "told": ()})


def known(conn: Connection, keys: Collection[tuple[str, int]]) -> set[tuple[str, int]]:
    query = select(goodput.c.job_id, goodput.c.attempt)
    return {
        (row.job_id, row.attempt)
        for row in conn.execute(query.where(goodput.c.job_id.in_(sorted({k[0] for k in keys}))))
    }


def write(tx: Tx, summaries: Sequence[Summary]) -> None:
    """In the place of what was known of these attempts."""
    keys = [(one.job_id, one.attempt) for one in summaries]
    tx.conn.execute(delete(goodput).where(tuple_(goodput.c.job_id, goodput.c.attempt).in_(keys)))
    rows = [
        {
            **{name: getattr(one, name) for name in goodput.c.keys()},  # noqa: SIM118 - columns, not a mapping
            **{name: json.dumps(getattr(one, name), separators=(",", ":")) for name in ("parts", "lives", "told")},
        }
        for one in summaries
    ]
    tx.conn.execute(insert(goodput), rows)


def samples(conn: Connection, now: float) -> list[Sample]:
    """For /metrics: device-seconds by part of attempts that ended in the last day, and the share of steps in them."""
    about = "Device-seconds (GPUs, or cores where none were held) of measured trainings that ended in the last day, by part."
    sums: dict[tuple[str, str], dict[str, float]] = {}
    for one in since(conn, now - SAMPLED_S, None, _SAMPLED):
        if one.measured:
            into = sums.setdefault((one.project, one.device), {})
            for part, length in one.parts.items():
                into[part] = into.get(part, 0.0) + length / 1000 * one.weight
    found = []
    for (project, device), parts in sums.items():
        labels = {"project": project, "device": device}
        found += [Sample("training_seconds", "gauge", about, labels | {"part": p}, v) for p, v in parts.items()]
        wall = sum(parts.values())
        if wall:
            ratio = "Share of those device-seconds that went into steps which were kept."
            found.append(Sample("goodput_ratio", "gauge", ratio, labels, parts.get("steps", 0.0) / wall))
    return found or [
        Sample("training_seconds", "gauge", about, {"project": "", "device": "", "part": ""}, 0),
        Sample(
            "goodput_ratio",
            "gauge",
            "Share of those device-seconds that went into steps which were kept.",
            {"project": "", "device": ""},
            0,
        ),
    ]
