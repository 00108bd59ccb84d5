"""Processes as /proc shows them: who they are, whose descendants, and how to end them all."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
from collections.abc import Iterable

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


@functools.cache
def boot_id() -> str:
    """Changes with every boot: a pid and a start time mean something only together with it."""
    fd = os.open(_BOOT_ID, os.O_RDONLY)
    try:
        return os.read(fd, 64).decode().strip()
    finally:
        os.close(fd)


def _stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from the third ("state") on; the name before them may hold anything."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
        try:
            return os.read(fd, 2048).rpartition(b") ")[2].split()
        finally:
            os.close(fd)
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_time(pid: int) -> int | None:
    """Clock ticks after boot (proc_pid_stat(5), field 22); None when there is no such process, zombies included."""
    fields = _stat(pid)
    return None if not fields or fields[0] in b"ZX" else int(fields[19])


def cpu_ticks(pids: Iterable[int]) -> int:
    """User and system time of these processes in clock ticks (fields 14 and 15), with their reaped children's."""
    return sum(sum(map(int, fields[11:15])) for pid in pids if (fields := _stat(pid)))


def session_of(pid: int) -> int | None:
    fields = _stat(pid)
    return int(fields[3]) if fields else None


def children(pid: int) -> list[int]:
    """Children of every thread of ``pid``; from the parents' table where the kernel keeps no list."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
    except FileNotFoundError:
        if os.path.exists("/proc/self/task") and not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            return [other for other in _all_pids() if (fields := _stat(other)) and int(fields[1]) == pid]
    except ProcessLookupError:
        pass
    return found


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(pid: int, spare: Iterable[int] = ()) -> list[int]:
    """Everything below ``pid`` but ``spare`` and what is below them; parents before children."""
    spared = set(spare)
    found: list[int] = []
    queue = [pid]
    while queue:
        for child in children(queue.pop()):
            if child not in spared:
                spared.add(child)
                found.append(child)
                queue.append(child)
    return found


def send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def kill_below(pid: int, spare: Iterable[int] = ()) -> bool:
    """One round of ending all descendants: stopped first so that none can fork away, then killed. True if any was there.

    A caller that is a subreaper repeats it, reaping in between, until it answers False.
    """
    seen: set[int] = set()
    for _ in range(64):
        new = [found for found in descendants(pid, spare) if found not in seen]
        if not new:
            break
        send(new, signal.SIGSTOP)
        seen.update(new)
    send(seen, signal.SIGKILL)
    return bool(seen)


def threads_of_user(uid: int) -> int:
    """How many threads this user's processes have: what RLIMIT_NPROC counts."""
    count = 0
    for pid in _all_pids():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == uid and (fields := _stat(pid)):
                count += int(fields[17])
    return count


def marked(attempt_id: str) -> list[int]:
    """Processes whose environment names this attempt: the last resort for what a dead supervisor left behind."""
    mark = b"PENSTOCK_ATTEMPT_ID=" + attempt_id.encode()
    found = []
    for pid in _all_pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    found.append(pid)
        except OSError:
            continue
    return found


def listeners(port: int) -> set[int]:
    """Socket inodes that listen on TCP ``port`` here (proc_net_tcp: state 0A is LISTEN)."""
    wanted = f"{port:04X}"
    inodes: set[int] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as file:
                rows = file.readlines()[1:]
        except FileNotFoundError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == "0A" and fields[1].rpartition(":")[2] == wanted:
                inodes.add(int(fields[9]))
    return inodes


def owns_socket(pids: Iterable[int], inodes: set[int]) -> bool:
    """Whether one of ``pids`` holds one of these sockets open."""
    links = {f"socket:[{inode}]" for inode in inodes}
    for pid in pids:
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") in links:
                        return True
        except OSError:
            continue
    return False
