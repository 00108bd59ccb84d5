"""Writes docs/runbooks and examples/monitoring from the rules and dashboards: ``python -m tools.monitoring``. A test holds them together."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.telemetry.monitoring import grafana, rules
from penstock.telemetry.monitoring.commands import RUNBOOKS

ROOT = Path(__file__).resolve().parent.parent
RUNBOOK_PAGES = ROOT / "docs/runbooks"
FILES = ROOT / "examples/monitoring"


def pages() -> dict[Path, str]:
    """Every file, with its text."""
    _, alerts = rules.load()
    found = {RUNBOOK_PAGES / rules.page_name(one.name): rules.runbook(one) for one in alerts}
    found[FILES / rules.RULES] = rules.written(rules.rule_file(RUNBOOKS))
    for name, body in grafana.dashboards().items():
        found[FILES / name] = json.dumps(body, indent=1) + "\n"
    return found


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
