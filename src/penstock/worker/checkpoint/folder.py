"""A job's folder of checkpoints: names, the lock, the commit, what a dead owner left.

A checkpoint is a folder ``<step>-<id>``, renamed from ``.tmp-<id>`` once all of it is on the disk: what has its name
is whole. An id is unique, and later ids sort behind earlier ones. One owner (rank 0) holds the lock, and may therefore
clear away what earlier owners left unfinished.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from penstock.worker.checkpoint.errors import Damaged, FolderInUse
from penstock.worker.checkpoint.manifest import NAME, Manifest
from penstock.worker.checkpoint.reading import manifest_of
from penstock.worker.checkpoint.writing import sync_folder

SAVE_NOW: Final = "save-now"  # a file of this name asks the job to save
_LOCK: Final = ".lock"
_NAME: Final = re.compile(r"(\d+)-([0-9a-f]{12}-[0-9a-f]{6}-[0-9a-f]{6})")
_held: Final[dict[str, int]] = {}  # a record lock does not keep out its own process; this does


@dataclass(frozen=True, slots=True)
class Entry:
    """A committed checkpoint's folder, before anything in it was read."""

    path: str
    step: int
    id: str


def entries(directory: str) -> list[Entry]:
    """Committed checkpoints, oldest first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = [(match, name) for name in names if (match := _NAME.fullmatch(name))]
    made = [Entry(os.path.join(directory, name), int(match[1]), match[2]) for match, name in found]
    return sorted(made, key=lambda entry: entry.id)


def entry_of(path: str) -> Entry | None:
    """The checkpoint that ``path`` itself is, by its name."""
    match = _NAME.fullmatch(os.path.basename(os.path.normpath(path)))
    return Entry(path, int(match[1]), match[2]) if match else None


def checked_manifest(entry: Entry) -> Manifest:
    """The manifest, which must be the one of this folder: a copied or renamed one is stale. Raises Damaged."""
    manifest = manifest_of(entry.path)
    if (manifest.id, manifest.step) != (entry.id, entry.step):
        raise Damaged(f"{os.path.join(entry.path, NAME)} is of {manifest.step}-{manifest.id}, another checkpoint")
    return manifest


def new_series(there: Iterable[Entry]) -> str:
    """The beginning of every id of this run, behind those of all earlier runs, whatever the clock says."""
    now = int(time.time() * 1000)
    before = max((int(entry.id[:12], 16) for entry in there), default=0)
    return f"{max(now, before + 1):012x}-{secrets.token_hex(3)}"


def save_id(series: str, number: int) -> str:
    return f"{series[:12]}-{number:06x}-{series[13:]}"


def temporary(directory: str, series_id: str) -> str:
    return os.path.join(directory, f".tmp-{series_id}")


def commit(directory: str, folder: str, step: int, series_id: str) -> str:
    """Give a finished folder its name; from here on it is a checkpoint. Answers its path."""
    sync_folder(folder)
    target = os.path.join(directory, f"{step}-{series_id}")
    os.rename(folder, target)
    sync_folder(directory)
    return target


def remove(path: str) -> None:
    """Take a checkpoint away: its name goes at once, its bytes after that."""
    folder, name = os.path.split(path)
    hidden = os.path.join(folder, f".del-{name}")
    os.rename(path, hidden)
    sync_folder(folder)
    shutil.rmtree(hidden, ignore_errors=True)


def clear(directory: str, series: str) -> list[str]:
    """Remove what owners before this one left unfinished. Only the lock's holder may call it. Answers the names."""
    own = f".tmp-{series[:12]}-"
    left = [n for n in os.listdir(directory) if n.startswith((".tmp-", ".del-")) and not n.startswith(own)]
    for name in left:
        shutil.rmtree(os.path.join(directory, name), ignore_errors=True)
    return left


class Lock:
    """That this process alone saves here. It ends with the process, however that ends.

    A record lock: unlike flock's, child processes (data loaders) do not inherit it, so that none outlives its owner.
    """

    def __init__(self, directory: str, owner: Mapping[str, Any], patience: float = 10.0) -> None:
        self.path = os.path.realpath(os.path.join(directory, _LOCK))
        self._patience = patience
        self._owner = {**owner, "host": socket.gethostname(), "pid": os.getpid()}
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        return self._fd is not None

    def take(self) -> None:
        """Raises FolderInUse, naming the owner, or OSError where nothing can be written."""
        if _held.get(self.path) == os.getpid():
            raise FolderInUse(f"{os.path.dirname(self.path)} is already in use in this process")
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        until = time.monotonic() + self._patience
        while True:
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in {errno.EACCES, errno.EAGAIN}:
                    os.close(fd)
                    raise
            if time.monotonic() >= until:
                owner = self._told(fd)
                os.close(fd)
                raise FolderInUse(f"{os.path.dirname(self.path)} is in use by {owner}")
            time.sleep(0.05)
        body = json.dumps(self._owner).encode()
        os.pwrite(fd, body, 0)
        os.ftruncate(fd, len(body))
        self._fd = fd
        _held[self.path] = os.getpid()

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            _held.pop(self.path, None)

    @staticmethod
    def _told(fd: int) -> str:
        try:
            owner = json.loads(os.pread(fd, 4096, 0))
            who = f"job {owner['job']}" if owner.get("job") else "a process outside any job"
            return f"{who} (process {owner['pid']} on {owner['host']})"
        except (ValueError, KeyError, TypeError):
            return "another process"
