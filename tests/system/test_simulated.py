"""``penstock up --simulate``: a fleet that never really runs, behind the real server, API and command line."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.house import PENSTOCK, House, until

SPEED = "60"


@pytest.fixture(scope="module")
def fleet() -> Iterator[House]:
    """64 nodes of 8 GPUs; a minute of a job's passes in a second."""
    with House("--simulate", "64x8", "--simulate-speed", SPEED) as one:
        yield one


def test_it_says_that_nothing_runs(fleet: House) -> None:
    until(lambda: "simulated: 64 nodes x 8 GPUs; nothing really runs" in fleet.log(), "it did not say so")
    nodes = fleet.get("nodes")["items"]
    assert len(nodes) == 64
    assert {node["engine"] for node in nodes} == {"simulated"}
    assert {len(node["capacity"]["gpus"]) for node in nodes} == {8}


def test_a_gang_runs_in_its_own_time(fleet: House) -> None:
    name = fleet.run(["sleep", "60"], nodes=8, procs=8, resources={"gpus": 8, "cpus": 64}, time_limit="1h")
    job = fleet.ended(name)
    assert job["status"]["phase"] == "Succeeded"
    assert len(set(job["status"]["nodes"])) == 8
    attempt = fleet.get(f"projects/default/jobs/{name}/attempts")["items"][0]
    assert len(attempt["ranks"]) == 64
    assert "simulated on " in fleet.logs(name)
    assert fleet.get(f"projects/default/jobs/{name}/cost")["items"]


def test_limits_and_estimates_are_in_the_clocks_time(fleet: House) -> None:
    """A limit of an hour is a minute here, and so is the start that is promised behind it."""
    over = fleet.run(["sleep", "1h"], time_limit="30s")
    assert fleet.ended(over)["status"]["reason"] == "TimeLimit"
    big = fleet.run(["sleep", "1h"], nodes=64, resources={"gpus": 8}, time_limit="1h", grace_period="1s")
    fleet.reach(big, "Running")
    next_ = fleet.run(["sleep", "60"], nodes=1, resources={"gpus": 8}, time_limit="10m")
    why = fleet.get(f"projects/default/jobs/{next_}/why")
    assert "8" in why["message"]
    told = [word for line in why["evidence"] if "start" in line for word in line.split() if word.endswith("Z")]
    began = fleet.job(big)["status"]["started_at"]
    assert _seconds(told[0]) - _seconds(began) == pytest.approx(60, abs=2)
    fleet.client.jobs.cancel(big)
    assert fleet.ended(big)["status"]["phase"] == "Cancelled"
    assert fleet.ended(next_)["status"]["phase"] == "Succeeded"


def test_a_bad_script_says_so(fleet: House) -> None:
    status = fleet.ended(fleet.run(["sleep", "soon"]))["status"]
    assert status["reason"] == "LaunchFailed"
    assert "'soon' is not a duration" in status["message"]


def test_real_and_made_up_jobs_never_mix() -> None:
    with House("--simulate", "2x1") as other:
        other.end()
        done = subprocess.run(
            [PENSTOCK, "up", "--data-dir", other.data_dir, "--port", "0"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, "simulated fleet" in done.stderr) == (5, True)
    with House() as real:
        real.end()
        words = [PENSTOCK, "up", "--data-dir", real.data_dir, "--port", "0", "--simulate", "2x1"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, "real jobs" in done.stderr) == (5, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_finds_its_jobs_again(number: signal.Signals) -> None:
    with House("--simulate", "4x8", "--simulate-speed", SPEED) as house:
        short = house.run(["sleep", "2m", "then", "exit", "7"])
        long = house.run(["sleep", "1h"], nodes=2, resources={"gpus": 8})
        for name in (short, long):
            house.reach(name, "Running")
        began = house.job(short)["status"]["started_at"]
        house.end(number)
        time.sleep(2.5)  # while no server is there, the short one ends
        house.start()
        job = house.ended(short)["status"]
        assert (job["phase"], job["exit_code"], job["attempt"], job["started_at"]) == ("Failed", 7, 1, began)
        ended = house.get(f"projects/default/jobs/{short}/attempts")["items"][0]["ended_at"]
        assert 1.9 < _seconds(ended) - _seconds(began) < 2.1
        assert house.job(long)["status"]["phase"] == "Running"
        assert house.job(long)["status"]["attempt"] == 1
        house.client.jobs.cancel(long)
        assert house.ended(long)["status"]["phase"] == "Cancelled"


def _seconds(text: str) -> float:
    clock = text.partition("T")[2].rstrip("Z").split(":")
    return sum(float(part) * unit for part, unit in zip(clock, (3600, 60, 1), strict=True))


def test_a_large_fleet_starts_soon_and_idles_cheaply() -> None:
    began = time.monotonic()
    with House("--simulate", "2000x8") as house:
        assert time.monotonic() - began < 30  # some two seconds on an idle machine
        assert house.process is not None
        used = _cpu_s(house.process.pid)
        time.sleep(3)
        assert _cpu_s(house.process.pid) - used < 0.5
        name = house.run(["true"], nodes=1000, resources={"gpus": 8})
        assert len(house.ended(name)["status"]["nodes"]) == 1000


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_living_fleet() -> None:
    """Jobs of several people come, run, fail, wait and end, and nodes fail and return, without anybody's doing."""
    flags = ("--simulate-load", "0.9", "--simulate-speed", "3600", "--simulate-mtbf", "100h", "--simulate-repair", "1h")
    with House("--simulate", "16x8", *flags) as house:

        def living() -> bool:
            seen = {event["reason"] for event in house.get("events?limit=500&newest=1")["items"]}
            phases = house.get("jobs/summary")["phases"]
            return phases.get("Succeeded", 0) > 20 and phases.get("Running", 0) > 0 and "Lost" in seen

        until(living, "the fleet does not live", 120)
        rows = house.client.queues()["items"]
        assert {row["queue"] for row in rows} == {"language", "vision", "science", "default"}
        assert sum(row["nominal"] for row in rows) == 128
        projects = set(house.get("jobs/summary")["projects"])
        assert {"language", "vision", "science"} <= projects
        own = house.run(["true"], resources={"gpus": 1}, priority=100)
        assert house.ended(own)["status"]["phase"] == "Succeeded"
        assert house.get("audit/verify")["ok"]
        house.end()
        house.flags = house.flags[:2]  # no more load, that it may come to rest


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--simulate", "64"], "NODESxGPUS"),
        (["--simulate-load", "0.9"], "goes with --simulate"),
        (["--simulate", "2x2", "--simulate-mtbf", "often"], "not a duration"),
        (["--simulate", "2x2", "--simulate-speed", "0"], "more than 0"),
        (["--simulate", "2x2", "--simulate-load", "-1"], "nine tenths"),
        (["--simulate", "2x2", "--local-nodes", "2"], "--local-nodes"),
    ],
)
def test_flags_that_cannot_be(flags: list[str], says: str, tmp_path: Path) -> None:
    words = [PENSTOCK, "up", "--data-dir", str(tmp_path / "data"), "--port", "0", *flags]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "data").exists()
