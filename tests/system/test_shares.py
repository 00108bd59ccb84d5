"""GPU shares and MIG instances on a living fleet: placed, shown, and billed by their part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.house import House, until


@pytest.fixture(scope="module")
def fleet() -> Iterator[House]:
    """Two nodes of two GPUs; those of the second are cut."""
    with House("--simulate", "2x2", "--simulate-speed", "60", "--simulate-mig", "1:3g.40gb,2g.20gb,1g.10gb") as one:
        yield one


def groups(fleet: House, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = fleet.get(f"projects/default/jobs/{name}/attempts")["items"][-1]["groups"]
    return found


def end(fleet: House, *names: str) -> None:
    for name in names:
        fleet.client.jobs.cancel(name)
        fleet.ended(name)


def gpu_quantity(fleet: House, name: str) -> float:
    items = fleet.get(f"projects/default/jobs/{name}/cost")["items"]
    return float(sum(item["quantities"]["gpu_hours"] for item in items))


def test_halves_share_one_gpu_and_a_whole_one_goes_elsewhere(fleet: House) -> None:
    one, two = (fleet.run(["sleep", "10h"], resources={"gpu_share": 0.5}) for _ in range(2))
    for name in (one, two):
        fleet.reach(name, "Running")
    (first,), (second,) = (group["gpus"] for name in (one, two) for group in groups(fleet, name))
    assert (first["id"], first["milli"]) == (second["id"], 500)
    whole = fleet.run(["sleep", "10h"], resources={"gpus": 1})
    assert fleet.reach(whole, "Running")["status"]["nodes"] == ["node-0"]
    assert groups(fleet, whole)[0]["gpus"][0]["id"] != first["id"]
    shown = fleet.get("nodes/node-0")["allocated"]
    assert (len(shown["gpus"]), shown["gpu_parts"]) == (2, 2.0)
    more = fleet.run(["sleep", "1m"], resources={"gpu_share": 0.25})
    why = fleet.get(f"projects/default/jobs/{more}/why")["message"]
    assert "0.25 of one GPU" in why
    end(fleet, one)
    assert groups(fleet, fleet.ended(more)["name"])[0]["gpus"][0]["id"] == first["id"]
    assert "1.5/2" in fleet.cli("nodes").stdout
    end(fleet, two, whole)
    for name, part in ((two, 0.5), (whole, 1.0)):
        attempt = fleet.get(f"projects/default/jobs/{name}/attempts")["items"][0]
        hours = gpu_quantity(fleet, name)
        assert hours == pytest.approx(part * _hours(attempt), rel=0.02)


def _hours(attempt: dict[str, Any]) -> float:
    clocks = [attempt[name].partition("T")[2].rstrip("Z").split(":") for name in ("submitted_at", "ended_at")]
    began, ended = (sum(float(part) * unit for part, unit in zip(c, (3600, 60, 1), strict=True)) for c in clocks)
    return (ended - began) / 3600


def test_instances_are_placed_where_they_are(fleet: House) -> None:
    assert "2 x 3g.40gb" in fleet.cli("nodes").stdout
    big = fleet.run(["sleep", "10h"], resources={"mig": "3g.40gb", "gpus": 2})
    assert fleet.reach(big, "Running")["status"]["nodes"] == ["node-1"]
    held = groups(fleet, big)[0]["gpus"]
    assert [gpu["mig"] for gpu in held] == ["3g.40gb", "3g.40gb"]
    assert {gpu["id"] for gpu in held} == {"MIG-SIM-1-0-0", "MIG-SIM-1-1-0"}
    assert fleet.get("nodes/node-1")["allocated"]["gpu_parts"] == pytest.approx(6 / 7, abs=0.01)
    small = fleet.run(["sleep", "1m"], resources={"mig": "1g.10gb"})
    assert fleet.ended(small)["status"]["phase"] == "Succeeded"
    waits = fleet.run(["sleep", "1m"], resources={"mig": "3g.40gb"})
    assert "1 3g.40gb MIG instance" in fleet.get(f"projects/default/jobs/{waits}/why")["message"]
    never = fleet.run(["sleep", "1m"], resources={"mig": "7g.80gb"})
    until(lambda: fleet.job(never)["status"]["reason"] == "Unschedulable", "it was not told")
    fleet.end()
    fleet.start()  # what is held is known again by what was stored
    assert fleet.job(waits)["status"]["phase"] == "Pending"
    end(fleet, big, never)
    assert fleet.ended(waits)["status"]["phase"] == "Succeeded"
    assert groups(fleet, waits)[0]["gpus"][0]["gpu"] in {"SIM-1-0", "SIM-1-1"}


def test_whole_gpus_are_not_taken_of_a_cut_node(fleet: House) -> None:
    name = fleet.run(["sleep", "1m"], nodes=2, resources={"gpus": 1})
    until(lambda: fleet.job(name)["status"]["reason"] == "Unschedulable", "it was not told")
    end(fleet, name)


def test_the_command_line_says_it_too(fleet: House) -> None:
    done = fleet.cli("run", "--detach", "--no-snapshot", "--gpus", "0.5", "--", "sleep", "1m")
    half = done.stdout.strip()
    assert fleet.job(half)["spec"]["resources"]["gpu_share"] == 0.5
    done = fleet.cli("run", "--detach", "--no-snapshot", "--mig", "2g.20gb", "--", "sleep", "1m")
    assert fleet.job(done.stdout.strip())["spec"]["resources"]["mig"] == "2g.20gb"
    wrong = fleet.cli("run", "--detach", "--no-snapshot", "--gpus", "1.5", "--", "true", code=2)
    assert "a part of one (0.5)" in wrong.stderr
    assert fleet.ended(half)["status"]["phase"] == "Succeeded"
    nodes = json.loads(fleet.cli("nodes", "-o", "json").stdout)["items"]
    assert nodes[1]["capacity"]["gpus"][0]["mig"][0] == {"id": "MIG-SIM-1-0-0", "profile": "3g.40gb"}


@pytest.mark.parametrize(
    ("cut", "says"), [("3:1g.10gb", "3 nodes are to be cut"), ("1:4g.40gb,4g.40gb", "cannot be cut"), ("1", "how GPUs")]
)
def test_what_the_hardware_cannot_do(cut: str, says: str, fleet: House) -> None:
    done = fleet.cli("up", "--simulate", "2x2", "--simulate-mig", cut, code=2)
    assert says in done.stderr
