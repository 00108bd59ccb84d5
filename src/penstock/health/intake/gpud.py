"""What leptonai/gpud says of a node: ``GET /v1/states``, each component's states with their health. Pure."""

from __future__ import annotations

from dataclasses import replace

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
            words = str(state.get("reason") or state.get("name") or name)
            severity = Severity.CRITICAL if hard and health == "unhealthy" else Severity.WARNING
            one = found("gpud", node, name, words, at(state.get("time"), now), severity)
            told.append(replace(one, active=health != "healthy"))
    return told
