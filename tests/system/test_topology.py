"""Labels, racks and blocks on a living fleet: placed as asked, and told why where that cannot be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from penstock.base.errors import InvalidInput, NotFound
from tests.system.house import House, until


@pytest.fixture(scope="module")
def fleet() -> Iterator[House]:
    """40 nodes: four racks of eight in block-1, one in block-2."""
    with House("--simulate", "40x8", "--simulate-speed", "60") as one:
        yield one


def places(fleet: House, level: str) -> dict[str, str]:
    return {node["name"]: node["topology"].get(level, "") for node in fleet.get("nodes")["items"]}


def test_the_layout_is_there(fleet: House) -> None:
    racks = places(fleet, "rack")
    assert len(set(racks.values())) == 5
    assert fleet.get("nodes/node-39")["labels"] == {"topology/block": "block-2", "topology/rack": "rack-5"}
    assert "block-2/rack-5" in fleet.cli("nodes").stdout
    assert "topology/rack=rack-5" in fleet.cli("describe", "node", "node-39").stdout


def test_a_gang_stays_in_one_rack_and_says_what_it_waits_for(fleet: House) -> None:
    """Seven of each rack's eight nodes are taken: a gang of two finds a node everywhere, and a rack nowhere."""
    ask = {"gpus": 8, "cpus": 1}
    fillers = [
        fleet.run(["sleep", "10h"], nodes=7, resources=ask, placement={"level": "rack", "required": True})
        for _ in range(5)
    ]
    racks = places(fleet, "rack")
    for filler in fillers:
        assert len({racks[node] for node in fleet.reach(filler, "Running")["status"]["nodes"]}) == 1
    gang = fleet.run(["sleep", "1m"], nodes=2, resources=ask, placement={"level": "rack", "required": True})
    loose = fleet.run(["sleep", "1m"], nodes=2, resources=ask, placement={"level": "rack"}, priority=1)
    spread = {racks[node] for node in fleet.reach(loose, "Running", "Succeeded")["status"]["nodes"]}
    assert len(spread) == 2
    fleet.ended(loose)
    why = fleet.get(f"projects/default/jobs/{gang}/why")["message"]
    assert "needs 2 nodes with 1 CPU, 8 GPUs each in one rack; the best rack, block-" in why
    assert "has 8 GPUs free" in why
    fleet.client.jobs.cancel(fillers[0])
    assert fleet.ended(gang)["status"]["phase"] == "Succeeded"
    assert len({racks[node] for node in fleet.job(gang)["status"]["nodes"]}) == 1
    for filler in fillers[1:]:
        fleet.client.jobs.cancel(filler)
    until(lambda: not list(fleet.client.jobs.list(phase=["active"], most=1)), "the fillers do not end")


def test_what_no_domain_could_ever_hold(fleet: House) -> None:
    name = fleet.run(
        ["sleep", "1m"], nodes=9, resources={"gpus": 8, "cpus": 1}, placement={"level": "rack", "required": True}
    )
    until(lambda: fleet.job(name)["status"]["reason"] == "Unschedulable", "it was not told")
    assert "no rack of the fleet is that large" in fleet.job(name)["status"]["message"]
    shown = fleet.cli("label", "node-8", "topology/block=block-1", "topology/rack=rack-1").stdout
    assert "topology/rack=rack-1" in shown
    nodes = fleet.ended(name)["status"]["nodes"]
    assert sorted(nodes) == [f"node-{n}" for n in range(9)]
    events = fleet.get("events?kind=Node&name=node-8&newest=1&limit=1")["items"]
    assert (events[0]["reason"], events[0]["actor"]) == ("Labelled", "admin")
    fleet.cli("label", "node-8", "topology/rack=rack-2")


def test_labels_are_all_or_nothing_and_survive_a_restart(fleet: House) -> None:
    with pytest.raises(NotFound):
        fleet.client.nodes.label(["node-1", "node-99"], {"disk": "nvme"})
    with pytest.raises(InvalidInput):
        fleet.client.nodes.label(["node-1"], {"disk": "not a value"})
    assert "disk" not in fleet.get("nodes/node-1")["labels"]
    fleet.client.nodes.label(["node-1", "node-2"], {"disk": "nvme", "topology/rack": None})
    fleet.end()
    fleet.start()
    for node in ("node-1", "node-2"):
        assert fleet.get(f"nodes/{node}")["labels"] == {"disk": "nvme", "topology/block": "block-1"}
    fleet.client.nodes.label(["node-1", "node-2"], {"disk": None, "topology/rack": "rack-1"})
    assert fleet.get("nodes/node-1")["topology"] == {"block": "block-1", "rack": "rack-1"}
    done = fleet.cli("label", "node-1", code=2)
    assert "at least one node and one label" in done.stderr


