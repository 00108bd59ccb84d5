"""What the fleet in memory says of its queues, as the API says it."""

from __future__ import annotations

from typing import Any

from penstock.base.quantities import format_time

_GIB = 1 << 30


def queue_report() -> dict[str, Any]:
    """Two queues of a cohort, one of which borrows what the other lends, and one that stands alone."""

    def row(queue: str, cohort: str | None, resource: str, *figures: float | None, waiting: int) -> dict[str, Any]:
        nominal, used, borrowed, lent = figures
        return {
            "queue": queue,
            "cohort": cohort,
            "weight": 2.0 if queue == "research" else 1.0,
            "flavor": "h200" if cohort else "default",
            "resource": resource,
            "nominal": nominal,
            "used": used,
            "borrowed": borrowed,
            "lent": lent,
            "waiting": waiting,
        }

    items = [
        row("research", "ai", "gpus", 64, 88, 24, 0, waiting=37),
        row("research", "ai", "memory", 512 * _GIB, 480 * _GIB, 0, 0, waiting=37),
        row("serving", "ai", "gpus", 64, 20, 0, 24, waiting=0),
        row("default", None, "gpus", None, 3, 0, 0, waiting=2),
    ]
    return {"policy": "fairshare, skip, easy backfill", "generation": 4, "items": items, "next_cursor": None}


def waiting_report(now: float) -> dict[str, Any]:
    def head(queue: str, place: int, name: str | None, reason: str, message: str, **more: Any) -> dict[str, Any]:
        return {
            "queue": queue,
            "place": place,
            "project": "vision" if name else None,
            "name": name,
            "user": "linus" if name else None,
            "nodes": more.get("nodes", 1),
            "gpus": more.get("gpus", 1.0),
            "queued_at": format_time(now - 1560 / place),
            "reason": reason,
            "message": message,
            "helps": more.get("helps", []),
            "start_estimate": format_time(now + more["starts_in"]) if "starts_in" in more else None,
            "firm": more.get("firm", False),
        }

    items = [
        head(
            "research", 1, "llm-70b", "WaitingForResources",
            "needs 32 GPUs in one rack; the best rack has 12 free; 4 are promised to job probe at 14:05",
            nodes=4, gpus=32.0, starts_in=5400.0, firm=True, helps=["uncordon node-2 (`penstock uncordon node-2`)"],
        ),
        head("research", 2, None, "WaitingBehind", "", gpus=8.0, starts_in=9000.0),
        head(
            "default", 1, "giant", "Unschedulable", "needs 16 GPUs on one node; the largest node has 8",
            gpus=16.0, helps=["ask for 8 GPUs on 2 nodes"],
        ),
    ]  # fmt: skip
    return {"at": format_time(now), "items": items, "next_cursor": None}
