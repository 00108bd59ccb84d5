"""Queues on a real server: a queue file is applied, borrowing is claimed back, and everybody is told why."""

from __future__ import annotations

import pytest

from penstock.base.errors import Conflict, InvalidInput
from tests.system.house import House

QUEUES = b"""
policy: {preemption: true}
cohorts: [{name: all}]
queues:
- {name: default, cohort: all, quotas: {default: {cpus: {nominal: 1}}}}
- {name: research, cohort: all, quotas: {default: {cpus: {nominal: 1}}}}
"""


def test_a_bad_queue_file_is_refused_whole(house: House) -> None:
    bad = b"queues:\n- {name: a, cohort: nowhere}\n- {name: a}\n"
    with pytest.raises(InvalidInput) as caught:
        house.client.apply_queues(bad)
    assert len(caught.value.details) == 2
    with pytest.raises(InvalidInput) as caught:
        house.client.apply_queues(b"queues:\n- {name: a, quotas: {default: {gpus: 100000}}}\n")
    assert "the fleet has" in caught.value.details[0].message
    assert house.client.queues()["generation"] == 0


def test_what_was_borrowed_is_claimed_back(house: House) -> None:
    assert house.client.apply_queues(QUEUES, dry_run=True)["dry_run"]
    assert house.client.apply_queues(QUEUES)["generation"] == 1
    borrowers = [house.run(["sleep", "60"], resources={"cpus": 1}, grace_period="1s") for _ in range(2)]
    for borrower in borrowers:
        house.reach(borrower, "Running")
    rows = {row["queue"]: row for row in house.client.queues()["items"]}
    assert (rows["default"]["used"], rows["default"]["borrowed"]) == (2, 1)
    assert (rows["research"]["used"], rows["research"]["lent"]) == (0, 1)
    owner = house.run(["true"], resources={"cpus": 1}, queue="research")
    assert house.ended(owner)["status"]["phase"] == "Succeeded"
    assert sorted("Reclaimed" in house.reasons(name) for name in borrowers) == [False, True]
    by = {item["key"]["queue"] for item in house.get("cost/report?by=queue")["items"]}
    assert {"default", "research"} <= by
    for name in borrowers:
        house.client.jobs.cancel(name)
        house.ended(name)
    house.client.apply_queues(b"queues: [{name: default}]")


def test_start_estimates_are_kept_and_measured(house: House) -> None:
    """Whoever waits is told a start; once it has started, its queue shows how far off that was."""
    house.client.apply_queues(b"policy: {backfill: easy}")
    cpus = min(node["capacity"]["cpus"] for node in house.get("nodes")["items"])
    first = [house.run(["sleep", "6"], resources={"cpus": cpus}, time_limit="9s") for _ in range(2)]
    for name in first:
        house.reach(name, "Running")
    waits = house.run(["true"], resources={"cpus": cpus}, time_limit="1m")
    house.ended(waits)
    (row,) = house.client.queues()["items"]
    error = row["start_error"]
    assert error["count"] == 1
    assert 0 < error["median_s"] == error["p90_s"] == -error["bias_s"] < 8
    metrics = house.client.transport.request("GET", "/metrics").body.decode()
    assert 'penstock_queue_estimated_starts{queue="default"} 1' in metrics
    assert "(P90 " in house.cli("queues").stdout
    for name in first:
        house.ended(name)


def test_a_queue_that_names_projects_is_theirs_alone(house: House) -> None:
    """Administrators' jobs are no exception. Who waits in a queue that is closed to its project stays there, and says why."""
    house.client.apply_queues(
        b"queues: [{name: default, max_priority: 9}, {name: theirs, projects: [other]}, {name: open}]"
    )
    with pytest.raises(InvalidInput) as caught:
        house.run(["true"], priority=10)
    assert str(caught.value.details[0]) == "spec.priority: is 10; queue default takes none above 9"
    for queue, words in (("theirs", "is not for project 'default'"), ("nowhere", "there is no queue 'nowhere'")):
        with pytest.raises(InvalidInput) as caught:
            house.run(["true"], queue=queue)
        (problem,) = caught.value.details
        assert problem.path == "spec.queue"
        assert words in problem.message
        assert problem.message.endswith("'default' may use default, open")
    assert house.ended(house.run(["true"], queue="open"))["status"]["phase"] == "Succeeded"
    waits = house.run(["true"], queue="open", resources={"cpus": 100000})
    closed = b"queues: [{name: default}, {name: open, projects: [other]}]"
    foreseen = house.client.apply_queues(closed, dry_run=True)["warnings"]
    with pytest.raises(Conflict, match="queue open stays, but not for all who are in it: 1 job waits in it"):
        house.client.apply_queues(closed)
    assert foreseen == house.client.apply_queues(closed, force=True)["warnings"]
    assert foreseen[0] == "queue open: there is no project 'other'"
    told = house.get(f"projects/default/jobs/{waits}/why")
    assert told["reason"] == "Unschedulable"
    assert told["message"] == "queue 'open' is not for project 'default'"
    assert "name one of: default" in told["helps"]
    house.client.jobs.cancel(waits)
    house.client.apply_queues(b"queues: [{name: default}]")