def test_flavors_go_by_labels_and_jobs_name_them(fleet: House) -> None:
    fleet.client.nodes.label(["node-5", "node-6"], {"tier": "fast"})
    fleet.client.apply_queues(b"flavors: [{name: fast, labels: {tier: fast}}]\nqueues: [{name: default}]\n")
    ask = {"gpus": 8, "cpus": 1}
    fast = fleet.run(["sleep", "1m"], nodes=2, resources=ask, flavors=["fast"])
    assert sorted(fleet.ended(fast)["status"]["nodes"]) == ["node-5", "node-6"]
    one = fleet.run(["sleep", "1m"], resources=ask, flavors=["fast"], exclude_nodes=["node-5"])
    assert fleet.ended(one)["status"]["nodes"] == ["node-6"]
    none = fleet.run(["sleep", "1m"], nodes=3, resources=ask, flavors=["fast"])
    until(lambda: fleet.job(none)["status"]["reason"] == "Unschedulable", "it was not told")
    assert "only 2 nodes" in fleet.job(none)["status"]["message"]
    fleet.client.jobs.cancel(none)
    with pytest.raises(InvalidInput) as caught:
        fleet.run(["true"], flavors=["fast", "nowhere"], queue="lost")
    told = {problem.path: problem.message for problem in caught.value.details}
    assert told["spec.flavors[1]"] == "there is no flavor 'nowhere' (there are: default, fast)"
    assert "no queue 'lost'" in told["spec.queue"]
    model = fleet.run(["sleep", "1m"], resources=ask | {"gpu_model": ["NVIDIA H200", "NVIDIA H100 80GB HBM3"]})
    assert fleet.ended(model)["status"]["phase"] == "Succeeded"
    fleet.client.apply_queues(b"queues: [{name: default}]")


ONE = """
kind: Job
name: trial
spec:
  command: [sleep, 1m]
"""


@pytest.mark.parametrize(
    ("asked", "plan"),
    [
        ("  resources: {gpus: 9}", "could not start on the fleet as it is: needs 1 CPU, 9 GPUs; no node of the fleet could"),
        ("  resources: {gpus: 1, gpu_model: H900}", "could not start on the fleet as it is: needs 1 CPU, 1 H900 GPU; no node"),
        ("  resources: {gpus: 4, gpu_model: h100}", "admit at once on node-"),
        ("  resources: {gpu_share: 0.5, gpu_model: [H900, H100]}", "note: no GPU of the fleet is of model H900 (its models: N"),
        ("  exclude_nodes: [node-99]", "note: it excludes node-99, which the fleet does not have"),
        ("  nodes: 9\n  resources: {gpus: 1}\n  placement: {level: rack, required: true}", "in one rack; no rack of the fleet"),
    ],
)  # fmt: skip
def test_a_dry_run_says_what_the_fleet_does_not_have(fleet: House, asked: str, plan: str) -> None:
    (item,) = fleet.client.apply((ONE + asked).encode(), dry_run=True)["items"]
    assert plan in "\n".join(item["plan"])


def test_why_shows_five_nodes_the_freest_first(fleet: House) -> None:
    holds = fleet.run(["sleep", "10h"], nodes=39, resources={"gpus": 8, "cpus": 1})
    fleet.reach(holds, "Running")
    waits = fleet.run(["true"], nodes=2, resources={"gpus": 8, "cpus": 1})
    why = fleet.get(f"projects/default/jobs/{waits}/why")
    nodes = [line for line in why["evidence"] if line.startswith("node ")]
    assert len(nodes) == 5
    assert "8 of 8 GPUs free" in nodes[0]
    assert why["evidence"][-1] == "and 35 more nodes"
    behind = fleet.run(["true"], resources={"gpus": 8, "cpus": 1})
    assert "by itself it in line" not in fleet.get(f"projects/default/jobs/{behind}/why")["message"]
    for name in (behind, waits, holds):
        fleet.client.jobs.cancel(name)
