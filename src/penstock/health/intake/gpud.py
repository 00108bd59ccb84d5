"""What leptonai/gpud says of a node: ``GET /v1/states``, each component's states with their health. Pure."""

from __future__ import annotations

from penstock.health.intake.spec import at, document, found, objects, texts
from penstock.telemetry.spec import Finding, Severity

_HARD = frozenset({"REBOOT_SYSTEM", "HARDWARE_INSPECTION"})


def findings(text: bytes | str, node: str, now: float) -> list[Finding]:
    """Raises InvalidInput."""
    told = []
    for component in objects(document(text, "gpud"), "gpud"):
        name = str(component.get("component", ""))
        for state in objects(component.get("states") or [], f"gpud, {name}"):
            health = str(state.get("health", "")).lower()
            if health not in {"healthy", "unhealthy", "degraded"}:
                continue  # initializing, or a word that says nothing of the node
            actions = state.get("suggested_actions") or {}
            hard = _HARD.intersection(texts(actions.get("repair_actions"))) if isinstance(actions, dict) else set()
            told.append(
                found(
                    "gpud",
                    node,
                    name,
                    str(state.get("reason") or state.get("name") or name),
                    at(state.get("time"), now),
                    severity=Severity.CRITICAL if hard and health == "unhealthy" else Severity.WARNING,
                    active=health != "healthy",
                )
            )
    return told
