"""What LBNL's Node Health Check writes, to its log or as Slurm's reason of a node that it took out. Pure.

``ERROR:  nhc:  Health check failed:  check_fs_mount:  /home not mounted`` (mej/nhc); Azure's own checks end with a ``FaultCode``.
A run that reached its end without an error says that what failed before passes now.
"""

from __future__ import annotations

import re
from dataclasses import replace

from penstock.health.intake.spec import found
from penstock.telemetry.spec import Finding, Severity

_SAID = re.compile(r"Health check (failed|passed):\s*(check_\w{1,80})?:?\s*(.{0,600})")
_LINES = 10_000


def findings(text: bytes | str, node: str, now: float) -> list[Finding]:
    """Total: a line that is none of NHC's says nothing."""
    words = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    told: dict[str, Finding] = {}
    for line in words.splitlines()[-_LINES:]:
        said = _SAID.search(line[:2000])
        if said is None:
            continue
        check = said[2] or "HealthCheck"
        failed = said[1] == "failed"
        one = replace(found("nhc", node, check, said[3].strip() or line.strip(), now, Severity.CRITICAL), active=failed)
        if failed or one.code not in told or not told[one.code].active:
            told[one.code] = one
    return list(told.values())
