"""Backup and restore while running, another version's server, sessions, users of two projects."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.base.errors import Forbidden, NotFound
from penstock.client.client import Client
from tests.system.house import PENSTOCK, House, processes_of, until


@pytest.fixture
def house() -> Iterator[House]:
    with House("--local-nodes", "2") as one:
        yield one


def test_backup_and_restore_while_jobs_run(house: House, tmp_path: Path) -> None:
    """What ran at the backup and ended since is known as ended; what began since is ended as an orphan."""
    before = house.run(["sh", "-c", "sleep 2; exit 4"], resources={"cpus": 0.1}, name="before")
    house.reach(before, "Running")
    house.cli("backup", str(tmp_path / "b.zip"))
    assert house.ended(before)["status"]["exit_code"] == 4
    since = house.run(["sleep", "100"], resources={"cpus": 0.1}, name="since", grace_period="1s")
    job = house.reach(since, "Running")
    house.cli("restore", str(tmp_path / "b.zip"))
    assert house.ended(before)["status"]["exit_code"] == 4
    with pytest.raises(NotFound):
        house.job(since)
    until(lambda: processes_of(job["id"]) == [], "the orphan lives on")
    assert house.ended(house.run(["true"]))["status"]["phase"] == "Succeeded"
    assert house.get("audit/verify")["ok"]
    reasons = [e["reason"] for e in house.get("events?newest=true&limit=50")["items"]]
    assert "BackupRestored" in reasons
    assert "OrphanEnded" in reasons


def test_a_damaged_backup_changes_nothing(house: House, tmp_path: Path) -> None:
    name = house.run(["true"])
    house.ended(name)
    house.cli("backup", str(tmp_path / "b.zip"))
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        entry = archive.getinfo("tables/jobs.jsonl")
    data = bytearray((tmp_path / "b.zip").read_bytes())
    data[entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2] ^= (
        1  # in the packed rows themselves
    )
    (tmp_path / "b.zip").write_bytes(data)
    assert house.cli("restore", str(tmp_path / "b.zip"), code=None).returncode != 0
    assert house.phase(name) == "Succeeded"


def test_a_newer_version_finds_the_jobs_of_an_older_one(house: House) -> None:
    name = house.run(["sh", "-c", "sleep 3; exit 9"], resources={"cpus": 0.1})
    house.reach(name, "Running")
    house.end()
    code = (
        "import penstock.base.version as v; v.VERSION = '9.9.9'\n"
        "import sys; from penstock.app import main; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "up", "--data-dir", house.data_dir, "--port", "0", "--local-nodes", "2"]
    with open(Path(house.data_dir) / "server.log", "ab") as log:
        house.process = subprocess.Popen(words, stdout=log, stderr=log)
    until((Path(house.data_dir) / "server.json").exists, "it does not start")
    house._client = None
    assert house.get("version")["version"] == "9.9.9"
    assert house.ended(name)["status"]["exit_code"] == 9


def test_a_terminal_inside_a_job(house: House) -> None:
    name = house.run(["sleep", "100"], env={"MARK": "inside"}, grace_period="1s", resources={"memory": "512Mi"})
    house.reach(name, "Running")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(PENSTOCK, [PENSTOCK, "--data-dir", house.data_dir, "shell", name])
    seen = b""
    os.write(terminal, b"echo mark=$MARK tty=$(tty)\n")
    deadline = time.monotonic() + 30
    while b"mark=inside tty=/dev/pts/" not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 4096)
    os.write(terminal, b"exit 3\n")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 3
    reasons = house.reasons(name)
    assert "SessionOpened" in reasons
    house.client.jobs.cancel(name)
    house.ended(name)


def test_a_port_of_a_job_and_no_other(house: House) -> None:
    """A web server inside a job is reached; a port of somebody else on the same machine is not."""
    serve = (
        "import http.server, sys\n"
        "s = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n"
        "print(s.server_port, flush=True); s.serve_forever()"
    )
    name = house.run(["python3", "-c", serve], grace_period="1s")
    house.reach(name, "Running")
    port = until(lambda: house.logs(name).partition("\n")[0], "no port is told")
    words = [PENSTOCK, "--data-dir", house.data_dir, "port-forward", name, f":{port}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as forward:
        try:
            assert forward.stdout is not None
            line = forward.stdout.readline()
            local = int(line.split("127.0.0.1:")[1].split()[0].strip(" ,;"))
            page = subprocess.run(
                ["curl", "-s", "-m", "10", f"http://127.0.0.1:{local}/"], capture_output=True, text=True, check=False
            )
            assert "Directory listing" in page.stdout, (line, page)
        finally:
            forward.terminate()
    house.client.jobs.cancel(name)
    house.ended(name)


def test_two_projects_do_not_see_each_other(house: House) -> None:
    for name in ("red", "blue"):
        house.cli("project", "create", name)
        house.cli("user", "create", f"{name}-member")
        house.cli("project", "grant", name, f"{name}-member", "member")
    made = json.loads(house.cli("token", "create", "--user", "red-member", "-o", "json").stdout)
    secret = made.get("secret") or made.get("token")
    with Client(url=house.url, token=secret, project="red") as red:
        job = red.jobs.run(["true"], snapshot=False, name="mine")
        assert job.name == "mine"
        with pytest.raises(NotFound):
            Client(url=house.url, token=secret, project="blue").jobs.get("any")
        with pytest.raises((Forbidden, NotFound)):
            Client(url=house.url, token=secret, project="blue").jobs.run(["true"], snapshot=False)
        with pytest.raises(Forbidden):
            red.nodes.cordon("node-0")
        assert {j.project for j in red.jobs.list()} <= {"red"}


def test_rooms_that_are_loaded_late_are_there_for_who_asks(house: House) -> None:
    """A start does without them; the first request for one finds it, and the document describes them all."""
    code = "import sys, penstock.server; print(*(n for n in sys.modules if n.startswith(('penstock.capacity', 'penstock.engines.simulated'))))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
    assert house.client.bill()["items"] is not None
    paths = house.client.openapi()["paths"]
    assert {"/api/v1/jobs", "/api/v1/cost/bill", "/api/v1/capacity/replays"} <= paths.keys()
