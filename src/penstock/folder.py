"""The server's data folder: made, closed to others, held by one server at a time, and where its address is told."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from pathlib import Path
from typing import IO

from penstock.base.errors import Conflict, InvalidInput, Unavailable
from penstock.base.settings import Settings
from penstock.base.version import VERSION

SERVER_FILE = "server.json"


def prepare(settings: Settings, *, as_root: bool) -> None:
    """Make the data folder. Root's is passable (0711), so that a job's user reaches its own work folder and nothing else."""
    mode = 0o711 if as_root else 0o700
    try:
        for part in ("", "jobs", "snapshots"):
            path = os.path.join(settings.data_dir, part) if part else settings.data_dir
            os.makedirs(path, exist_ok=True)
            os.chmod(path, 0o700 if part == "snapshots" else mode)
    except OSError as error:
        raise Unavailable(
            f"the data folder {settings.data_dir} cannot be used: {error.strerror}",
            hint="Give another with --data-dir or PENSTOCK_DATA_DIR.",
        ) from error
    if as_root:
        closed = closed_ancestor(settings.data_dir)
        if closed is not None:
            raise InvalidInput(
                f"started by root, jobs run as another user, who cannot pass {closed} to the data folder",
                hint="Choose a data folder that others can pass, such as /var/lib/penstock, with --data-dir.",
            )


def closed_ancestor(path: str) -> str | None:
    """The first folder above ``path`` that others may not pass."""
    parent = os.path.dirname(os.path.abspath(path))
    while True:
        if not os.stat(parent).st_mode & 0o001:
            return parent
        if parent == os.path.dirname(parent):
            return None
        parent = os.path.dirname(parent)


def close_to_others(data_dir: str) -> None:
    """Databases made by a server that did not look to its umask."""
    for name in os.listdir(data_dir):
        if name.startswith("penstock.db"):
            os.chmod(os.path.join(data_dir, name), 0o600)


def hold(data_dir: str) -> IO[str]:
    """Lock the data folder for this process's life. Raises Conflict that says who holds it."""
    path = os.path.join(data_dir, "lock")
    file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held open on purpose
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        who = holder(data_dir)
        raise Conflict(
            f"the data folder {data_dir} is held by {who}",
            hint="Use that server, stop it first, or give this one another folder with --data-dir.",
        ) from error
    file.seek(0)
    file.truncate()
    json.dump({"pid": os.getpid()}, file)
    file.flush()
    return file


def holder(data_dir: str) -> str:
    """Who holds the folder, in words."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        found = json.loads(Path(data_dir, SERVER_FILE).read_text())
        return f"the Penstock server with pid {found['pid']}, listening at {found['url']}"
    with contextlib.suppress(OSError, ValueError, KeyError):
        pid = json.loads(Path(data_dir, "lock").read_text())["pid"]
        return f"a Penstock server with pid {pid} that is starting or stopping"
    return "another Penstock server"


def write_server_file(data_dir: str, url: str, tls_cert: str | None) -> None:
    """What the local CLI reads to find this server; replaced in one step."""
    with tempfile.NamedTemporaryFile("w", dir=data_dir, prefix=".server-", delete=False, encoding="utf-8") as file:
        json.dump({"url": url, "pid": os.getpid(), "version": VERSION, "ca": tls_cert}, file)
    os.chmod(file.name, 0o644)
    os.replace(file.name, os.path.join(data_dir, SERVER_FILE))
