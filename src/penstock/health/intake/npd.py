"""node-problem-detector's conditions: of ``kubectl get nodes -o json``, or of its own ``/conditions``. Pure.

A problem is a condition that is True, but for those of the kubelet itself, of which only ``Ready`` is one, when it is not True
(Kubernetes, "Node conditions").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from penstock.base.errors import InvalidInput
from penstock.health.intake.spec import at, document, found, objects
from penstock.telemetry.spec import Finding, Severity

_KUBELET = frozenset({"MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"})


def findings(text: bytes | str, node: str, now: float) -> list[Finding]:
    """Raises InvalidInput."""
    told = []
    for where, condition in _conditions(document(text, "node-problem-detector"), node):
        kind, status = str(condition.get("type", "")), str(condition.get("status", ""))
        wrong = status != "True" if kind == "Ready" else status == "True"
        if not kind or (status == "Unknown" and kind != "Ready"):
            continue
        words = f"{condition.get('reason', '')}: {condition.get('message', '')}".strip(": ")
        name = "NodeNotReady" if kind == "Ready" else kind
        severity = Severity.WARNING if kind in _KUBELET else Severity.CRITICAL
        when = at(condition.get("lastTransitionTime") or condition.get("transition"), now)
        told.append(replace(found("npd", where, name, words, when, severity), active=wrong))
    return told


def _conditions(body: Any, node: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    rows = body["items"] if isinstance(body, dict) and isinstance(body.get("items"), list) else body
    for row in objects(rows, "node-problem-detector"):
        if "status" in row and isinstance(row["status"], dict):  # a Node of Kubernetes
            meta = row.get("metadata")
            name = str(meta.get("name", "")) if isinstance(meta, dict) else ""
            for condition in objects(row["status"].get("conditions") or [], f"node {name}"):
                yield name, condition
        elif node:
            yield node, row
        else:
            raise InvalidInput("node-problem-detector: conditions without a node: which node are they of?")
