"""A bad canary of a real server's: killed in the middle, started again, and the candidate is taken back with what was seen."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving_rollout_live import WIRES
from tests.system.house import House, until

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
NAME = "digits"


def spec(median: float, errors: float, **more: Any) -> dict[str, Any]:
    command = [*WIRES, "replica", str(median), str(errors), "0", "{port}"]
    env = {"PYTHONPATH": str(ROOT)}
    return {"runtime": "command", "command": command, "env": env, "resources": {"cpus": 0.1}, "drain": "1s", **more}


@pytest.fixture
def house() -> Iterator[House]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with House("--gateway-port", str(port)) as made:
        yield made
        made.client.services.delete(NAME)
        until(lambda: not list(made.client.services.list()), "the service does not end")


def test_a_canary_with_errors_is_taken_back_by_a_server_that_was_killed_in_the_middle(house: House) -> None:
    house.client.services.create(NAME, spec(20, 0.0))
    until(lambda: house.client.services.get(NAME).status["phase"] == "Ready", "it is not ready")
    load = subprocess.Popen(
        [*WIRES, "load", house.flags[1], "200", f"/default/{NAME}/infer"], stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert load.stdout is not None
        load.stdout.readline()
        rollout = {"strategy": "canary", "steps": [{"weight": 10, "time": "1m"}]}
        house.client.services.replace(NAME, spec(20, 0.1, rollout=rollout))
        until(lambda: last(house)["phase"] == "Progressing", "no step began")
        house.end(signal.SIGKILL)
        house.start()
        until(lambda: last(house)["phase"] == "RolledBack", f"it is not taken back: {last(house)}")
    finally:
        load.kill()
        load.wait()
        assert load.stdout is not None
        load.stdout.close()
    found = last(house)
    begun, ended = found["evidence"][0], found["evidence"][-1]
    assert (begun["what"], ended["what"]) == ("RolloutAdvanced", "RolledBack")
    failed = [test for test in ended["tests"] if test["verdict"] == "fail"]
    assert [test["name"] for test in failed] == ["error rate"]
    assert ended["candidate"]["errors"] >= 3
    versions = {one["number"]: one["weight"] for one in house.client.services.get(NAME).status["versions"]}
    assert versions[1] == 100.0
    shown = house.cli("rollout", "status", NAME).stdout
    assert "version 2 in the place of 1: RolledBack" in shown
    assert "\nOver " in shown


def last(house: House) -> dict[str, Any]:
    return dict(house.client.services.rollouts(NAME)[0])
