"""Nodes that are lost and drained under gangs, on a simulated fleet behind the real server: all of a gang or nothing of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.house import House, until

ASK = {"gpus": 8, "cpus": 1}


@pytest.fixture
def four() -> Iterator[House]:
    with House("--simulate", "4x8", "--simulate-speed", "60") as one:
        yield one


@pytest.fixture
def six() -> Iterator[House]:
    with House("--simulate", "6x8", "--simulate-speed", "60") as one:
        yield one


def attempts(fleet: House, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = fleet.get(f"projects/default/jobs/{name}/attempts")["items"]
    return found


def held(fleet: House) -> dict[str, int]:
    """GPUs in use, by node."""
    return {node["name"]: len(node["allocated"]["gpus"]) for node in fleet.get("nodes")["items"]}


def runs_again(fleet: House, name: str, attempt: int) -> dict[str, Any]:
    def there() -> dict[str, Any] | None:
        status: dict[str, Any] = fleet.job(name)["status"]
        return status if (status["phase"], status["attempt"]) == ("Running", attempt) else None

    found: dict[str, Any] = until(there, "it does not run again")
    return found


def test_a_gang_that_lost_a_node_starts_whole_elsewhere(six: House) -> None:
    gang = six.run(["sleep", "10h"], nodes=4, procs=2, resources=ASK, max_restarts=2)
    first = six.reach(gang, "Running")["status"]["nodes"]
    six.cli("lose", first[1])
    status = runs_again(six, gang, 2)
    assert (len(status["nodes"]), status["restarts"]) == (4, 1)
    assert first[1] not in status["nodes"]
    before, after = attempts(six, gang)
    assert before["reason"] == "NodeLost"
    assert first[1] in before["message"]
    assert [rank["signal"] for rank in before["ranks"]] == [9] * 8  # nobody of it goes on
    assert len(after["groups"]) == 4
    assert held(six) == {f"node-{n}": 8 if f"node-{n}" in status["nodes"] else 0 for n in range(6)}


def test_where_it_does_not_fit_it_holds_nothing_at_all(four: House) -> None:
    gang = four.run(["sleep", "10h"], nodes=4, resources=ASK, max_restarts=5)
    four.reach(gang, "Running")
    four.cli("lose", "node-2")
    four.reach(gang, "Pending")
    until(lambda: not any(held(four).values()), "a part of it stays")
    four.end(signal.SIGKILL)
    four.start()  # failed nodes are well after a restart
    status = runs_again(four, gang, 2)
    assert sorted(status["nodes"]) == [f"node-{n}" for n in range(4)]
    four.cli("lose", "node-0")
    four.reach(gang, "Pending")
    why = until(
        lambda: (w := four.get(f"projects/default/jobs/{gang}/why"))["reason"] == "WaitingForResources" and w, "no why"
    )
    assert "node-0 is lost" in why["message"]
    small = four.run(["sleep", "1m"], nodes=3, resources=ASK, priority=1)
    assert "node-0" not in four.ended(small)["status"]["nodes"]
    four.cli("restore-node", "node-0")
    assert len(runs_again(four, gang, 3)["nodes"]) == 4


def test_a_drained_node_gains_no_work(six: House) -> None:
    gang = six.run(["sleep", "10h"], nodes=2, resources=ASK, grace_period="30s")
    first = six.reach(gang, "Running")["status"]["nodes"]
    six.cli("drain", "--reason", "new fan", first[0])
    status = runs_again(six, gang, 2)
    assert first[0] not in status["nodes"]
    assert status["restarts"] == 0  # a drain costs none
    assert attempts(six, gang)[0]["reason"] == "NodeDrained"
    names = [six.run(["sleep", "30s"], resources={"gpus": 2, "cpus": 1}) for _ in range(30)]
    nodes = {six.ended(name)["status"]["nodes"][0] for name in names}
    assert first[0] not in nodes
    whole = six.run(["sleep", "1m"], nodes=6, resources=ASK)
    why = six.get(f"projects/default/jobs/{whole}/why")
    assert f"{first[0]} is drained (cordoned)" in why["message"]
    six.client.jobs.cancel(gang)
    six.ended(gang)
    assert six.job(whole)["status"]["phase"] == "Pending"
    six.cli("uncordon", first[0])
    assert first[0] in six.ended(whole)["status"]["nodes"]


def test_the_ledger_of_a_stormy_fleet() -> None:
    """Nodes fail all the time, some are drained: no attempt begins on a closed node, in parts, or on GPUs of another."""
    flags = ("--simulate-load", "1.2", "--simulate-speed", "1800", "--simulate-mtbf", "20h", "--simulate-repair", "1h")
    with House("--simulate", "16x8", *flags) as house:
        for n in (3, 7):
            house.cli("drain", f"node-{n}")
        ask = {"gpus": 4, "cpus": 1}
        gangs = [house.run(["sleep", "30m"], nodes=3, resources=ask, priority=100, max_restarts=100) for _ in range(8)]
        for name in gangs:
            assert house.ended(name, 120)["status"]["phase"] == "Succeeded"
        house.cli("uncordon", "node-3")
        lost = "events?kind=Node&reason=Lost&limit=500"
        until(lambda: len(house.get(lost)["items"]) > 15, "no node fails", 120)
        events = list(house.client.events.list())
        assert audit(events) >= len(gangs)
        assert house.get("audit/verify")["ok"]
        house.end()
        house.flags = house.flags[:2]


_CLOSES = {"Lost": "down", "Drained": "kept", "Cordoned": "kept"}
_OPENS = {"Restored": "down", "Uncordoned": "kept"}


def audit(events: list[Any]) -> int:
    """Walk the ledger from its beginning; how many gangs began. A node is down, or kept free by people, or both, or open."""
    closed: set[tuple[str, str]] = set()
    busy: dict[tuple[str, str], dict[str, int]] = {}  # thousandths of each GPU, by job
    gangs = 0
    for event in sorted(events, key=lambda event: event["seq"]):
        reason, data = event["reason"], event["data"]
        if event["kind"] == "Node" and reason in _CLOSES:
            closed.add((event["name"], _CLOSES[reason]))
        elif event["kind"] == "Node" and reason in _OPENS:
            closed.discard((event["name"], _OPENS[reason]))
        elif reason == "AttemptStarted":
            nodes = [group["node"] for group in data["groups"]]
            assert len(set(nodes)) == len(nodes)
            assert not {name for name, _ in closed}.intersection(nodes), (event, closed)
            gangs += len(nodes) > 1
            for group in data["groups"]:
                for gpu in group["gpus"]:
                    holders = busy.setdefault((group["node"], gpu["id"]), {})
                    holders[data["job_id"]] = gpu.get("milli") or 1000
                    assert sum(holders.values()) <= 1000, event
        elif reason == "AttemptEnded":
            for holders in busy.values():
                holders.pop(data["job_id"], None)
    return gangs
