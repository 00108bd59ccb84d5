"""Rules, runbooks and dashboards: none is missing, none has drifted, and Prometheus' own tools take them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from penstock.telemetry.monitoring import grafana, rules
from penstock.telemetry.monitoring.commands import RUNBOOKS
from tools import monitoring

HERE = Path(__file__).parent
RECORDS, ALERTS = rules.load()


def test_what_is_committed_is_what_the_rules_make() -> None:
    """python -m tools.monitoring writes them."""
    wanted = monitoring.pages()
    assert {path: path.read_text() for path in wanted} == wanted
    there = {*monitoring.RUNBOOK_PAGES.iterdir(), *monitoring.FILES.iterdir()}
    assert there == set(wanted)


@pytest.mark.parametrize("alert", ALERTS, ids=[one.name for one in ALERTS])
def test_an_alert_says_how_bad_it_is_what_to_do_and_where_to_read(alert: rules.Alert) -> None:
    assert alert.severity in {"critical", "warning", "info"}
    assert alert.action in {"observe", "cordon", "drain", "restart-job", "reset-gpu", "reboot", "replace"}
    assert alert.look and alert.steps and alert.meaning.endswith(".")
    (written,) = [one for one in rules.rule_file(RUNBOOKS)["groups"][1]["rules"] if one["alert"] == alert.name]
    page = written["annotations"]["runbook_url"].removeprefix(f"{RUNBOOKS}/")
    assert (monitoring.RUNBOOK_PAGES / page).read_text().startswith(f"# {alert.name}\n")


def test_facts_wait_for_nothing_and_heat_must_last() -> None:
    waits = {one.name: one.for_ for one in ALERTS}
    assert {waits[name] for name in ("GpuXidFatal", "GpuEccUncorrected", "GpuMissing", "GpuRowRemapFailed")} == {"0s"}
    assert waits["GpuTooHot"] == waits["GpuThermalSlowdown"] == "10m"


def test_every_recording_that_is_asked_for_is_made() -> None:
    asked = [one.expr for one in ALERTS] + [json.dumps(body) for body in grafana.dashboards().values()]
    found = {name for text in asked for name in re.findall(r"penstock:[a-z_]+", text)}
    assert found <= RECORDS.keys()


@pytest.mark.parametrize("file", sorted(grafana.dashboards()))
def test_a_dashboards_panels_do_not_lie_on_each_other(file: str) -> None:
    body = grafana.dashboards()[file]
    cells = [
        (x, y)
        for panel in body["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in body["panels"]}) == len(body["panels"])
    assert not re.search(r"job_id|uuid=~\"\$", json.dumps(body))


def test_agents_are_listed_with_where_they_stand() -> None:
    nodes: list[dict[str, Any]] = [{"name": "n1", "topology": {"block": "b0", "rack": None}}, {"name": "n2"}]
    assert rules.targets(nodes, 7072, ".gpu.example") == [
        {"targets": ["n1.gpu.example:7072"], "labels": {"node": "n1", "block": "b0"}},
        {"targets": ["n2.gpu.example:7072"], "labels": {"node": "n2"}},
    ]


def told(*words: str, cwd: Path) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.needs("prometheus")
def test_prometheus_own_tools_take_them(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    (tmp_path / rules.TARGETS).write_text(json.dumps(rules.targets([{"name": "n1"}], 7072, "")))
    (tmp_path / rules.RULES).write_text(rules.written(rules.rule_file(RUNBOOKS)))
    config = rules.prometheus("https://penstock.example:7070", ["127.0.0.1:9093"], "token")
    (tmp_path / "prometheus.yml").write_text(rules.written(config))
    told("promtool", "check", "config", "prometheus.yml", cwd=tmp_path)
    shutil.copy(HERE / "prometheus/rules_test.yml", tmp_path)
    assert "SUCCESS" in told("promtool", "test", "rules", "rules_test.yml", cwd=tmp_path)
    for hooks in ([], ["http://127.0.0.1:1/hook"]):
        (tmp_path / "alertmanager.yml").write_text(rules.written(rules.alertmanager(hooks)))
        told("amtool", "check-config", "alertmanager.yml", cwd=tmp_path)
    routes = ("amtool", "config", "routes", "test", "--config.file=alertmanager.yml", "severity=critical", "node=n1")
    assert told(*routes, cwd=tmp_path).split()[0] == "webhooks"


@pytest.mark.needs("prometheus")
@pytest.mark.parametrize("file", sorted(grafana.dashboards()))
def test_prometheus_reads_every_query_of_a_dashboard(file: str, tmp_path: Path) -> None:
    queries = [one["expr"] for panel in grafana.dashboards()[file]["panels"] for one in panel["targets"]]
    as_rules = [{"record": f"q{number}", "expr": expr} for number, expr in enumerate(queries)]
    (tmp_path / "queries.yml").write_text(rules.written({"groups": [{"name": "queries", "rules": as_rules}]}))
    told("promtool", "check", "rules", "queries.yml", cwd=tmp_path)
