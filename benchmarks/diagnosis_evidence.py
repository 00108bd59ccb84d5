"""From a trial's folder to its evidence: by what reads a job's, but for what the ledger would know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from penstock.diagnosis import reading
from penstock.diagnosis.lines import telling
from penstock.diagnosis.state import LogLine, Rank


class Tails:
    """The ranks' logs, each line with the time at which it was first seen."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self._paths = [folder / "logs" / f"rank-{rank}.log" for rank in range(ranks)]
        self._read = [0] * ranks
        self.lines: list[list[LogLine]] = [[] for _ in range(ranks)]

    def look(self) -> None:
        for rank, path in enumerate(self._paths):
            with suppress(OSError), path.open("rb") as file:
                file.seek(self._read[rank])
                whole, newline, _ = file.read().rpartition(b"\n")
                self._read[rank] += len(whole + newline)
                now = time.time()
                self.lines[rank] += [LogLine(now, line, rank) for line in whole.decode("utf-8", "replace").splitlines()]


def ranks_of(folder: Path, tails: Tails) -> dict[int, Rank]:
    """What the ranks said of themselves; those that said nothing are there with their log alone."""
    events = []
    for path in sorted((folder / "watch").iterdir()):
        events += [json.loads(line) for line in path.read_bytes().splitlines()]
    events.sort(key=lambda event: float(event["at"]))
    told = reading.watched(events)
    tails.look()
    found = {}
    for rank, lines in enumerate(tails.lines):
        known = told.get(rank, Rank(rank, ""))
        found[rank] = replace(known, node=f"node-{rank}", lines=telling(lines))
    return found


def stack(pid: int) -> tuple[str, ...]:
    """A process's main thread by py-spy, innermost first."""
    spy = Path(sys.executable).parent / "py-spy"
    words = [str(spy), "dump", "--json", "--nonblocking", "--pid", str(pid)]
    done = subprocess.run(words, capture_output=True, timeout=10, check=False)
    if done.returncode:
        return ()
    threads = json.loads(done.stdout)
    main = next((thread for thread in threads if thread.get("os_thread_id") == pid), threads[0])
    return tuple(f"{f['name']} ({f['filename']}:{f['line']})" for f in main["frames"])


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()[0].decode()
    except OSError:
        return "gone"


def kernel_since(at: float) -> list[LogLine]:
    """What the kernel has logged since; its clock is that of the boot."""
    shift = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    found: list[LogLine] = []
    try:
        while True:
            try:
                head, _, text = os.read(fd, 8192).decode(errors="replace").partition(";")
            except BlockingIOError:
                return found
            except BrokenPipeError:  # what was next has been overwritten
                continue
            moment = int(head.split(",")[2]) / 1e6 + shift
            if moment >= at:
                found.append(LogLine(moment, text.split("\n")[0]))
    finally:
        os.close(fd)
