"""Whose findings can be taken in: another program is a file in this folder, and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from penstock.health.intake import gpud, nhc, npd, nvsentinel
from penstock.telemetry.spec import Finding

Reader = Callable[[bytes | str, str, float], list[Finding]]
KNOWN: Mapping[str, Reader] = {
    "gpud": gpud.findings,
    "nhc": nhc.findings,
    "npd": npd.findings,
    "nvsentinel": nvsentinel.findings,
}
