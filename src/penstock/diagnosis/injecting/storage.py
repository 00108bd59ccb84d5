"""Faults of storage: slow reads and writes, a full or read-only file system, a cold cache, a damaged checkpoint, a storm of stats.

Full and read-only touch only a file system that is no one else's: one that is mounted at the job's folder of checkpoints
(or ``--place``), never the machine's own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from penstock.base.errors import Conflict
from penstock.diagnosis.injecting import groups, programs
from penstock.diagnosis.injecting.notes import Note
from penstock.diagnosis.injecting.spec import Fault, Order, Strength, Target

_ONCE = Strength(1, 1, 1, "")
_READS = Strength(0.8, 0.5, 1.2, "MiB/s")
_WRITES = Strength(2, 1, 4, "MiB/s")
_STAT_STORM = """
import os, sys
print(flush=True)
while True:
    for folder, _, names in os.walk(sys.argv[1]):
        for name in names:
            try:
                os.stat(os.path.join(folder, name))
            except OSError:
                pass
"""
_LARGE = 1 << 30  # bytes free

READS = Fault(
    "slow-reads",
    "storage_slow",
    "storage",
    "the rank's reads from the disk are held to a rate",
    _READS,
    everywhere=True,
)
WRITES = Fault("slow-writes", "ckpt_stall", "checkpoint", "the rank's writes to the disk are held to a rate", _WRITES)
FULL = Fault(
    "disk-full",
    "disk_full",
    "storage",
    "the file system of the checkpoints is filled",
    _ONCE,
    everywhere=True,
    ends_job=True,
)
READ_ONLY = Fault(
    "disk-read-only",
    "disk_readonly",
    "storage",
    "the file system of the checkpoints becomes read-only",
    _ONCE,
    everywhere=True,
    ends_job=True,
)
COLD = Fault(
    "cold-cache",
    "cold_cache",
    "storage",
    "the data set's pages leave the cache (--place: the file or folder)",
    _ONCE,
    frozenset(),
    everywhere=True,
)
CORRUPT = Fault(
    "corrupt-checkpoint",
    "ckpt_corrupt",
    "checkpoint",
    "a byte of the newest checkpoint's largest file is flipped",
    _ONCE,
    frozenset(),
    everywhere=True,
)
METADATA = Fault(
    "stat-storm",
    "metadata_storm",
    "storage",
    "so many processes stat every file of the data set (--place)",
    Strength(4, 2, 6, "processes"),
    frozenset(),
    everywhere=True,
)


def slow_reads(order: Order, note: Note) -> None:
    for target in order.targets:
        _throttle(note, target, order.place or target.checkpoints, "read", "r", order.strength)


def slow_writes(order: Order, note: Note) -> None:
    for target in order.targets:
        _throttle(note, target, order.place or target.checkpoints, "write", "w", order.strength)


def _throttle(note: Note, target: Target, place: str, verb: str, letter: str, mib: float) -> None:
    device = _device(place or "/")
    rate = round(mib * (1 << 20))
    groups.limit(
        note,
        target,
        "blkio" if os.path.isdir("/sys/fs/cgroup/blkio") else "io",
        v1={f"blkio.throttle.{verb}_bps_device": f"{device} {rate}"},
        v2={"io.max": f"{device} {letter}bps={rate}"},
    )


def _device(place: str) -> str:
    number = os.stat(place).st_dev
    if os.major(number) == 0:
        raise Conflict(f"{place} is on no disk of this machine, whose rate could be held down")
    return f"{os.major(number)}:{os.minor(number)}"


def _own_mount(order: Order) -> str:
    place = order.place or next((target.checkpoints for target in order.targets), "")
    if not place or os.stat(place).st_dev in {os.stat(path).st_dev for path in ("/", tempfile.gettempdir())}:
        raise Conflict(f"{place or 'its folder of checkpoints'} is no file system of its own: it is left alone")
    if shutil.disk_usage(place).free > _LARGE:
        raise Conflict(f"{place} has more than 1 GiB free: others may use it too, so it is left alone")
    return place


def fill(order: Order, note: Note) -> None:
    place = _own_mount(order)
    filler = f"{place}/.{note.id}"
    note.will("unlink", filler)
    with open(filler, "wb") as file:
        block = bytes(1 << 16)
        try:
            while True:
                file.write(block)
                file.flush()
        except OSError:
            pass


def read_only(order: Order, note: Note) -> None:
    place = _own_mount(order)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    note.will("command", "mount", "-o", "remount,rw", place)
    programs.run("mount", "-o", "remount,ro", place)


def cool(order: Order, _note: Note) -> None:
    for path in _files(order):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _files(order: Order) -> list[Path]:
    place = Path(order.place)
    if not order.place or not place.exists():
        raise Conflict("say which file or folder: --place PATH")
    return [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]


def corrupt(order: Order, note: Note) -> None:
    place = Path(order.place or next((target.checkpoints for target in order.targets), ""))
    files = [path for path in place.rglob("*") if path.is_file() and path.stat().st_size]
    if not files:
        raise Conflict(f"{place} holds no checkpoint")
    newest = max(files, key=lambda path: (path.parent.stat().st_mtime, path.stat().st_size))
    kept = f"{newest}.{note.id}"
    note.will("restore", str(newest), kept)
    shutil.copyfile(newest, kept)
    with newest.open("r+b") as file:
        file.seek(newest.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))


def storm(order: Order, note: Note) -> None:
    _files(order)
    for _ in range(round(order.strength)):
        programs.python(note, _STAT_STORM, order.place, ready=True)


ACTS = {
    READS: slow_reads,
    WRITES: slow_writes,
    FULL: fill,
    READ_ONLY: read_only,
    COLD: cool,
    CORRUPT: corrupt,
    METADATA: storm,
}
