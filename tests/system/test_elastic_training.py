"""One real training through a killed rank, a lost node, a smaller world and a larger one again: the same losses as without."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.house import House, processes_of, until

SCRIPT = str(Path(__file__).resolve().parents[2] / "examples" / "elastic" / "train.py")
STEPS = 120
Losses = dict[int, tuple[int, float]]  # by step: on how many ranks, and the loss


def losses(text: str) -> Losses:
    found = re.findall(r"step (\d+) ranks (\d+) loss (\S+)", text)
    return {int(step): (int(ranks), float(loss)) for step, ranks, loss in found}


def train(house: House, pace_s: float, **fields: Any) -> str:
    command = [sys.executable, SCRIPT, "--steps", str(STEPS), "--step-seconds", str(pace_s)]
    fields |= {"nodes": 2, "launcher": "torchrun", "env": {"OMP_NUM_THREADS": "1"}, "resources": {"cpus": 1}}
    return house.run(command, max_restarts=20, grace_period="4s", **fields)


def ranks_of(house: House, name: str) -> dict[int, int]:
    """By rank its pid. Shims, which have the ranks' environment too, are told no pipe."""
    found = {}
    for pid in processes_of(house.job(name)["id"]):
        with contextlib.suppress(OSError):
            env = dict(
                pair.split("=", 1) for pair in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in pair
            )
            if "PENSTOCK_REPORT_FD" in env and "RANK" in env:
                found[int(env["RANK"])] = pid
    return found


def reaches(house: House, name: str, step: int, ranks: int) -> None:
    def there() -> bool:
        status = house.job(name)["status"]
        assert status["phase"] not in ("Succeeded", "Failed"), status
        seen = status["progress"] or {}
        return (seen.get("step") or 0) >= step and seen["metrics"]["ranks"] == ranks

    until(there, f"it does not come to step {step} on {ranks} ranks", 90)


@pytest.mark.real
@pytest.mark.timeout(400)
def test_the_loss_goes_on_through_all_of_it() -> None:
    with House("--local-nodes", "2") as house:
        name = train(house, 0.1, min_nodes=1, grow_after="1s")
        reaches(house, name, 11, 2)
        os.kill(ranks_of(house, name)[1], signal.SIGKILL)
        until(lambda: "RankRestarted" in house.reasons(name), "its ranks are not started again", 60)
        reaches(house, name, 13, 2)
        house.client.nodes.lose("node-1")
        reaches(house, name, 14, 1)
        assert house.job(name)["status"]["nodes"] == ["node-0"]
        house.client.nodes.restore("node-1")
        reaches(house, name, 15, 2)
        status = house.ended(name, 120)["status"]
        attempts = house.get(f"projects/default/jobs/{name}/attempts")["items"]
        whole = train(house, 0)
        reference = losses((house.ended(whole, 120), house.logs(whole))[1])
        said: Losses = {}
        for attempt in attempts:
            said |= losses(house.logs(name, attempt=str(attempt["number"])))
    assert status["phase"] == "Succeeded"
    assert status["restarts"] == 2  # the kill and the lost node; to grow costs none
    assert [(a["reason"], len(a["nodes"])) for a in attempts] == [("NodeLost", 2), ("Resizing", 1), ("Completed", 2)]
    assert sorted(said) == sorted(reference) == list(range(STEPS))
    alone = min(step for step, (ranks, _) in said.items() if ranks == 1)
    assert all(said[step] == reference[step] for step in range(alone))
    assert all(abs(said[step][1] - reference[step][1]) <= 1e-6 for step in range(STEPS))
