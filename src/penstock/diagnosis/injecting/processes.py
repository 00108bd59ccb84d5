"""Faults of the rank's process: frozen, ended, asked to end, without file descriptors, without a loader worker, out of memory."""

from __future__ import annotations

import os
import resource
import signal

from penstock.base.errors import Conflict
from penstock.diagnosis.injecting import groups, programs
from penstock.diagnosis.injecting.notes import Note
from penstock.diagnosis.injecting.spec import Fault, Order, Strength
from penstock.engines.local import procs

_ONCE = Strength(1, 1, 1, "")
_HOG = "import time; kept = [b'x' * 1048576 * n for n in range(1, 400)]; time.sleep(600)"
_THAW = """
import os, signal, sys, time
print(flush=True)
time.sleep(float(sys.argv[1]))
os.kill(int(sys.argv[2]), signal.SIGCONT)
"""
_SLACK = 8  # descriptors a rank keeps beyond those it has open

FREEZE = Fault(
    "freeze",
    "process_frozen",
    "host",
    "the rank stands still (SIGSTOP) for so long",
    Strength(2, 1.2, 2.5, "s"),
    frozenset(),
)
KILL = Fault(
    "node-down", "node_down", "host", "the rank's processes vanish (SIGKILL)", _ONCE, frozenset(), ends_job=True
)
PREEMPT = Fault(
    "preempt",
    "preempted",
    "fleet",
    "every rank is asked to end (SIGTERM)",
    _ONCE,
    frozenset(),
    everywhere=True,
    ends_job=True,
)
WORKER = Fault(
    "loader-worker-killed",
    "data_worker_dead",
    "input",
    "a worker of the rank's data loader is killed",
    _ONCE,
    frozenset(),
    ends_job=True,
)
FILES = Fault(
    "file-limit",
    "pid_fd_limit",
    "host",
    "the rank may open only so many files more",
    Strength(_SLACK, 2, 12, "files"),
    ends_job=True,
)
MEMORY = Fault(
    "memory-limit",
    "host_oom",
    "host",
    "the rank's group is filled up to a limit: the kernel kills it",
    Strength(48, 32, 64, "MiB"),
    ends_job=True,
)


def freeze(order: Order, note: Note) -> None:
    for target in order.targets:
        note.will("continue", target.pid, target.start)
        programs.python(note, _THAW, str(order.strength), str(target.pid), ready=True)
        procs.send([target.pid], signal.SIGSTOP)


def kill(order: Order, _note: Note) -> None:
    for target in order.targets:
        procs.send([target.pid, *procs.descendants(target.pid)], signal.SIGKILL)


def preempt(order: Order, _note: Note) -> None:
    procs.send([target.pid for target in order.peers], signal.SIGTERM)


def kill_worker(order: Order, _note: Note) -> None:
    for target in order.targets:
        workers = procs.children(target.pid)
        if not workers:
            raise Conflict(f"rank {target.rank} has no data loader workers (num_workers=0?)")
        procs.send(workers[:1], signal.SIGKILL)


def limit_files(order: Order, note: Note) -> None:
    for target in order.targets:
        soft, hard = resource.prlimit(target.pid, resource.RLIMIT_NOFILE)
        note.will("limit", target.pid, target.start, soft, hard)
        opened = len(os.listdir(f"/proc/{target.pid}/fd"))
        resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (opened + int(order.strength), hard))


def fill_memory(order: Order, note: Note) -> None:
    """The kernel kills the largest in the group, which is the rank; what it has used before does not count against the limit."""
    size = str(int(order.strength) << 20)
    for target in order.targets:
        groups.limit(note, target, "memory", v1={"memory.limit_in_bytes": size}, v2={"memory.max": size})
        hog = programs.python(note, _HOG)
        groups.put(groups.home(target.pid, "memory"), hog)


ACTS = {FREEZE: freeze, KILL: kill, PREEMPT: preempt, WORKER: kill_worker, FILES: limit_files, MEMORY: fill_memory}
