"""The run folder, format 1: who may run an attempt, and what is written about it. Lean: shared by supervisor and server.

The claim has two locks on the door. ``mkdir`` lets one through in the common case; the ``flock`` on ``lock``, held for
life by whoever runs the attempt, together with the exclusive creation of ``launch.json`` decides the rest: user code
starts only after both, and a folder that died in between is moved away by whoever adopts it, under the same lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from typing import Any

from penstock.engines.local.kernel import write_all

FORMAT = 1
LOCK, LAUNCH, STARTED, EXIT = "lock", "launch.json", "started.json", "exit.json"
TRACEBACK = "supervisor.err"  # of a supervisor that died
EVENTS, PROGRESS, LOGS, IO, CONTROL = "events.jsonl", "progress.jsonl", "logs", "io", "control.sock"
WATCH = "watch"


def claim(run_dir: str) -> int | None:
    """Make the folder and take its lock: the lock's descriptor, or None when the attempt is another's.

    Raises OSError when the folder cannot be made (disk full, no rights): then nothing was claimed.
    """
    try:
        os.mkdir(run_dir, 0o711)
    except FileNotFoundError:
        _make_parents(os.path.dirname(run_dir))
        os.mkdir(run_dir, 0o711)
    except FileExistsError:
        return None
    lock = open_lock(run_dir, create=True)
    if lock is None or started_anything(run_dir):
        return None
    return lock


def _make_parents(path: str) -> None:
    """As os.makedirs, but every folder can be walked through (0711) by the users whose jobs lie below."""
    try:
        os.mkdir(path, 0o711)
    except FileNotFoundError:
        _make_parents(os.path.dirname(path))
        os.mkdir(path, 0o711)
    except FileExistsError:
        return


def open_lock(run_dir: str, *, create: bool = False) -> int | None:
    """Take the folder's lock without waiting; None when it is held, or when the folder was moved away meanwhile."""
    path = f"{run_dir}/{LOCK}"
    try:
        fd = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there, ours = os.stat(path), os.fstat(fd)
        if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def started_anything(run_dir: str) -> bool:
    return any(os.path.exists(f"{run_dir}/{name}") for name in (LAUNCH, STARTED, EXIT))


def ended(run_dir: str) -> bool:
    return os.path.exists(f"{run_dir}/{EXIT}")


def abandon(run_dir: str, lock: int) -> None:
    """Move a claimed folder in which nothing was started out of the way, holding its lock, and remove it.

    A supervisor that still has the old folder in mind then fails to lock it (``open_lock`` compares the inodes).
    """
    grave = f"{run_dir}.abandoned-{os.getpid()}-{time.monotonic_ns()}"
    os.rename(run_dir, grave)
    os.close(lock)
    for folder, folders, files in os.walk(grave, topdown=False):
        for name in files:
            os.unlink(f"{folder}/{name}")
        for name in folders:
            os.rmdir(f"{folder}/{name}")
    os.rmdir(grave)


def write_json(path: str, value: Any, *, durable: bool = False) -> None:
    """Replace ``path`` at once by this JSON; ``durable`` survives a power cut (fsync, rename, fsync of the folder)."""
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(fd, json.dumps(value, separators=(",", ":")).encode())
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    if durable:
        sync_folder(os.path.dirname(path) or ".")


def write_new_json(path: str, value: Any) -> None:
    """Make ``path`` with this JSON. A reader may find it empty, which ``read_json`` takes for "not there yet"."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        write_all(fd, json.dumps(value, separators=(",", ":")).encode())
    finally:
        os.close(fd)


def sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_exit(path: str, value: dict[str, Any]) -> None:
    """Write how it ended, for ever: on a full disk it waits for space (a second at most between tries), holding the lock."""
    pause = 0.05
    while True:
        try:
            write_json(path, value, durable=True)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENFILE, errno.EROFS):
                raise
            time.sleep(pause)
            pause = min(1.0, pause * 2)
        else:
            return


def read_json(path: str) -> dict[str, Any] | None:
    """The file's object; None when it is missing or empty (a power cut may leave that)."""
    with contextlib.suppress(FileNotFoundError, ValueError), open(path, "rb") as file:
        value = json.load(file)
        return value if isinstance(value, dict) else None
    return None
