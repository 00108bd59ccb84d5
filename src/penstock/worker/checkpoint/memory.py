"""Host memory for staging: whether there is enough, buffers that the disk can read, threads that stand back."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from penstock.worker.checkpoint.layout import PAGE

Bytes = npt.NDArray[np.uint8]
_HUGE: Final = 2 << 20
_TOUCH: Final = 64 << 20  # bytes touched at once: between two of them other threads get their turn


def aligned(size: int, *, huge: bool = True) -> Bytes:
    """A buffer that begins on a page, ``huge``: in huge pages where the kernel has them. Touch it before it is timed."""
    length = -(-max(size, 1) // _HUGE) * _HUGE
    memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge:
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)[: -(-max(size, 1) // PAGE) * PAGE]


def touch(buffer: Bytes) -> None:
    """Make the kernel give the pages now: a first touch costs a copy twice and more of its time."""
    for start in range(0, len(buffer), _TOUCH):
        np.copyto(buffer[start : start + _TOUCH : PAGE], 0)


def available(proc: str = "/proc", cgroup: str = "/sys/fs/cgroup") -> int | None:
    """Bytes that this host, or this process's control group, can still give; None where neither says."""
    found = []
    try:
        for line in Path(proc, "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    try:
        own = next(line for line in Path(proc, "self/cgroup").read_text().splitlines() if line.startswith("0::"))
        folder = Path(cgroup, own[3:].strip().lstrip("/"))
        while True:
            limit = _number(folder / "memory.max")
            if limit is not None:
                found.append(max(0, limit - (_number(folder / "memory.current") or 0) + _reclaimable(folder)))
            if folder == Path(cgroup) or Path(cgroup) not in folder.parents:
                break
            folder = folder.parent
    except (OSError, StopIteration):
        pass
    return min(found) if found else None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _reclaimable(folder: Path) -> int:
    """Page cache that the group is charged for, which the kernel gives back when asked."""
    try:
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(rows.get("inactive_file", 0))
    except (OSError, ValueError):
        return 0


def short_of_memory(wanted: int, ranks: int, reserve: int, there: int | None) -> str:
    """Why staging ``wanted`` bytes on each of ``ranks`` would not leave the reserve; empty where it fits."""
    if there is None or wanted * ranks + reserve <= there:
        return ""
    return (
        f"staging needs {_gib(wanted * ranks)} on this host ({ranks} ranks), which has {_gib(there)} available, "
        f"of which {_gib(reserve)} stay in reserve"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def stand_back(niceness: int) -> None:
    """Lower this thread's own priority. Linux keeps it for each thread.

    Not to the lowest class: a thread that holds the interpreter's lock and is never scheduled would stop the loop.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
    except OSError:  # refused by a sandbox: the save goes on at the loop's own priority
        pass
