"""A job's GPUs: its own, on its own nodes, and nobody else's."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.jobs.hardware import of_node
from penstock.telemetry.charts import charts
from penstock.telemetry.history import History, Recent
from tests.stores import NOON
from tests.telemetry.agents import Agent


@pytest.fixture
def history() -> History:
    kept = History()
    for name in ("n1", "n2"):
        agent = Agent(name, gpus=4)
        kept.learn(name, "d", agent.series)
        for look in range(3):
            kept.take(name, [agent.row(NOON + 10 * look)])
    return kept


def found(history: History, groups: list[dict[str, Any]]) -> list[Recent]:
    return [one for group in groups for one in of_node(history, group, len(groups) > 1, 0, NOON + 60)]


def test_only_the_gpus_that_it_holds(history: History) -> None:
    told = found(history, [{"node": "n1", "gpus": [{"id": "GPU-00000002"}]}])
    assert {one.device for one in told if one.name.startswith("penstock_gpu_")} == {"GPU-00000002"}
    assert any(one.name == "penstock_node_tcp_retransmits_total" for one in told)


def test_a_part_of_a_gpu_is_shown_as_the_whole_of_it(history: History) -> None:
    told = found(history, [{"node": "n1", "gpus": [{"id": "MIG-7", "gpu": "GPU-00000001", "mig": "1g.10gb"}]}])
    assert {one.device for one in told if one.name.startswith("penstock_gpu_")} == {"GPU-00000001"}


def test_several_nodes_have_a_line_each(history: History) -> None:
    groups = [{"node": name, "gpus": [{"id": "GPU-00000000"}]} for name in ("n1", "n2")]
    drawn = {chart.id: [line.name for line in chart.lines] for chart in charts(found(history, groups))}
    assert drawn["gpu_power"] == ["n1 GPU-00000000", "n2 GPU-00000000"]
    assert drawn["cpu"] == ["n1", "n2"]
    assert drawn["pressure"][:2] == ["n1 cpu", "n2 cpu"]
