"""A service whose replicas are jobs of a real Slurm, behind the real Envoy."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.measure import free_ports
from tests.serving.onnx import models
from tests.slurm_cluster import Cluster
from tests.system.house import House, until

pytestmark = [pytest.mark.real, pytest.mark.needs("slurmdbd", "root")]


@pytest.fixture
def house(slurm_cluster: Cluster) -> Iterator[House]:
    [port] = free_ports(1)
    with House("--gateway-port", str(port)) as made:
        runs = Path(made.data_dir, "runs")
        runs.mkdir()
        runs.chmod(0o1777)
        conf = slurm_cluster.environment["SLURM_CONF"]
        words = ("--name", "c1", "--slurm-conf", conf, "--folder", str(runs), "--node-prefix", "c1-")
        made.cli("engines", "add", "slurm", *words, "--partition", "pair", "--manage")
        until(lambda: len(made.get("nodes")["items"]) == 3, "the site's nodes are there")
        yield made
    slurm_cluster.clear()


def test_a_replica_that_slurm_runs_answers_through_the_gateway(house: House, tmp_path: Path) -> None:
    services = house.client.services
    model = services.carry(str(models.doubled(tmp_path / "twice.onnx")))
    venv = str(Path(sys.executable).parent.parent)
    services.create(
        "twice",
        {**model, "engine": "c1", "environment": {"venv": venv}, "drain": "1s", "resources": {"cpus": 1}},
    )
    until(lambda: services.get("twice").phase == "Ready", "it is not ready")
    [job] = house.client.jobs.list(replicas="true")
    assert job["status"]["engine"] == "c1"
    assert job["status"]["nodes"][0].startswith("c1-")
    inputs = [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]
    url = f"{services.get('twice').status['url']}/v2/models/twice/infer"
    with urllib.request.urlopen(url, json.dumps({"inputs": inputs}).encode(), timeout=20) as answer:
        assert json.loads(answer.read())["outputs"][0]["data"] == [2, 4, 6, 8]
    services.delete("twice")
    until(lambda: not list(services.list()), "it does not end")
