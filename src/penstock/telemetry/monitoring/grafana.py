"""Grafana dashboards, as Grafana's own JSON: the fleet at a glance, and one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDE, _HIGH, _ACROSS = 12, 8, 24


class Panel(NamedTuple):
    title: str
    unit: str  # as Grafana calls it
    queries: tuple[tuple[str, str], ...]  # an expression, and what its lines are called
    kind: str = "timeseries"
    top: float | None = None


def _node(metric: str) -> str:
    return f'{metric}{{node=~"$node"}}'


FLEET = (
    Panel("Agents heard", "short", (("penstock_telemetry_agents", ""),), "stat"),
    Panel("GPUs held", "short", (("sum(penstock_node_gpus_allocated)", ""),), "stat"),
    Panel("GPUs held, but idle", "percentunit", (("penstock:fleet_gpus_idle_ratio", ""),), "stat", 1.0),
    Panel("Alerts", "short", (('count(ALERTS{alertstate="firing"}) or vector(0)', ""),), "stat"),
    Panel("Jobs by phase", "short", (("penstock_jobs", "{{phase}}"),)),
    Panel("GPU utilisation", "percentunit", (("avg by (node) (penstock:gpu_utilization_ratio)", "{{node}}"),), top=1.0),
    Panel("Hottest GPU of each node", "celsius", (("max by (node) (penstock:gpu_temperature_celsius)", "{{node}}"),)),
    Panel("Power of all GPUs", "watt", (("sum(penstock:gpu_power_watts)", "GPUs"),)),
    Panel(
        "Slowest GPU clock against the fleet's median",
        "percentunit",
        (("min by (node) (penstock:gpu_clock_hertz) / scalar(quantile(0.5, penstock:gpu_clock_hertz))", "{{node}}"),),
    ),
    Panel("TCP segments sent again", "percentunit", (("penstock:node_tcp_retransmit_ratio", "{{node}}"),)),
    Panel(
        "Penstock's answers, P99",
        "s",
        (("histogram_quantile(0.99, sum by (le) (rate(penstock_http_request_duration_seconds_bucket[5m])))", "P99"),),
    ),
    Panel("Pushes of agents", "reqps", (("rate(penstock_telemetry_pushes_total[5m])", "{{outcome}}"),)),
)
NODE = (
    Panel("GPU utilisation", "percentunit", ((_node("penstock:gpu_utilization_ratio"), "GPU {{gpu}}"),), top=1.0),
    Panel("GPU memory in use", "bytes", ((_node("penstock:gpu_memory_used_bytes"), "GPU {{gpu}}"),)),
    Panel("GPU temperature", "celsius", ((_node("penstock:gpu_temperature_celsius"), "GPU {{gpu}}"),)),
    Panel("GPU power", "watt", ((_node("penstock:gpu_power_watts"), "GPU {{gpu}}"),)),
    Panel("GPU clock (SM)", "hertz", ((_node("penstock:gpu_clock_hertz"), "GPU {{gpu}}"),)),
    Panel("Why clocks are low", "short", ((f"{_node('penstock_gpu_clock_reason')} == 1", "GPU {{gpu}} {{reason}}"),)),
    Panel("CPU in use", "percentunit", ((_node("penstock:node_cpu_used_ratio"), "CPU"),), top=1.0),
    Panel("Memory in use", "percentunit", ((_node("penstock:node_memory_used_ratio"), "memory"),), top=1.0),
    Panel(
        "Network",
        "Bps",
        (
            (f"rate({_node('penstock_node_network_receive_bytes_total')}[2m])", "{{device}} received"),
            (f"rate({_node('penstock_node_network_transmit_bytes_total')}[2m])", "{{device}} sent"),
        ),
    ),
    Panel(
        "InfiniBand",
        "Bps",
        (
            (f"rate({_node('penstock_infiniband_receive_bytes_total')}[2m])", "{{device}} received"),
            (f"rate({_node('penstock_infiniband_transmit_bytes_total')}[2m])", "{{device}} sent"),
        ),
    ),
    Panel("TCP segments sent again", "percentunit", ((_node("penstock:node_tcp_retransmit_ratio"), "sent again"),)),
    Panel(
        "Pressure",
        "percentunit",
        ((f"rate({_node('penstock_node_pressure_seconds_total')}[2m])", "{{resource}} {{kind}}"),),
    ),
    Panel("Findings", "short", ((_node("penstock_agent_finding"), "{{rule}} {{code}} {{device}}"),)),
)


def dashboards() -> dict[str, dict[str, Any]]:
    """By file's name."""
    chosen = {"name": "node", "label": "Node", "type": "query", "datasource": _SOURCE, "refresh": 2, "sort": 1}
    chosen |= {"query": {"query": 'label_values(up{job="penstock-agent"}, node)', "refId": "node"}}
    return {
        "penstock-fleet.json": _dashboard("penstock-fleet", "Penstock: fleet", FLEET, []),
        "penstock-node.json": _dashboard("penstock-node", "Penstock: node", NODE, [chosen]),
    }


def _dashboard(uid: str, title: str, panels: Sequence[Panel], variables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return {
        "uid": uid,
        "title": title,
        "tags": ["penstock"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [source, *variables]},
        "annotations": {"list": [_alerts()]},
        "panels": _placed(panels),
    }


def _alerts() -> dict[str, Any]:
    """Alerts that fire are marked on every chart."""
    expr = 'ALERTS{alertstate="firing", alertname!=""}'
    shown = {"titleFormat": "{{alertname}}", "textFormat": "{{node}}", "iconColor": "red"}
    return {"name": "Alerts", "enable": True, "datasource": _SOURCE, "expr": expr, **shown}


def _placed(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Small ones four in a row, then charts two in a row."""
    placed, x, y, row = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        wide, high = (_ACROSS // 4, 4) if panel.kind == "stat" else (_WIDE, _HIGH)
        if x + wide > _ACROSS or (row and high != row):
            x, y = 0, y + row
        row = high
        placed.append(_panel(number, panel) | {"gridPos": {"x": x, "y": y, "w": wide, "h": high}})
        x += wide
    return placed


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + at), "datasource": _SOURCE, "expr": expr, "legendFormat": called or "__auto"}
        for at, (expr, called) in enumerate(panel.queries)
    ]
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.top is not None:
        defaults["max"] = panel.top
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
    }
