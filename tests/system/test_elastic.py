"""Failures whose fault is told apart: a script that fails at one step, a node that fails under a job. Real processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.house import House, until

REPORT = """
import json, os, sys, time
def report(step):
    os.write(int(os.environ["PENSTOCK_REPORT_FD"]), json.dumps({"step": step}).encode() + b"\\n")
rank, restart = int(os.environ.get("RANK", 0)), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
attempt = int(os.environ["PENSTOCK_ATTEMPT"])
node = os.environ.get("PENSTOCK_NODE_RANK")
"""


@pytest.fixture(scope="module")
def two() -> Iterator[House]:
    with House("--local-nodes", "3") as one:
        yield one


def run(house: House, command: list[str], **fields: Any) -> str:
    return house.run(command, resources={"cpus": "100m"}, **fields)


def python(script: str) -> list[str]:
    return ["python3", "-c", REPORT + script]


def ended(house: House, name: str) -> dict[str, Any]:
    found: dict[str, Any] = house.ended(name)["status"]
    return found


def test_a_script_that_fails_at_one_step_is_not_tried_for_ever(two: House) -> None:
    name = run(two, python("report(1); report(7)\nraise ValueError('seven is bad')"), max_restarts=50)
    status = ended(two, name)
    assert (status["phase"], status["reason"], status["attempt"]) == ("Failed", "CrashLoop", 3)
    first, *lines = status["message"].splitlines()
    assert "3 times in a row at step 7: rank 0 on " in first
    assert "exited with code 1" in first
    assert "48 of 50 restarts are left" in first
    assert lines[-1].strip() == "ValueError: seven is bad"
    shown = two.cli("describe", name).stdout
    assert "ValueError: seven is bad" in shown
    assert "mend the script" in " ".join(two.get(f"projects/default/jobs/{name}/why")["helps"])


def test_before_the_first_step(two: House) -> None:
    status = ended(two, run(two, ["sh", "-c", "echo no such data >&2; exit 3"], max_restarts=50))
    assert status["reason"] == "CrashLoop"
    assert "before the first step" in status["message"]
    assert "no such data" in status["message"]


def test_it_holds_for_restarts_in_place_and_names_the_rank_that_failed_first(two: House) -> None:
    script = "report(4)\nif rank == 1: raise SystemExit('rank one gives up')\ntime.sleep(60)"
    name = run(two, python(script), procs=2, launcher="torchrun", max_restarts=50, grace_period="1s")
    status = ended(two, name)
    assert (status["reason"], status["attempt"]) == ("CrashLoop", 1)
    assert "at step 4: rank 1 on" in status["message"]
    assert status["message"].endswith("rank one gives up")
    assert status["restarts"] <= 4


def test_ranks_that_were_started_again_are_ended_at_once(two: House) -> None:
    """Not when something next happens to them: that may be hours away."""
    script = "if restart < 3: sys.exit('no')\ntime.sleep(3600)"
    name = run(two, python(script), procs=2, launcher="torchrun", max_restarts=50, grace_period="5s")
    assert ended(two, name)["reason"] == "CrashLoop"


def test_progress_is_no_loop(two: House) -> None:
    name = run(two, python("report(attempt * 10)\nsys.exit(attempt < 4)"), max_restarts=50)
    status = ended(two, name)
    assert (status["phase"], status["attempt"]) == ("Succeeded", 4)


def test_a_node_under_which_it_fails_at_different_steps_is_avoided(two: House) -> None:
    script = "report(10 - attempt)\nif attempt < 3: sys.exit(1)"
    name = run(two, python(script), max_restarts=50)
    status = ended(two, name)
    assert status["phase"] == "Succeeded"
    attempts = two.get(f"projects/default/jobs/{name}/attempts")["items"]
    bad = attempts[0]["nodes"][0]
    assert attempts[1]["nodes"] == [bad]
    assert attempts[2]["nodes"] != [bad]
    assert [one["node"] for one in status["avoids"]] == [bad]
    assert "NodeAvoided" in two.reasons(name)
    assert f"{bad} until " in two.cli("describe", name).stdout


def test_a_bus_error_sends_it_elsewhere(two: House) -> None:
    name = run(two, ["sh", "-c", "[ $PENSTOCK_ATTEMPT = 2 ] || kill -BUS $$"], max_restarts=5)
    ended(two, name)
    first, second = two.get(f"projects/default/jobs/{name}/attempts")["items"]
    assert first["nodes"] != second["nodes"]


def test_a_lost_node_is_avoided_and_where_no_other_fits_that_is_said(two: House) -> None:
    name = run(two, ["sleep", "60"], nodes=3, max_restarts=5, grace_period="1s")
    lost = two.reach(name, "Running")["status"]["nodes"][1]
    two.cli("lose", lost)
    two.reach(name, "Pending")
    evidence = " ".join(two.get(f"projects/default/jobs/{name}/why")["evidence"])
    assert f"avoids node {lost} until" in evidence
    two.cli("restore-node", lost)
    until(lambda: two.job(name)["status"]["phase"] == "Running", "it does not run again")
    said = [e for e in two.get(f"projects/default/jobs/{name}/events")["items"] if e["reason"] == "NodeForgiven"]
    assert "no other node fits" in said[0]["message"]
    two.client.jobs.cancel(name)


def attempts(house: House, name: str) -> list[tuple[str, int]]:
    return [(one["reason"], len(one["nodes"])) for one in house.get(f"projects/default/jobs/{name}/attempts")["items"]]


def test_it_goes_on_with_fewer_nodes_and_grows_again(two: House) -> None:
    script = "trap exit TERM; while :; do sleep 0.1; done"
    name = run(two, ["sh", "-c", script], nodes=3, min_nodes=2, grow_after="1s", grace_period="2s", max_restarts=5)
    lost = two.reach(name, "Running")["status"]["nodes"][2]
    two.client.nodes.lose(lost)
    until(lambda: two.job(name)["status"]["attempt"] == 2, "it does not start again")
    assert lost not in two.reach(name, "Running")["status"]["nodes"]
    two.client.nodes.restore(lost)
    until(lambda: two.job(name)["status"]["attempt"] == 3, "it does not grow")
    assert len(two.reach(name, "Running")["status"]["nodes"]) == 3
    assert attempts(two, name)[:2] == [("NodeLost", 3), ("Resizing", 2)]
    assert two.job(name)["status"]["restarts"] == 1  # to grow costs none
    two.client.jobs.cancel(name)


def test_a_start_with_fewer_nodes_waits_for_all_for_a_while(two: House) -> None:
    two.client.nodes.lose("node-2")
    name = run(two, ["sh", "-c", "echo $PENSTOCK_NNODES nodes"], nodes=3, min_nodes=1, shrink_after="1s")
    until(lambda: two.job(name)["status"]["reason"] == "WaitingForResources", "it does not say why it waits")
    assert "it takes 1 to 3" in two.get(f"projects/default/jobs/{name}/why")["message"]
    assert "2 nodes" in (two.ended(name), two.logs(name))[1]
    two.client.nodes.restore("node-2")
