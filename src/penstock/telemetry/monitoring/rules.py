"""The rules file, and what is made of it for Prometheus and Alertmanager."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import yaml

GROUP = "penstock"
RULES, TARGETS = "penstock-rules.yml", "penstock-agents.json"
SCRAPE_S = 15
AGENT_PORT = 7072


@dataclass(frozen=True, slots=True)
class Alert:
    name: str
    expr: str
    severity: str
    action: str
    summary: str
    meaning: str
    look: tuple[str, ...]  # commands that show more
    steps: tuple[str, ...]  # what to do, in this order
    for_: str = "0s"


def load() -> tuple[Mapping[str, str], tuple[Alert, ...]]:
    """Recording rules by name, and alerts."""
    body = yaml.safe_load((files(__package__) / "rules.yaml").read_text("utf-8"))
    alerts = tuple(
        Alert(
            name,
            one["expr"],
            one["severity"],
            one["action"],
            one["summary"],
            one["meaning"],
            tuple(one["look"]),
            tuple(one["steps"]),
            one.get("for", "0s"),
        )
        for name, one in body["alerts"].items()
    )
    return body["records"], alerts


def page_name(alert: str) -> str:
    """The runbook's file, without its folder."""
    return f"{alert}.md"


def rule_file(runbooks: str) -> dict[str, Any]:
    """As Prometheus reads it. ``runbooks``: the address of the folder that has the pages."""
    records, alerts = load()
    return {
        "groups": [
            {
                "name": f"{GROUP}-records",
                "rules": [{"record": name, "expr": " ".join(expr.split())} for name, expr in records.items()],
            },
            {"name": GROUP, "rules": [_alert(one, runbooks.rstrip("/")) for one in alerts]},
        ]
    }


def _alert(one: Alert, runbooks: str) -> dict[str, Any]:
    return {
        "alert": one.name,
        "expr": one.expr,
        **({"for": one.for_} if one.for_ != "0s" else {}),
        "labels": {"severity": one.severity, "action": one.action},
        "annotations": {"summary": one.summary, "runbook_url": f"{runbooks}/{page_name(one.name)}"},
    }


def prometheus(server: str, alertmanagers: Sequence[str], token_file: str, scrape_s: int = SCRAPE_S) -> dict[str, Any]:
    """The whole configuration. ``server``: the Penstock server's URL."""
    where = urlsplit(server)
    return {
        "global": {"scrape_interval": f"{scrape_s}s", "evaluation_interval": f"{scrape_s}s"},
        "rule_files": [RULES],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]},
        "scrape_configs": [
            {
                "job_name": "penstock",
                "scheme": where.scheme or "http",
                "authorization": {"credentials_file": token_file},
                "static_configs": [{"targets": [where.netloc]}],
            },
            {
                "job_name": "penstock-agent",
                "sample_limit": 20_000,
                "label_limit": 64,
                "file_sd_configs": [{"files": [TARGETS], "refresh_interval": "1m"}],
            },
        ],
    }


def targets(nodes: Sequence[Mapping[str, Any]], port: int, suffix: str) -> list[dict[str, Any]]:
    """For file_sd: an agent for each node, with where the node stands."""
    found = []
    for node in nodes:
        place = {key: value for key, value in (node.get("topology") or {}).items() if value}
        found.append({"targets": [f"{node['name']}{suffix}:{port}"], "labels": {"node": node["name"], **place}})
    return found


def alertmanager(webhooks: Sequence[str], *, wait_s: int = 10) -> dict[str, Any]:
    """By node and alert; a node that dies is one message, since that silences its other alerts. What is critical goes at once, and
    silences the lesser of the same GPU.
    """
    receiver: dict[str, Any] = {"name": "webhooks"}
    if webhooks:
        receiver["webhook_configs"] = [{"url": url, "send_resolved": True} for url in webhooks]
    return {
        "route": {
            "receiver": "webhooks",
            "group_by": ["node", "alertname"],
            "group_wait": f"{wait_s}s",
            "group_interval": "5m",
            "repeat_interval": "12h",
            "routes": [{"matchers": ['severity="critical"'], "group_wait": "0s", "group_interval": "10s"}],
        },
        "inhibit_rules": [
            {
                "source_matchers": ['alertname="NodeDown"'],
                "target_matchers": ['alertname!="NodeDown"'],
                "equal": ["node"],
            },
            {
                "source_matchers": ['severity="critical"', 'alertname=~"Gpu.*"'],
                "target_matchers": ['severity!="critical"', 'alertname=~"Gpu.*"'],
                "equal": ["node", "uuid", "device"],
            },
        ],
        "receivers": [receiver],
    }


def runbook(alert: Alert) -> str:
    """The alert's page, as Markdown."""
    waits = "at once" if alert.for_ == "0s" else f"after {alert.for_}"
    look = "\n".join(alert.look)
    steps = "\n".join(f"{number}. {step}" for number, step in enumerate(alert.steps, 1))
    return f"""# {alert.name}

Severity **{alert.severity}**, {waits}; action: **{alert.action}**.

{alert.meaning}

## Look

```
{look}
```

## Do

{steps}

## The rule

```
{alert.expr}
```
"""


def written(body: Any) -> str:
    return "# Written by `penstock telemetry render`.\n" + yaml.safe_dump(body, sort_keys=False, width=120)
