"""A private PostgreSQL cluster from Debian's package, for tests: its own data folder, Unix socket only, any number of databases."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

_INSTALLED = Path("/usr/lib/postgresql")


def programs() -> Path | None:
    """The newest installed version's programs, None when Debian's `postgresql` package is missing."""
    found = sorted(_INSTALLED.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


class Cluster:
    """Started by ``start``; ``stop(immediate=True)`` is a crash; the folder is removed by ``remove``."""

    def __init__(self, options: tuple[str, ...] = ("fsync=off",)) -> None:
        bin_dir = programs()
        assert bin_dir is not None, "install Debian's package postgresql (make test-deps)"
        self._bin = bin_dir
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-pg-", dir="/tmp"))
        self._data = self.folder / "data"
        self._as = _unprivileged(self.folder)
        self._options = (f"unix_socket_directories={self.folder}", "listen_addresses=", *options)
        self._run("initdb", "-D", str(self._data), "-A", "trust", "-U", "penstock", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        settings = " ".join(f"-c {option}" for option in self._options)
        self._run("pg_ctl", "-D", str(self._data), "-w", "-o", settings, "-l", str(self.folder / "log"), "start")

    def stop(self, *, immediate: bool = False) -> None:
        mode = "immediate" if immediate else "fast"
        self._run("pg_ctl", "-D", str(self._data), "-w", "-m", mode, "stop")

    def remove(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop(immediate=True)
        shutil.rmtree(self.folder)

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self._run("createdb", "-h", str(self.folder), "-U", "penstock", name)
        return f"postgresql+psycopg://penstock@/{name}?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as, str(self._bin / program), *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd="/")
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"


def _unprivileged(folder: Path) -> list[str]:
    """PostgreSQL refuses to run as root: the words that run it as its own user instead."""
    if os.geteuid() != 0:
        return []
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
