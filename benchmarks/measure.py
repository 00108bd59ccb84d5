"""Measuring processes: CPU of a whole tree with all that it ever forked, PSS, resident memory, ports."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

_V1 = Path("/sys/fs/cgroup/cpuacct")
_V2 = Path("/sys/fs/cgroup")


class CpuAccount:
    """CPU seconds of processes and of all their descendants, dead ones and other sessions' included.

    A control group of our own is the only exact account (daemons' children are nobody's to wait for). Version 1's
    cpuacct or version 2, whichever this machine lets root make; elsewhere ``exact`` is False and the figure is the
    sum over living processes and their waited-for children, which undercounts short processes.
    """

    def __init__(self, name: str) -> None:
        self._folder = _make_group(f"penstock-bench-{name}-{os.getpid()}-{secrets.token_hex(3)}")
        self._pids: list[int] = []
        self.exact = self._folder is not None

    def adopt(self, pid: int) -> None:
        """Book ``pid`` here from now on, with everything that it forks later."""
        self._pids.append(pid)
        if self._folder is not None:
            (self._folder / "cgroup.procs").write_text(str(pid))

    def enter(self) -> None:
        """Book the calling process here: for the child, between fork and exec."""
        if self._folder is not None:
            (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def seconds(self) -> float:
        if self._folder is None:
            return sum(process_cpu(pid) for root in self._pids for pid in descendants(root))
        usage = self._folder / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        fields = dict(line.split() for line in (self._folder / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) / 1e6

    def close(self) -> None:
        """Remove the group once what was in it has died; after 10 s, what still lives goes back to the root group."""
        if self._folder is None:
            return
        with contextlib.suppress(RuntimeError):
            until(self._removed, "an empty control group", timeout=10, every=0.1)
            return
        root = _V1 if self._folder.is_relative_to(_V1) else _V2
        for pid in (self._folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (root / "cgroup.procs").write_text(pid)
        self._removed()

    def _removed(self) -> bool:
        assert self._folder is not None
        try:
            self._folder.rmdir()
        except OSError:
            return False
        return True


def _make_group(name: str) -> Path | None:
    for root, proof in ((_V1, "cpuacct.usage"), (_V2, "cpu.stat")):
        folder = root / name
        try:
            folder.mkdir()
        except OSError:
            continue
        if (folder / proof).exists():
            return folder
        folder.rmdir()
    return None


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def process_cpu(pid: int) -> float:
    """CPU seconds of one process and of its children that it waited for (fields 14 to 17 of proc(5) stat)."""
    try:
        fields = _stat(pid)
    except OSError:
        return 0.0
    return sum(int(value) for value in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def descendants(root: int) -> list[int]:
    """``root`` and every living process below it."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                parents.setdefault(int(_stat(int(entry))[1]), []).append(int(entry))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += parents.get(pid, [])
    return found


def pss_mb(pids: list[int]) -> float:
    """Proportional set size of the processes in MB (10^6 bytes): shared pages are divided among their users."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total / 1e6


def resident_mb(pid: int) -> float:
    """Resident memory of one process in MB (10^6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"process {pid} has gone")


def free_ports(count: int) -> list[int]:
    """TCP ports on loopback that are free at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def until(condition: Callable[[], bool], what: str, *, timeout: float, every: float = 0.01) -> None:
    """Wait for ``condition``; RuntimeError naming ``what`` when it has not come in ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {timeout:g} s")
        time.sleep(every)
