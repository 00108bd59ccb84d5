"""What an injection has changed and how that is put back: written down before it is done, so that whoever comes after a crash
can undo it (``penstock inject --undo``).

One file for each injection, ``ROOT/ID.json``. A step that was written down but not done is undone all the same: every
step may be undone twice, and may be undone when its object is gone.
"""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from penstock.engines.local import folder, procs

ROOT: Final = Path("/run/penstock-inject")
_PATIENCE_S: Final = 10.0  # for one command, and for a group to become empty


class Note:
    """An injection's list of what must be undone, in the order in which it was done."""

    def __init__(self, path: Path, said: dict[str, Any]) -> None:
        self.path = path
        self.said = said

    @classmethod
    def new(cls, fault: str, job: str, root: Path = ROOT) -> Note:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = {"pid": os.getpid(), "start": procs.start_time(os.getpid()), "boot": procs.boot_id()}
        said = {"fault": fault, "job": job, "began": time.time(), "by": ours, "undo": []}
        return cls(root / f"{fault}-{secrets.token_hex(4)}.json", said)

    @property
    def id(self) -> str:
        return self.path.stem

    def will(self, step: str, *words: Any) -> None:
        """Write down, durably, how to undo what is about to be done: a step's name (``_STEPS``) and its arguments."""
        self.said["undo"].append([step, *words])
        folder.write_json(str(self.path), self.said, durable=True)

    def undo(self) -> list[str]:
        """Put everything back, last first. Answers what could not be; the note stays then, for another try."""
        left: list[list[Any]] = []
        failures: list[str] = []
        booted = self.said["by"]["boot"] != procs.boot_id()
        for step in reversed(self.said["undo"]):
            if booted and step[0] not in _OUTLIVES:
                continue
            try:
                _STEPS[step[0]](*step[1:])
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                failures.append(f"{step[0]} {' '.join(map(str, step[1:]))}: {error}")
                left.insert(0, step)
        if left:
            self.said["undo"] = left
            folder.write_json(str(self.path), self.said, durable=True)
        else:
            self.path.unlink(missing_ok=True)
        return failures

    @property
    def ours(self) -> bool:
        """Whether this process made it."""
        return bool(self.said["by"]["pid"] == os.getpid() and not self.abandoned)

    @property
    def abandoned(self) -> bool:
        """Whether who made it is gone: nobody will undo it by himself."""
        by = self.said["by"]
        return bool(by["boot"] != procs.boot_id() or procs.start_time(by["pid"]) != by["start"])


def all_notes(root: Path = ROOT) -> list[Note]:
    found = []
    for path in sorted(root.glob("*.json")) if root.is_dir() else ():
        said = folder.read_json(str(path))
        if said is not None:
            found.append(Note(path, said))
    return found


# -- the steps ---------------------------------------------------------------------------------------


def _command(*words: str) -> None:
    """A command that takes away what may be gone already: only that it cannot be run at all is an error."""
    subprocess.run(words, capture_output=True, timeout=_PATIENCE_S, check=False)


def _write(path: str, text: str) -> None:
    with contextlib.suppress(FileNotFoundError), open(path, "w", encoding="ascii") as file:
        file.write(text)


def _end(pid: int, start: int) -> None:
    _signal(pid, start, signal.SIGKILL)
    deadline = time.monotonic() + _PATIENCE_S
    while procs.start_time(pid) == start and time.monotonic() < deadline:
        time.sleep(0.01)


def _continue(pid: int, start: int) -> None:
    _signal(pid, start, signal.SIGCONT)


def _signal(pid: int, start: int, number: int) -> None:
    if procs.start_time(pid) == start:
        procs.send([pid], number)


def _affinity(pid: int, start: int, cpus: list[int]) -> None:
    for thread in threads(pid, start):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cpus)


def _limit(pid: int, start: int, soft: int, hard: int) -> None:
    if procs.start_time(pid) == start:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def _ungroup(group: str, parent: str) -> None:
    """Move who is in a group of ours back to where he was, and take the group away."""
    deadline = time.monotonic() + _PATIENCE_S
    while os.path.isdir(group):
        for pid in _members(group):
            with contextlib.suppress(OSError):  # it may be ending
                _write(f"{parent}/cgroup.procs", str(pid))
        try:
            os.rmdir(group)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _members(group: str) -> Iterator[int]:
    with contextlib.suppress(OSError), open(f"{group}/cgroup.procs", encoding="ascii") as file:
        yield from map(int, file.read().split())


def _unlink(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _restore(path: str, kept: str) -> None:
    """A file's first content, of which a copy was made."""
    if os.path.exists(kept):
        shutil.copyfile(kept, path)
        os.unlink(kept)


def _unhook(path: str, key: str) -> None:
    """Take one fault out of the file that a training reads; the file goes with the last."""
    write_hook(path, [each for each in read_hook(path) if each["key"] != key])


def read_hook(path: str) -> list[dict[str, Any]]:
    said = folder.read_json(path)
    return list(said["faults"]) if said else []


def write_hook(path: str, faults: list[dict[str, Any]]) -> None:
    if faults:
        folder.write_json(path, {"faults": faults})
        os.chmod(path, 0o644)  # the job's own user reads it
    else:
        Path(path).unlink(missing_ok=True)


def threads(pid: int, start: int | None = None) -> list[int]:
    """Of a process that is still the one which began at ``start``."""
    if start is not None and procs.start_time(pid) != start:
        return []
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


_STEPS: Final[dict[str, Callable[..., None]]] = {
    "command": _command,
    "write": _write,
    "end": _end,
    "continue": _continue,
    "affinity": _affinity,
    "limit": _limit,
    "ungroup": _ungroup,
    "unlink": _unlink,
    "restore": _restore,
    "unhook": _unhook,
}
_OUTLIVES: Final = frozenset({"unlink", "restore", "unhook"})  # a boot takes away all else


def undo_all(root: Path = ROOT) -> tuple[list[str], list[str]]:
    """Undo what injections whose maker is gone have left: their ids, and what could not be undone."""
    done, failures = [], []
    for note in all_notes(root):
        if note.abandoned:
            failed = note.undo()
            failures += failed
            done += [note.id] if not failed else []
    return done, failures
