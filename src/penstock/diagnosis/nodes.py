"""What is known of a node over a time: its agents' samples, and what was found of it."""

from __future__ import annotations

from penstock.diagnosis.evidence import NodeHistory
from penstock.diagnosis.state import LogLine, NodeEvidence, Series
from penstock.health import kept
from penstock.store.store import Store
from penstock.telemetry.room import Telemetry

_BEFORE_S = 600.0  # what was found shortly before, and is so still, may be why
_KERNEL = "kmsg"  # the source whose evidence is lines of the kernel's log


def history(store: Store, telemetry: Telemetry) -> NodeHistory:
    async def of(node: str, since: float, until: float) -> NodeEvidence:
        rows = await store.read(lambda conn: kept.listed(conn, node=node, active=False, limit=kept.PER_NODE))
        found = [kept.finding(row) for row in rows]
        mine = tuple(
            one for one in found if one.at >= since - _BEFORE_S * one.active and one.first_at <= until
        )  # what had ended before it began had nothing to do with it
        return NodeEvidence(
            node,
            tuple(Series(*recent) for recent in telemetry.series(node, since, until)),
            mine,
            tuple(LogLine(one.at, line) for one in mine if one.source == _KERNEL for line in one.evidence),
        )

    return of
