"""Ranks of which one is slowed from outside, or by its own script: seen without a word of the script's about it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from typing import Any

import pytest

from tests.system.house import House, until

# The house as it is, but that it looks more often.
UP = """
import sys
from penstock.training import sampling
sampling.FIRST_S, sampling.EVERY_S, sampling.SOON_S, sampling.LEAST_S = 1.0, 1.0, 0.3, 1.5
from penstock.app import main
sys.exit(main())
"""
# A torch-free stand-in for a collective: a rank goes on only when the others have come as far.
RANK = """
import json, os, time
rank, world, place = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.getcwd()
print(os.getpid(), flush=True)
def mark(rank, step):
    return f"{os.environ['PENSTOCK_CKPT_DIR']}/{rank}.{step}"
def all_reduce(step):
    open(mark(rank, step), "x").close()
    while not all(os.path.exists(mark(other, step)) for other in range(world)):
        time.sleep(0.005)
    if step > 1:
        os.unlink(mark(rank, step - 2))
for step in range(100_000):
    time.sleep(0.05 + (rank == 1) * float(os.environ.get("EXTRA", 0)))
    all_reduce(step)
    if os.environ.get("QUIET") is None:
        os.write(int(os.environ["PENSTOCK_REPORT_FD"]), json.dumps({"step": step}).encode() + b"\\n")
"""


def told(house: House, name: str, reason: str) -> dict[str, Any] | None:
    events = house.get(f"projects/default/jobs/{name}/events")["items"]
    return next((event for event in events if event["reason"] == reason), None)


def begun(house: House, **env: str) -> str:
    return house.run(["python", "-c", RANK], procs=2, launcher="none", env=env, grace_period="1s")


def slowed(pid: int, over: threading.Event) -> None:
    """Stopped for a fifth of a second, and then free for a tenth."""
    with contextlib.suppress(ProcessLookupError):
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            over.wait(0.2)
            os.kill(pid, signal.SIGCONT)
            over.wait(0.1)


@pytest.fixture
def over() -> Any:
    event = threading.Event()
    yield event
    event.set()


def test_a_rank_slowed_by_signals_is_seen_and_its_end_too_and_healthy_ones_are_not(over: threading.Event) -> None:
    with House(program=(sys.executable, "-c", UP)) as house:
        healthy = begun(house)
        name = begun(house)
        until(lambda: house.cli("logs", name, "--rank", "1").stdout.strip(), "it does not begin")
        pid = int(house.cli("logs", name, "--rank", "1").stdout.split()[0])
        slower = threading.Thread(target=slowed, args=(pid, over))
        slower.start()
        event = until(lambda: told(house, name, "Straggling"), house.log(), 120)
        assert event["data"]["rank"] == 1
        assert event["data"]["node"] == "node-0"
        assert event["data"]["by"] == "samples"
        assert "rank 1 on node-0 holds its peers up" in event["message"]
        over.set()
        slower.join()
        until(lambda: told(house, name, "StragglingEnded"), house.log(), 120)
        assert told(house, healthy, "Straggling") is None


def test_a_rank_whose_script_is_slow_and_reports_nothing_is_seen() -> None:
    with House(program=(sys.executable, "-c", UP.replace("sys.exit", "sampling.UNKNOWN_S = 1.5\nsys.exit"))) as house:
        name = begun(house, EXTRA="0.06", QUIET="1")
        assert until(lambda: told(house, name, "Straggling"), house.log(), 120)["data"]["rank"] == 1
