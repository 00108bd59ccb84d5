"""A real ``penstock up`` in a process of its own, and what tests ask of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from penstock.client.client import Client

PENSTOCK = str(Path(sys.executable).with_name("penstock"))
PATIENCE_S = 60.0
FINAL = ("Succeeded", "Failed", "Cancelled")


def until(what: Callable[[], Any], why: str, patience_s: float = PATIENCE_S) -> Any:
    """Ask again until the answer is true; the answer. Fails with ``why``."""
    deadline = time.monotonic() + patience_s
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, why
        time.sleep(0.02)


class House:
    """A data folder that an unprivileged user can pass to, and the server on it, which may be killed and started again."""

    def __init__(self, *flags: str, data_dir: str | None = None, program: Sequence[str] = (PENSTOCK,)) -> None:
        self.flags, self.program = flags, tuple(program)
        self.data_dir = data_dir or tempfile.mkdtemp(prefix="penstock-test-", dir="/tmp")
        os.makedirs(self.data_dir, mode=0o755, exist_ok=True)
        self.process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.finish()

    def start(self, *flags: str) -> None:
        server_file = Path(self.data_dir) / "server.json"
        server_file.unlink(missing_ok=True)
        with open(Path(self.data_dir) / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [*self.program, "up", "--data-dir", self.data_dir, "--port", "0", *self.flags, *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(lambda: server_file.exists() or self.process is None or self.process.poll() is not None, self.log())
        assert server_file.exists(), self.log()
        self._client = None

    def log(self) -> str:
        with contextlib.suppress(OSError):
            return (Path(self.data_dir) / "server.log").read_text()[-5000:]
        return "no log"

    @property
    def url(self) -> str:
        return str(json.loads((Path(self.data_dir) / "server.json").read_text())["url"])

    @property
    def token(self) -> str:
        return (Path(self.data_dir) / "token").read_text().strip()

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(url=self.url, token=self.token)
        return self._client

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal the server and wait for its end."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.process = None
        return code

    def finish(self) -> None:
        """End every job, then the server, then the folder."""
        if self.process is None:
            self.start()
        with contextlib.suppress(Exception):
            for job in self.client.jobs.list(phase=["active"]):
                with contextlib.suppress(Exception):
                    self.client.jobs.cancel(job.name, project=job["project"])
            until(lambda: not list(self.client.jobs.list(phase=["active"], most=1)), "jobs do not end", 20)
        self.end()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def cli(self, *words: str, code: int | None = 0, **other: Any) -> subprocess.CompletedProcess[str]:
        """Run the command line against this house; ``code`` None takes any."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
        done = subprocess.run(
            [PENSTOCK, "--data-dir", self.data_dir, *words],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=environ,
            **other,
        )
        assert code is None or done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done

    def run(self, command: Sequence[str], **fields: Any) -> str:
        """Submit by the API; the job's name."""
        name = fields.pop("name", None)
        body: dict[str, Any] = {"spec": {"command": list(command), **fields}}
        if name:
            body["name"] = name
        answer = self.client.transport.request(
            "POST",
            "/api/v1/projects/default/jobs",
            body=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
            repeatable=False,
        )
        return str(answer.json()["name"])

    def get(self, path: str) -> Any:
        return self.client.transport.request("GET", f"/api/v1/{path}").json()

    def job(self, name: str) -> dict[str, Any]:
        return dict(self.get(f"projects/default/jobs/{name}"))

    def phase(self, name: str) -> str:
        return str(self.job(name)["status"]["phase"])

    def reach(self, name: str, *phases: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for one of the phases; the job."""
        deadline = time.monotonic() + patience_s
        while (job := self.job(name))["status"]["phase"] not in phases:
            assert time.monotonic() < deadline, (job["status"], self.log())
            assert job["status"]["phase"] not in FINAL, job["status"]
            time.sleep(0.02)
        return job

    def ended(self, name: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        return self.reach(name, *FINAL, patience_s=patience_s)

    def logs(self, name: str, **query: str) -> str:
        words = "&".join(f"{k}={v}" for k, v in query.items())
        answer = self.client.transport.request("GET", f"/api/v1/projects/default/jobs/{name}/logs?{words}")
        return bytes(answer.body).decode()

    def reasons(self, name: str) -> list[str]:
        return [e["reason"] for e in self.get(f"projects/default/jobs/{name}/events?limit=500")["items"]]


def processes_of(job_id: str) -> list[int]:
    """Live processes that carry the job's id in their environment."""
    found = []
    needle = f"PENSTOCK_JOB_ID={job_id}".encode()
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and needle in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found


@contextlib.contextmanager
def house(*flags: str) -> Iterator[House]:
    with House(*flags) as one:
        yield one
