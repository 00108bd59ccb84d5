"""Reservations on a real server: made, obeyed, drained, ended early; and everything that is wrong with one at once."""

from __future__ import annotations

import pytest

from penstock.base.errors import Conflict, InvalidInput, NotFound
from tests.system.house import House


def busy(house: House, **fields: object) -> str:
    """A job that takes a whole node for as long as it is let."""
    cpus = min(node["capacity"]["cpus"] for node in house.get("nodes")["items"])
    return house.run(["sleep", "60"], resources={"cpus": cpus}, grace_period="1s", **fields)


def test_all_that_is_wrong_is_told_at_once(house: House) -> None:
    bad = {
        "name": "Bad Name",
        "start": "yesterday",
        "end": "in -1h",
        "nodes": ["nowhere", "node-0"],
        "projects": ["none"],
    }
    with pytest.raises(InvalidInput) as caught:
        house.client.reserve(bad)
    assert {problem.path for problem in caught.value.details} == {"name", "start", "end", "nodes[0]", "projects[0]"}
    with pytest.raises(InvalidInput) as caught:
        house.client.reserve(
            {"name": "late", "start": "2020-01-01T00:00:00Z", "end": "2020-01-02T00:00:00Z", "labels": {"a": "b"}}
        )
    assert {problem.path for problem in caught.value.details} == {"start", "end", "labels"}
    assert house.client.reservations() == []


def test_windows_do_not_overlap_unless_one_is_maintenance(house: House) -> None:
    key = "0123456789abcdef"
    first = house.client.reserve({"name": "first", "start": "in 2h", "duration": "1h", "nodes": ["node-*"]}, key=key)
    assert (
        house.client.reserve({"name": "first", "start": "in 2h", "duration": "1h", "nodes": ["node-*"]}, key=key)
        == first
    )
    assert first["nodes"] == ["node-0", "node-1"]
    with pytest.raises(InvalidInput) as caught:
        house.client.reserve({"name": "first", "start": "in 150m", "duration": "1h", "nodes": ["node-1"]})
    messages = [problem.message for problem in caught.value.details]
    assert len(messages) == 2
    assert messages[1].startswith("node-1 is in reservation first, ")
    over = house.client.reserve(
        {"name": "over", "start": "in 150m", "duration": "1h", "nodes": ["node-1"], "maintenance": True}
    )
    assert over["warnings"][0].startswith("node-1 is in reservation first, ")
    assert [one["name"] for one in house.client.reservations()] == ["first", "over"]
    house.cli("reservations", "end", "first")
    house.cli("reservations", "delete", "over")
    with pytest.raises(NotFound):
        house.client.end_reservation("over")
    reasons = [event["reason"] for event in house.get("events?kind=Reservation")["items"]]
    assert reasons == ["ReservationCreated", "ReservationCreated", "ReservationEnded", "ReservationEnded"]


def test_the_queue_files_stand_beside_them_and_are_ended_there(house: House) -> None:
    text = b"reservations: [{name: disks, start: 2099-01-01T00:00:00Z, end: 2099-01-02T00:00:00Z, nodes: [node-0]}]\n"
    house.client.apply_queues(text)
    assert [(one["name"], one["source"]) for one in house.client.reservations()] == [("disks", "queue file")]
    with pytest.raises(Conflict):
        house.client.end_reservation("disks")
    with pytest.raises(InvalidInput):
        house.client.reserve({"name": "disks", "duration": "1h", "nodes": ["node-1"]})
    house.client.apply_queues(b"queues: [{name: default}]")
    house.client.reserve({"name": "disks", "start": "in 1h", "duration": "1h", "nodes": ["node-1"]})
    with pytest.raises(InvalidInput) as caught:
        house.client.apply_queues(text)
    assert caught.value.details[0].path == "reservations[0].name"
    house.client.end_reservation("disks")


def test_nothing_runs_into_a_window_and_an_early_end_frees(house: House) -> None:
    house.client.apply_queues(b"policy: {blocking: skip}")
    house.client.reserve({"name": "soon", "start": "in 1h", "duration": "1h", "nodes": ["node-*"], "users": ["admin"]})
    endless = busy(house)
    short = busy(house, time_limit="10m")
    house.reach(short, "Running")
    why = house.get(f"projects/default/jobs/{endless}/why")
    assert "node-0, node-1 are kept from" in why["message"]
    assert why["message"].endswith("by reservation soon, and it has no time limit")
    named = busy(house, reservation="soon")
    house.reach(named, "Running")
    for name in (short, named):
        house.client.jobs.cancel(name)
        house.ended(name)
    assert house.phase(endless) == "Pending"
    house.client.end_reservation("soon")
    house.reach(endless, "Running")
    house.client.jobs.cancel(endless)
    house.ended(endless)
    with pytest.raises(InvalidInput) as caught:
        house.run(["true"], reservation="soon")
    assert caught.value.details[0].path == "spec.reservation"


def test_a_window_that_drains_moves_who_is_there(house: House) -> None:
    jobs = [busy(house) for _ in range(2)]
    at = {house.reach(name, "Running")["status"]["nodes"][0]: name for name in jobs}
    made = house.client.reserve(
        {"name": "swap", "start": "in 2s", "duration": "1h", "nodes": ["node-1"], "maintenance": True, "drain": True}
    )
    assert [job["name"] for job in made["jobs"]] == [at["node-1"]]
    house.reach(at["node-1"], "Stopping", "Pending")
    house.reach(at["node-1"], "Pending")
    assert "NodeDrained" in house.reasons(at["node-1"])
    assert house.phase(at["node-0"]) == "Running"
    why = house.get(f"projects/default/jobs/{at['node-1']}/why")["message"]
    assert "node-1 is kept until" in why
    assert why.endswith("by maintenance swap")
    began = house.get("events?reason=ReservationBegan")["items"]
    assert [event["data"]["jobs"] for event in began] == [[f"default/{at['node-1']}"]]
    house.client.end_reservation("swap")
    house.reach(at["node-1"], "Running")
    for name in jobs:
        house.client.jobs.cancel(name)
        house.ended(name)
