"""Disks that fill, folders that vanish, clocks that step back, ports and folders that are taken."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.base.errors import OutOfSpace, Unauthenticated
from penstock.client.client import Client
from tests.system.house import PENSTOCK, House, processes_of, until


def up(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PENSTOCK, "up", *flags], capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def house() -> Iterator[House]:
    with House() as one:
        yield one


def test_a_second_server_says_who_holds_the_folder(house: House) -> None:
    done = up("--data-dir", house.data_dir, "--port", "0")
    assert done.returncode == 5
    assert house.process is not None
    assert f"pid {house.process.pid}, listening at {house.url}" in done.stderr
    assert house.ended(house.run(["true"]))["status"]["phase"] == "Succeeded"


def test_a_taken_port_is_named(house: House, tmp_path: Path) -> None:
    with socket.socket() as taken, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = up("--data-dir", f"{folder}/d", "--port", str(port))
    assert done.returncode == 5
    assert f"port {port} of 127.0.0.1 is taken by pid {os.getpid()}" in done.stderr


def test_others_cannot_be_served_in_the_clear(tmp_path: Path) -> None:
    done = up("--data-dir", str(tmp_path / "d"), "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert "--tls-cert" in done.stderr
    assert not (tmp_path / "d" / "penstock.db").exists()


@pytest.mark.needs("root")
def test_root_is_told_of_a_folder_its_jobs_cannot_pass() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        done = up("--data-dir", f"{folder}/d", "--port", "0")
    assert done.returncode == 2
    assert folder in done.stderr


def test_jobs_outlive_the_server_and_are_found_again(house: House) -> None:
    running = house.run(["sh", "-c", "sleep 2; exit 5"], resources={"cpus": 0.1})
    short = house.run(["sh", "-c", "sleep 0.7; exit 4"], resources={"cpus": 0.1})
    for name in (running, short):
        house.reach(name, "Running")
    assert house.end(signal.SIGTERM) == 0
    house.start()
    assert house.ended(short)["status"]["exit_code"] == 4
    assert house.ended(running)["status"]["exit_code"] == 5
    assert house.job(running)["status"]["attempt"] == 1


def test_a_cancel_is_not_forgotten_by_a_killed_server(house: House) -> None:
    name = house.run(["sh", "-c", "trap '' TERM; sleep 100"], grace_period="2s")
    job = house.reach(name, "Running")
    house.client.jobs.cancel(name)
    house.end(signal.SIGKILL)
    house.start()
    assert house.ended(name)["status"]["phase"] == "Cancelled"
    assert processes_of(job["id"]) == []


def test_the_folder_of_a_running_job_is_removed(house: House) -> None:
    name = house.run(["sleep", "2"], grace_period="1s")
    job = house.reach(name, "Running")
    shutil.rmtree(Path(house.data_dir) / "jobs" / job["id"])
    status = house.ended(name)["status"]
    assert status["phase"] in ("Succeeded", "Failed")
    assert house.ended(house.run(["true"]))["status"]["phase"] == "Succeeded"


def test_a_clock_that_steps_back_an_hour(house: House) -> None:
    """The server of the past continues a ledger of the future: intervals are not negative, order and chain hold."""
    name = house.run(["sleep", "1.5"], resources={"cpus": 0.1})
    house.reach(name, "Running")
    house.end(signal.SIGKILL)
    code = (
        "import time; real = time.time; time.time = lambda: real() - 3600\n"
        "import sys; from penstock.app import main; sys.exit(main(sys.argv[1:]))"
    )
    (Path(house.data_dir) / "server.json").unlink()
    with open(Path(house.data_dir) / "server.log", "ab") as log:
        house.process = subprocess.Popen(
            [sys.executable, "-c", code, "up", "--data-dir", house.data_dir, "--port", "0"], stdout=log, stderr=log
        )
    until((Path(house.data_dir) / "server.json").exists, "it does not start")
    house._client = None
    assert house.ended(name)["status"]["phase"] == "Succeeded"
    later = house.run(["true"])
    assert house.ended(later)["status"]["phase"] == "Succeeded"
    assert house.get("audit/verify")["ok"]
    assert house.get("cost/report?by=job")["total"] >= 0
    for row in house.get("cost/report?by=job")["items"]:
        assert row["amount"] >= 0


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-small-", dir="/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def _submit_many(house: House, count: int) -> None:
    for _ in range(count):
        house.run(["true"])


@pytest.mark.real
@pytest.mark.needs("root")
def test_a_full_disk(small_disk: Path) -> None:
    """Told clearly, survived, and over when space returns; the job that ended meanwhile has its exit status."""
    with House(data_dir=str(small_disk / "d")) as house:
        waiting = house.run(["sh", "-c", "sleep 3; exit 6"], resources={"cpus": 0.1})
        house.reach(waiting, "Running")
        ballast = small_disk / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            for piece in (65536, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * piece)
        with pytest.raises(OutOfSpace, match=r"space|full"):
            _submit_many(house, 200)
        assert house.get("version")
        assert house.phase(waiting) in ("Running", "Failed")
        ballast.unlink()
        assert house.ended(waiting)["status"]["exit_code"] == 6
        assert house.ended(house.run(["true"]))["status"]["phase"] == "Succeeded"
        assert house.get("audit/verify")["ok"]


@pytest.mark.real
@pytest.mark.needs("root")
def test_a_job_that_fills_the_disk_with_its_log(small_disk: Path) -> None:
    with House(data_dir=str(small_disk / "d")) as house:
        name = house.run(["sh", "-c", "yes 0123456789012345678901234567890123456789 | head -c 60000000; exit 2"])
        assert house.ended(name, 120)["status"]["exit_code"] == 2
        assert house.get("version")


def test_a_lost_token_is_made_anew(house: House) -> None:
    old = house.token
    house.end()
    (Path(house.data_dir) / "token").unlink()
    house.start("--reset-token")
    assert house.token != old
    assert house.get("whoami")["user"] == "admin"
    with pytest.raises(Unauthenticated):
        Client(url=house.url, token=old).whoami()


def test_nothing_in_the_data_folder_is_for_others_to_read(house: House) -> None:
    house.ended(house.run(["true"]))
    for name in ("penstock.db", "penstock.db-wal", "token"):
        assert (Path(house.data_dir) / name).stat().st_mode & 0o077 == 0, name


def test_a_supervisor_that_cannot_begin_is_not_tried_for_ever() -> None:
    """A broken installation: the job fails with the supervisor's own last words instead of waiting in Starting."""
    code = (
        "from penstock.engines.local import cgroups\n"
        "def broken(*a, **k): raise RuntimeError('no such luck')\n"
        "cgroups.Cage.create = broken\n"
        "import sys; from penstock.app import main; sys.exit(main(sys.argv[1:]))"
    )
    with House() as house:
        house.end()
        with open(Path(house.data_dir) / "server.log", "ab") as log:
            words = [sys.executable, "-c", code, "up", "--data-dir", house.data_dir, "--port", "0"]
            house.process = subprocess.Popen(words, stdout=log, stderr=log)
        until((Path(house.data_dir) / "server.json").exists, "it does not start")
        house._client = None
        status = house.ended(house.run(["true"]))["status"]
        assert status["reason"] == "LaunchFailed"
        assert "died 3 times before it could begin: RuntimeError: no such luck" in status["message"]
