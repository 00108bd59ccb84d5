"""NVSentinel's health events as JSON (its ``HealthEvent`` message: camelCase names, one event or a list). Pure."""

from __future__ import annotations

from dataclasses import replace

from penstock.base.errors import InvalidInput
from penstock.base.text import one_line
from penstock.health.intake.spec import at, document, found, objects, texts
from penstock.telemetry.spec import Finding, Severity


def findings(text: bytes | str, node: str, now: float) -> list[Finding]:
    """``node``: of events that name none. Raises InvalidInput."""
    told: list[Finding] = []
    for event in objects(document(text, "NVSentinel"), "NVSentinel"):
        where = str(event.get("nodeName") or node)
        if not where:
            raise InvalidInput("NVSentinel: an event without nodeName: which node is it of?")
        entities = objects(event.get("entitiesImpacted") or [], "NVSentinel, entitiesImpacted")
        gpus = [str(one.get("entityValue", "")) for one in entities if "GPU" in str(one.get("entityType", "")).upper()]
        codes = " ".join(texts(event.get("errorCode")))
        words = f"{event.get('message', '')} {f'({codes})' if codes else ''}".strip()
        severity = Severity.CRITICAL if event.get("isFatal") is True else Severity.WARNING
        when = at(event.get("generatedTimestamp"), now)
        one = found("nvsentinel", where, str(event.get("checkName", "")), words, when, severity)
        active = event.get("isHealthy") is not True
        told += [replace(one, device=one_line(device, 200), active=active) for device in gpus or [""]]
    return told
