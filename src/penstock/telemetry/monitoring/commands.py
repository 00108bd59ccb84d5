"""``penstock telemetry render``: files for Prometheus, Alertmanager and Grafana, for this fleet."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from penstock.base.errors import Unavailable
from penstock.client.discovery import find
from penstock.client.verb import Invocation, Verb
from penstock.telemetry.monitoring import grafana, rules

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

RUNBOOKS = "https://penstock.example/runbooks"
TOKEN_FILE = "/etc/prometheus/penstock-token"  # noqa: S105 - where Prometheus finds it


def _configure(parser: ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="render")
    render = what.add_parser("render", help="write configuration, rules or dashboards into a folder")
    render.add_argument("kind", choices=("prometheus", "alertmanager", "grafana"))
    render.add_argument("--out", metavar="DIR", required=True, help="made where it is not there")
    render.add_argument("--runbooks", metavar="URL", default=RUNBOOKS, help="where docs/runbooks is published")
    render.add_argument("--alertmanager", metavar="HOST:PORT", action="append", help="may be repeated")
    render.add_argument("--webhook", metavar="URL", action="append", help="who is told of alerts; may be repeated")
    render.add_argument("--token-file", metavar="FILE", default=TOKEN_FILE, help="with a viewer's token, for /metrics")
    render.add_argument("--every", metavar="S", type=int, default=rules.SCRAPE_S, help="seconds between two scrapes")
    render.add_argument("--wait", metavar="S", type=int, default=10, help="how long what is not critical is gathered")
    render.add_argument("--agent-port", metavar="N", type=int, default=rules.AGENT_PORT, help="of agents' /metrics")
    render.add_argument("--domain", metavar="SUFFIX", default="", help="put behind nodes' names: .gpu.example.com")
    render.add_argument(
        "--targets-only", action="store_true", help="of prometheus only the list of agents: nodes came or left"
    )


def _telemetry(call: Invocation, arguments: Namespace) -> int:
    written = {"prometheus": _prometheus, "alertmanager": _alertmanager, "grafana": _grafana}[arguments.kind]
    try:
        os.makedirs(arguments.out, exist_ok=True)
        for name, text in written(call, arguments).items():
            path = os.path.join(arguments.out, name)
            with open(path + ".new", "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(path + ".new", path)  # Prometheus watches the list of agents
            call.output.note(path)
    except OSError as error:
        raise Unavailable(f"cannot write into {arguments.out}: {error.strerror}") from error
    return 0


def _prometheus(call: Invocation, arguments: Namespace) -> dict[str, str]:
    nodes = [dict(node) for node in call.client.nodes.list()]
    listed = rules.targets(nodes, arguments.agent_port, arguments.domain)
    found = {rules.TARGETS: json.dumps(listed, indent=1) + "\n"}
    if arguments.targets_only:
        return found
    server = find(call.settings.url, call.settings.token, call.settings.data_dir).url
    managers = arguments.alertmanager or ["127.0.0.1:9093"]
    return found | {
        "prometheus.yml": rules.written(rules.prometheus(server, managers, arguments.token_file, arguments.every)),
        rules.RULES: rules.written(rules.rule_file(arguments.runbooks)),
    }


def _alertmanager(_call: Invocation, arguments: Namespace) -> dict[str, str]:
    return {"alertmanager.yml": rules.written(rules.alertmanager(arguments.webhook or [], wait_s=arguments.wait))}


def _grafana(_call: Invocation, _arguments: Namespace) -> dict[str, str]:
    return {name: json.dumps(body, indent=1) + "\n" for name, body in grafana.dashboards().items()}


VERBS = {
    "telemetry": Verb(
        "penstock telemetry render prometheus --out /etc/prometheus --alertmanager alerts.example:9093\n"
        "penstock telemetry render alertmanager --out /etc/prometheus --webhook https://chat.example/hook\n"
        "penstock telemetry render grafana --out /var/lib/grafana/dashboards",
        _configure,
        _telemetry,
        about="Scrape configuration with the fleet's agents, recording and alert rules with a runbook each, routes, dashboards.",
    ),
}
