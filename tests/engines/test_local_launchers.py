"""Ranks that a real launcher starts: logs of their own, exact exits, restarts in place, over one node or two."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.engines.spec import Launch, Observation
from tests.engines.conftest import World, until

pytestmark = pytest.mark.real  # torch takes seconds to import, and minutes of a loaded machine

Local = Callable[..., None]
VENV = str(Path(sys.executable).parent.parent)

RANK = """
import os, sys, time, signal
rank, restart = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
print("hello from", rank, "restart", restart, flush=True)
os.write(int(os.environ["PENSTOCK_REPORT_FD"]), b'{"step": 1, "loss": 0.5}\\n')
"""


def events(world: World, reason: str) -> list[dict[str, object]]:
    return [dict(h) for seen in world.seen for h in seen.happened if h["reason"] == reason]


async def torchrun(world: World, data: Path, script: str, **fields: Any) -> tuple[Launch, Observation]:
    path = data / "train.py"
    path.write_text(RANK + script)
    path.chmod(0o644)
    asked: dict[str, Any] = {
        "launcher": "torchrun",
        "procs": 2,
        "environment": {"venv": VENV},
        "restarts_left": 0,
    } | fields
    launch = await world.begin("python", str(path), wait=False, **asked)
    return launch, await world.end_of(launch)


def test_every_rank_has_its_log_and_its_exit(local: Local, data: Path) -> None:
    async def body(world: World) -> None:
        launch, ended = await torchrun(world, data, "sys.exit(0)")
        assert ended.reason == "Completed", await world.log(launch)
        assert [(rank.rank, rank.exit_code) for rank in ended.ranks] == [(0, 0), (1, 0)]
        assert await world.log(launch, rank="1") == "hello from 1 restart 0\n"
        assert "[rank 0] hello from 0 restart 0\n" in await world.log(launch)
        assert ended.progress is not None
        assert ended.progress["metrics"] == {"loss": 0.5}

    local(body)


def test_a_killed_rank_is_named_and_all_are_restarted_in_place(local: Local, data: Path) -> None:
    script = 'if restart == "0" and rank == "1": os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(1)'

    async def body(world: World) -> None:
        launch, ended = await torchrun(world, data, script, restarts_left=2)
        assert (ended.reason, ended.restarts) == ("Completed", 1), await world.log(launch)
        assert events(world, "RankExited")[0]["message"] == "rank 1 was killed by SIGKILL"
        assert len(events(world, "RankRestarted")) == 1
        assert "restart 1" in await world.log(launch, rank="0")

    local(body)


def test_the_first_failure_is_the_reason(local: Local, data: Path) -> None:
    script = 'if rank == "1": sys.exit(17)\ntime.sleep(60)'

    async def body(world: World) -> None:
        _, ended = await torchrun(world, data, script)
        assert (ended.reason, ended.exit_code) == ("Failed", 17)
        assert ended.message == "rank 1 exited with code 17"

    local(body)


def test_a_stop_reaches_ranks_once(local: Local, data: Path) -> None:
    script = """
count = 0
def on_term(*_):
    global count
    count += 1
signal.signal(signal.SIGTERM, on_term)
print("ready", flush=True)
while not count: time.sleep(0.02)
time.sleep(1.0)
print("terms", count, flush=True)
"""

    async def body(world: World) -> None:
        path = data / "train.py"
        path.write_text(RANK + script)
        path.chmod(0o644)
        asked: dict[str, Any] = {"launcher": "torchrun", "procs": 2, "environment": {"venv": VENV}, "grace_s": 20.0}
        launch = await world.begin("python", str(path), **asked)
        logs = [Path(launch.run_dir, "logs", rank) for rank in "01"]
        await until(lambda: all(any(b"ready" in f.read_bytes() for f in log.glob("*.log")) for log in logs))
        await world.engine.stop(launch.attempt_id, launch.run_dir, reason="Preempted", grace_s=20.0)
        ended = await world.end_of(launch)
        assert ended.reason == "Preempted"
        for rank in "01":
            assert "terms 1" in await world.log(launch, rank=rank)

    local(body)


def test_two_nodes_make_one_world_and_the_loss_of_one_ends_it(local: Local, data: Path) -> None:
    nodes: dict[str, Any] = {"nodes": ("node-0", "node-1"), "procs": 1, "grace_s": 1.0}

    async def body(world: World) -> None:
        launch, ended = await torchrun(world, data, 'print("world", os.environ["WORLD_SIZE"])', **nodes)
        assert ended.reason == "Completed", await world.log(launch)
        assert "world 2" in await world.log(launch, rank="0")
        assert {rank.node for rank in ended.ranks} == {"node-0", "node-1"}
        path = data / "train.py"
        path.write_text(RANK + "time.sleep(60)")
        struck = await world.begin(
            "python", str(path), launcher="torchrun", environment={"venv": VENV}, restarts_left=3, **nodes
        )
        await until(lambda: len(world.engine.logs(struck.run_dir).ranks()) >= 2)
        await world.engine.lose("node-1")
        lost = await world.end_of(struck)
        assert (lost.reason, "node-1" in lost.message) == ("NodeLost", True)

    local(body, local_nodes=2)


def test_more_restarts_than_were_left_end_it(local: Local, data: Path) -> None:
    """A launcher of the job's own that restarts as it likes."""
    script = """
import os, subprocess, sys
for count in range(9):
    env = dict(os.environ, RANK="0", TORCHELASTIC_RESTART_COUNT=str(count))
    subprocess.run([sys.executable, os.environ["PENSTOCK_IO"] + "/rank.py", "sh", "-c", "sleep 0.2; exit 1"], env=env)
"""

    async def body(world: World) -> None:
        folder = data / "fake/torch/distributed"
        folder.mkdir(parents=True)
        (folder / "run.py").write_text(script)
        for path in (data / "fake", data / "fake/torch", folder):
            path.chmod(0o755)
        launch = await world.begin(
            "python3", "x.py", launcher="torchrun", env={"PYTHONPATH": f"{data}/fake"}, restarts_left=2, wait=False
        )
        ended = await world.end_of(launch)
        assert (ended.reason, ended.restarts) == ("RestartsExhausted", 3), await world.log(launch)

    local(body)


def test_a_command_that_ranks_cannot_find_is_named(local: Local, data: Path) -> None:
    async def body(world: World) -> None:
        launch = await world.begin(
            "no-such-trainer", launcher="torchrun", procs=2, environment={"venv": VENV}, restarts_left=3, wait=False
        )
        ended = await world.end_of(launch)
        assert (ended.reason, "no-such-trainer" in ended.message) == ("CommandNotFound", True)

    local(body)


def test_a_rank_killed_from_outside_is_seen(local: Local, data: Path) -> None:
    async def body(world: World) -> None:
        path = data / "train.py"
        path.write_text(RANK + 'print("pid", os.getpid(), flush=True)\ntime.sleep(60)')
        path.chmod(0o644)
        launch = await world.begin(
            "python", str(path), launcher="torchrun", procs=2, environment={"venv": VENV}, wait=False
        )
        log = Path(launch.run_dir, "logs", "1")
        text = await until(lambda: next((f.read_text() for f in log.glob("*.log") if "pid" in f.read_text()), ""))
        os.kill(int(text.split("pid ")[1]), signal.SIGKILL)
        ended = await world.end_of(launch)
        assert (ended.reason, ended.signal, ended.message) == ("Failed", 9, "rank 1 was killed by SIGKILL")

    local(body)
