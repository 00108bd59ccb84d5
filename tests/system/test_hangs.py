"""Two ranks of which one ceases to get on: seen, named, told and started again, by a real server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.house import House, until

# A torch-free stand-in for a collective: a rank goes on only when the other has come as far.
RANK = """
import json, os, signal, sys, time
rank, place = os.environ["RANK"], os.environ["PLACE"]
life = os.environ["PENSTOCK_ATTEMPT"]
def all_reduce(step):
    open(f"{place}/{life}.{rank}.{step}", "x").close()
    while not os.path.exists(f"{place}/{life}.{1 - int(rank)}.{step}"):
        time.sleep(0.01)
for step in range(10_000):
    if step == 20 and rank == "1" and life == "1":
        print(os.getpid(), flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    all_reduce(step)
    time.sleep(0.02)
    os.write(int(os.environ["PENSTOCK_REPORT_FD"]), json.dumps({"step": step}).encode() + b"\\n")
"""
TRAIN = """
import os, signal, time
import torch, torch.distributed as dist
import penstock
dist.init_process_group("gloo")
life = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
for step in range(10_000):
    if step == 20 and life == 0 and dist.get_rank() == 1:
        time.sleep(3600)
    dist.all_reduce(torch.ones(8))
    time.sleep(0.02)
    penstock.report(step=step)
"""


@pytest.fixture
def place() -> Iterator[str]:
    """A folder that jobs' users can pass through, and write in."""
    path = tempfile.mkdtemp(prefix="penstock-test-", dir="/tmp")
    os.chmod(path, 0o777)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def found(house: House, name: str, reason: str) -> dict[str, Any] | None:
    events = house.get(f"projects/default/jobs/{name}/events")["items"]
    return next((event for event in events if event["reason"] == reason), None)


def test_a_stopped_rank_is_named_and_the_attempt_ends_as_hung(place: str) -> None:
    with House() as house:
        name = house.run(
            ["python", "-c", RANK], procs=2, launcher="none", env={"PLACE": place}, hang_limit="2s", max_restarts=1
        )
        told = until(lambda: found(house, name, "RankHung"), house.log())
        assert told["data"]["ranks"] == [1]
        assert told["data"]["clue"] == "stopped"
        assert told["data"]["answer"] == "new attempt"
        assert "rank 1 on node-0 is stopped by a signal" in told["message"]
        until(lambda: house.job(name)["status"]["attempt"] == 2, "no new attempt")
        first = house.get(f"projects/default/jobs/{name}/attempts")["items"]
        assert next(one for one in first if one["number"] == 1)["reason"] == "Hung"
        until(lambda: (house.job(name)["status"].get("progress") or {}).get("step", 0) > 25, "it does not run again")
        kept = Path(house.data_dir, "jobs", house.job(name)["id"], "1", told["data"]["file"])
        looks = {look["rank"]: look for look in json.loads(kept.read_text())["looks"]}
        assert looks[1]["state"] == "T"
        assert any(frame["name"] == "all_reduce" for frame in looks[0]["frames"])
        assert (
            'penstock_hangs_total{answer="new attempt"} 1.0'
            in house.client.transport.request("GET", "/metrics").body.decode()
        )


def test_with_tell_nothing_is_done_and_its_end_is_told_too(place: str) -> None:
    with House() as house:
        name = house.run(
            ["python", "-c", RANK],
            procs=2,
            launcher="none",
            env={"PLACE": place},
            hang_limit="2s",
            on_hang="tell",
            grace_period="1s",
        )
        told = until(lambda: found(house, name, "RankHung"), house.log())
        assert told["data"]["answer"] == "tell"
        status = house.job(name)["status"]
        assert (status["phase"], status["reason"], status["message"]) == ("Running", "RankHung", told["message"])
        pid = int(house.cli("logs", name, "--rank", "1").stdout.split()[-1])
        os.kill(pid, signal.SIGCONT)
        until(lambda: found(house, name, "HangEnded"), house.log())
        status = house.job(name)["status"]
        assert (status["phase"], status["reason"], status["attempt"]) == ("Running", "HangEnded", 1)


def test_off_is_off(place: str) -> None:
    with House() as house:
        name = house.run(
            ["python", "-c", RANK], procs=2, launcher="none", env={"PLACE": place}, hang_limit="off", grace_period="1s"
        )
        until(
            lambda: (house.job(name)["status"].get("progress") or {}).get("step") == 19, "it does not come to step 19"
        )
        other = house.run(["sh", "-c", "echo begun; sleep 600"], hang_limit="1s", grace_period="1s")
        until(
            lambda: found(house, other, "RankHung"), house.log()
        )  # by its log; and by then the other would be told of
        assert found(house, name, "RankHung") is None
        assert house.reach(other, "Failed")["status"]["reason"] == "Hung"
        silent = house.run(
            ["sleep", "600"], hang_limit="1s", grace_period="1s"
        )  # from the beginning: it never says a word
        asked = house.run(["sh", "-c", "sleep 600"], grace_period="1s")
        until(lambda: house.job(asked)["status"]["phase"] == "Running", house.log())
        assert "it has never reported a checkpoint" in house.cli("checkpoint", "save", asked).stdout
        saved = until(lambda: found(house, asked, "SaveAsked"), house.log())
        assert "nobody hears this" in saved["message"]
        assert house.reach(silent, "Failed")["status"]["reason"] == "Hung"


@pytest.mark.real
def test_torchrun_starts_them_again_in_place() -> None:
    with House() as house:
        name = house.run(["python", "-c", TRAIN], procs=2, launcher="torchrun", hang_limit="5s", max_restarts=2)
        told = until(lambda: found(house, name, "RankHung"), house.log(), 120)
        assert told["data"]["ranks"] == [1]
        assert "while rank 0 waits in all_reduce" in told["message"]
        until(lambda: found(house, name, "RankRestarted"), "its ranks are not started again", 120)
        until(
            lambda: (house.job(name)["status"].get("progress") or {}).get("step", 0) > 25, "it does not run again", 120
        )
        status = house.job(name)["status"]
        assert (status["attempt"], status["restarts"]) == (1, 1)
