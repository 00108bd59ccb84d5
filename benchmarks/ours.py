"""A Penstock server of our own for a benchmark: started like a user starts it, and ended whatever happens."""

from __future__ import annotations

import http.client
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.measure import CpuAccount, descendants, until
from penstock.client.client import Client

PENSTOCK = str(Path(sys.executable).parent / "penstock")
READY_WITHIN_S = 30.0


@dataclass
class Server:
    """A running server. ``ready_s``: wall seconds from its start to the first answer of /healthz."""

    process: subprocess.Popen[bytes]
    folder: Path
    account: CpuAccount
    ready_s: float

    @property
    def environment(self) -> dict[str, str]:
        return environment(self.folder)

    def client(self) -> Client:
        return Client(data_dir=str(self.folder))

    def lean(self) -> list[int]:
        """The server's and the spawner's pids: what stays when no job runs."""
        return [pid for pid in descendants(self.process.pid) if parent(pid) in {self.process.pid, os.getpid()}]

    def log(self) -> str:
        return (self.folder.parent / "server.log").read_text(errors="replace")[-2000:]


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def environment(folder: Path) -> dict[str, str]:
    """What a command that talks to the server in ``folder`` is started with: nothing of this shell's Penstock."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")}
    kept.pop("VIRTUAL_ENV", None)
    return {**kept, "PENSTOCK_DATA_DIR": str(folder), "NO_COLOR": "1"}


def healthy(folder: Path) -> bool:
    """Whether the server that ``folder`` names answers."""
    try:
        url = urlsplit(json.loads((folder / "server.json").read_text())["url"])
        connection = http.client.HTTPConnection(url.hostname or "127.0.0.1", url.port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        finally:
            connection.close()
    except (OSError, ValueError, KeyError):
        return False


@contextmanager
def server(name: str, *arguments: str) -> Iterator[Server]:
    """``penstock up`` on a free port and a new data folder; its CPU, and all its children's, in an account."""
    top = Path(tempfile.mkdtemp(prefix=f"penstock-bench-{name}-"))
    os.chmod(top, 0o755)  # jobs of a root server run as another user, who passes through here
    account = CpuAccount(name)
    process = None
    try:
        process, ready_s = start(top, account, *arguments)
        yield Server(process, top / "data", account, ready_s)
    finally:
        if process is not None:
            stop(process)
        account.close()
        shutil.rmtree(top, ignore_errors=True)


def start(top: Path, account: CpuAccount, *arguments: str) -> tuple[subprocess.Popen[bytes], float]:
    """Start a server over ``top``/data, and wait until it is ready. RuntimeError with its log when it is not."""
    folder = top / "data"
    folder.mkdir(exist_ok=True)
    command = [PENSTOCK, "up", "--data-dir", str(folder), "--port", "0", *arguments]
    with open(top / "server.log", "ab") as output:
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=account.enter,  # noqa: PLW1509 - no threads run yet, and no fork may escape the account
        )

    def ready_or_dead() -> bool:
        return process.poll() is not None or healthy(folder)

    until(ready_or_dead, "penstock up", timeout=READY_WITHIN_S, every=0.002)
    if process.poll() is not None:
        log = (top / "server.log").read_text(errors="replace")[-800:]
        raise RuntimeError(f"penstock up ended with {process.returncode}: {log}")
    return process, time.monotonic() - began


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL for one that does not go. Its jobs are ours too: they are ended with it."""
    pids = [pid for pid in descendants(process.pid) if pid != process.pid]
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    for pid in pids:
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            continue


def cpu_of(command: list[str], env: Mapping[str, str]) -> float:
    """CPU seconds (user and system) of one command and its children, from start to end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[:300]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
