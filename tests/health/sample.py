"""One node as the API tells of it: drained, with something held back."""

from __future__ import annotations

from typing import Any

from penstock.base.routes import Call, Endpoint

KEY = {"node": "node-1", "rule": "Xid", "code": "79", "device": "GPU-1"}
AT = "2026-11-26T06:55:23.398Z"
FOUND: dict[str, Any] = {
    **KEY,
    "at": AT,
    "first_at": AT,
    "ended_at": None,
    "message": "fell off the bus",
    "severity": "critical",
    "count": 2,
    "source": "kmsg",
    "active": True,
    "evidence": ["NVRM: Xid (PCI:0000:01:00): 79, <b>GPU has fallen off the bus</b>."],
    "facts": {},
    "acked_by": "",
    "jobs": ["default/train#1"],
}
OUTAGE: dict[str, Any] = {
    "node": "node-1",
    "since": AT,
    "ended_at": None,
    "verb": "drain",
    "reason": "Xid 79; then reboot",
    "findings": [KEY],
    "jobs": ["default/train#1"],
    "ended_by": "",
}
NODE: dict[str, Any] = {
    "node": "node-1",
    "ready": True,
    "cordoned": True,
    "draining": True,
    "out_since": AT,
    "findings": [FOUND],
    "decisions": [
        {"verb": "drain", "held": "", "at": AT, "reason": "Xid 79; then reboot", "findings": [KEY]},
        {"verb": "cordon", "held": "shadow", "at": AT, "reason": "ClockSkew; only tried out", "findings": [KEY]},
    ],
    "outages": [OUTAGE],
    "doubts": {"nvml": "hangs"},
    "checked_at": None,
}
SHARED: dict[str, Any] = {
    "domain": "rack b1/r1",
    "what": "heat",
    "at": AT,
    "reason": "8 of 8 nodes of rack b1/r1 have it at once: look at its cooling",
    "findings": [],
}
FLEET: dict[str, Any] = {"at": AT, "nodes": 3, "items": [NODE], "shared": [SHARED], "outages": [OUTAGE]}


def endpoints() -> list[Endpoint]:
    """For whoever shows them."""

    async def fleet(_call: Call) -> dict[str, Any]:
        return FLEET

    async def node(call: Call) -> dict[str, Any]:
        return NODE | {"node": call.path["name"]}

    return [
        Endpoint("GET", "/api/v1/health", "nodes.read", fleet, ""),
        Endpoint("GET", "/api/v1/nodes/{name}/health", "nodes.read", node, ""),
    ]
