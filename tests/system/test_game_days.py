"""``penstock inject`` against a job that runs: asked for, confirmed, recorded, done, undone; and where it is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.diagnosis.injecting.catalogue import FAULTS
from tests.system.house import PENSTOCK, House, processes_of, until

_RANK = "import time\nwhile True: time.sleep(0.05)"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with House("--production", "checkout") as one:
        yield one


def _started(house: House, name: str) -> list[int]:
    house.run(
        ["python3", "-S", "-c", _RANK], name=name, procs=2, launcher="none", env={"PENSTOCK_INJECT": "faults.json"}
    )
    job = house.reach(name, "Running")
    until(lambda: len(_ranks(job["id"])) == 2, "its ranks do not start")
    return _ranks(job["id"])


def _ranks(job_id: str) -> list[int]:
    """By rank."""
    found = {}
    for pid in processes_of(job_id):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        env = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if _RANK.encode() in words and b"-S" in words and words[0].startswith((b"python3", b"/")):
            found[next(int(word[5:]) for word in env if word.startswith(b"RANK="))] = pid
    return [found[rank] for rank in sorted(found)]


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def test_a_frozen_rank_stands_still_and_goes_on_and_the_ledger_says_who(house: House) -> None:
    zero, one = _started(house, "frozen")
    words = [PENSTOCK, "--data-dir", house.data_dir, "inject", "freeze", "--job", "frozen", "--rank", "1"]
    injector = subprocess.Popen(
        [*words, "--strength", "30", "--for", "40s", "--yes"], stderr=subprocess.PIPE, text=True
    )
    until(lambda: _state(one) == "T", "the rank does not stand still")
    assert _state(zero) != "T"
    injector.send_signal(signal.SIGTERM)
    _, said = injector.communicate(timeout=20)
    assert injector.returncode == 0, said
    assert _state(one) != "T"
    events = house.get("projects/default/jobs/frozen/events?limit=500")["items"]
    told = [event for event in events if event["reason"] in ("FaultInjected", "FaultEnded")]
    assert [event["reason"] for event in sorted(told, key=lambda event: event["seq"])] == [
        "FaultInjected",
        "FaultEnded",
    ]
    assert "into rank 1 for 40 s" in next(event["message"] for event in told if event["reason"] == "FaultInjected")
    house.cli("cancel", "frozen")


def test_a_fault_inside_is_told_to_the_file_that_the_job_named(house: House) -> None:
    pid = _started(house, "inside")[0]
    hook = Path(os.readlink(f"/proc/{pid}/cwd")) / "faults.json"
    words = [PENSTOCK, "--data-dir", house.data_dir, "inject", "slow-loader", "--job", "inside", "--rank", "1"]
    injector = subprocess.Popen([*words, "--for", "1s", "--yes"], stderr=subprocess.DEVNULL)
    until(hook.exists, "the file is not written")
    assert json.loads(hook.read_text())["faults"][0]["ranks"] == [1]
    assert injector.wait(20) == 0
    assert not hook.exists()
    house.cli("cancel", "inside")


def test_refusals_say_why(house: House) -> None:
    _started(house, "whole")
    asked = ("--job", "whole", "--yes", "--for", "1s")
    assert "nobody is there to confirm" in house.cli("inject", "freeze", "--job", "whole", code=5).stderr
    assert "there is no fault 'rats'" in house.cli("inject", "rats", *asked, code=2).stderr
    assert "rank 7 is not here" in house.cli("inject", "freeze", "--rank", "7", *asked, code=4).stderr
    assert "namespaces of their own" in house.cli("inject", "bandwidth", *asked, code=5).stderr
    told = house.get("projects/default/jobs/whole/events?limit=500")["items"]
    ended = [event["message"] for event in told if event["reason"] == "FaultEnded"]
    assert sorted(ended) == ["bandwidth was not done", "freeze was not done"]
    house.cli("project", "create", "checkout")
    made = ("--project", "checkout", "run", "--detach", "--name", "sale", "--no-snapshot", "--", "sleep", "60")
    house.cli(*made)
    refused = house.cli("--project", "checkout", "inject", "freeze", "--job", "sale", "--yes", code=3)
    assert "marked as production" in refused.stderr
    told = house.get("projects/checkout/jobs/sale/events?limit=500")["items"]
    assert "FaultInjected" not in [event["reason"] for event in told]
    house.cli("--project", "checkout", "cancel", "sale")
    house.cli("cancel", "whole")


def test_the_list_names_every_fault(house: House) -> None:
    shown = json.loads(house.cli("-o", "json", "inject", "--list").stdout)
    assert {row["name"] for row in shown} == set(FAULTS)


def test_nothing_is_left_to_undo(house: House) -> None:
    assert "nothing was left behind" in house.cli("inject", "--undo").stdout
