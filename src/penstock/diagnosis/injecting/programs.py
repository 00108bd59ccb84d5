"""Small programs that a fault needs beside the job: burners, hogs, bulk traffic. Each is noted, and ended with the injection."""

from __future__ import annotations

import glob
import os
import subprocess
import sys

from penstock.base.errors import Unavailable
from penstock.diagnosis.injecting.notes import Note
from penstock.engines.local import procs

_PATIENCE_S = 10.0


def start(note: Note, words: list[str], *, ready: bool = False) -> int:
    """Start a program and note it; ``ready``: wait until it has written a line. Answers its pid."""
    child = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if ready else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    note.will("end", child.pid, procs.start_time(child.pid) or 0)
    _CHILDREN.append(child)
    if ready and child.stdout is not None:
        with child.stdout as out:
            if not out.readline():
                raise Unavailable(f"{words[0]} ended at once")
    return child.pid


_CHILDREN: list[subprocess.Popen[bytes]] = []  # waited for as they end, so that none stays a zombie


def reap() -> None:
    """Collect those that have ended."""
    _CHILDREN[:] = [child for child in _CHILDREN if child.poll() is None]


def python_words(text: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", text, *words)


def file_words(path: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-S", path, *words)


def python(note: Note, text: str, *words: str, ready: bool = False) -> int:
    return start(note, list(python_words(text, *words)), ready=ready)


def run(*words: str) -> str:
    """A command that must succeed."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except FileNotFoundError:
        raise Unavailable(f"the program {words[0]} is not installed here") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def in_network(pid: int, *words: str) -> tuple[str, ...]:
    """A command inside a process's network namespace. Not by ``ip netns exec``, which hides the control groups.

    By the namespace's own name where it has one: it outlives the process then, and what was set in it too.
    """
    ours = os.stat(f"/proc/{pid}/ns/net").st_ino
    named = (path for path in glob.glob("/run/netns/*") if os.stat(path).st_ino == ours)
    return ("nsenter", f"--net={next(named, f'/proc/{pid}/ns/net')}", *words)


def own_network(pid: int) -> bool:
    """Whether a process has a network namespace that is not ours."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino
