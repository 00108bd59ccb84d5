"""An SSH server of the tests' own: its keys, its settings, a free port on loopback; ended by its process id."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import free_ports, until

_SETTINGS = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
PidFile {folder}/pid
AuthorizedKeysFile {folder}/authorized
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
X11Forwarding no
PrintMotd no
MaxSessions 10
MaxStartups 100
"""
_CLIENT = """\
IdentityFile {folder}/key
IdentitiesOnly yes
UserKnownHostsFile {folder}/known
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking yes
"""


@dataclass
class Sshd:
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> str:
        """For ``ssh -F``."""
        return str(self.folder / "config")

    def target(self, user: str = "root") -> str:
        return f"{user}@127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(self.folder / "sshd_config")]
        with open(self.folder / "sshd.log", "ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self._answers, "sshd", timeout=60)

    def stop(self) -> None:
        """The listener, and every connection that it serves."""
        if self.process is not None:
            for pid in self.connections():
                _end(pid)
            self.process.terminate()
            self.process.wait(10)
            self.process = None

    def connections(self) -> list[int]:
        """Processes that serve one connection each."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(word) for word in children.read_text().split()]

    def drop(self) -> None:
        """Cut all connections, as a network does that fails."""
        for pid in self.connections():
            _end(pid)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as link:
                return link.recv(4) == b"SSH-"
        except OSError:
            return False


def _end(pid: int) -> None:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if Path(f"/proc/{pid}").exists() else []:
        _end_one(int(child))
    _end_one(pid)


def _end_one(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@contextmanager
def sshd() -> Iterator[Sshd]:
    """Answers to whoever has ``folder/key``, as any Unix user that has a shell."""
    folder = Path(tempfile.mkdtemp(prefix="psshd-"))
    folder.chmod(0o755)
    [port] = free_ports(1)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it, and empty
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "authorized").write_text((folder / "key.pub").read_text())
    kind, key, *_ = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    (folder / "sshd_config").write_text(_SETTINGS.format(port=port, folder=folder))
    (folder / "config").write_text(_CLIENT.format(folder=folder))
    server = Sshd(folder, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def eventually(what: object, deadline_s: float = 60.0) -> None:
    """Wait until the call ``what`` is true."""
    assert callable(what)
    end = asyncio.get_running_loop().time() + deadline_s
    while not what():
        assert asyncio.get_running_loop().time() < end, "it did not happen in time"
        await asyncio.sleep(0.02)
