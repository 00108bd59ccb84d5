"""Disks and file systems: how full, whether they can be written to, what they moved, and whether NVMe devices live."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

from penstock.telemetry.sources.tree import Tree, counter, gauge
from penstock.telemetry.spec import Point, Reading

# Those of this machine's own disks. A network's may not answer, and then nobody who asks comes back: they are not asked.
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "vfat", "zfs", "overlay"})
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where data loaders and NCCL put what they share
_SECTOR = 512.0
_IGNORED = re.compile(r"(loop|ram|zram|sr|fd|dm-|md|nbd)\d+|.*\d+p\d+|(s|h|v|xv)d[a-z]+\d+")
MAX_MOUNTS = 64

Statvfs = Callable[[str], os.statvfs_result]


class Disk:
    name = "disk"

    def __init__(self, root: str = "/", every_s: float = 15.0, statvfs: Statvfs = os.statvfs) -> None:
        self.tree = Tree(root)
        self.every_s = every_s
        self._statvfs = statvfs

    def read(self, now: float) -> Reading:
        refused: list[str] = []
        points = (*self._filesystems(refused), *self._disks(), *self._nvme())
        return Reading(self.name, now, points, problem="; ".join(refused[:3]))

    def close(self) -> None:
        return

    def _filesystems(self, refused: list[str]) -> Iterator[Point]:
        seen: set[str] = set()
        for line in self.tree.lines("proc/1/mounts") or self.tree.lines(
            "proc/self/mounts"
        ):  # in a container: the node's
            words = line.split()
            if len(words) < 4 or (words[2] not in _LOCAL and words[1] != _SHARED_MEMORY):
                continue
            device, mountpoint, kind, options = words[0], _unescaped(words[1]), words[2], words[3].split(",")
            key = device if device.startswith("/") else mountpoint
            if key in seen or len(seen) >= MAX_MOUNTS:  # mounted in several places: once is enough
                continue
            seen.add(key)
            labels = (("device", device), ("fstype", kind), ("mountpoint", mountpoint))
            yield from gauge("penstock_node_filesystem_readonly", float("ro" in options), *labels)
            try:
                found = self._statvfs(mountpoint)
            except OSError as error:
                refused.append(f"{mountpoint}: {error.strerror}")
                continue
            if found.f_blocks:
                unit = float(found.f_frsize)
                yield from gauge("penstock_node_filesystem_size_bytes", found.f_blocks * unit, *labels)
                yield from gauge("penstock_node_filesystem_available_bytes", found.f_bavail * unit, *labels)
            if found.f_files:
                yield from gauge("penstock_node_filesystem_inodes", float(found.f_files), *labels)
                yield from gauge("penstock_node_filesystem_inodes_available", float(found.f_favail), *labels)

    def _disks(self) -> Iterator[Point]:
        for line in self.tree.lines("proc/diskstats")[:1024]:
            words = line.split()
            if len(words) < 14 or _IGNORED.fullmatch(words[2]):
                continue
            label = ("device", words[2])
            numbers = [float(word) for word in words[3:]]
            yield from counter("penstock_node_disk_reads_total", numbers[0], label)
            yield from counter("penstock_node_disk_read_bytes_total", numbers[2] * _SECTOR, label)
            yield from counter("penstock_node_disk_read_seconds_total", numbers[3] / 1e3, label)
            yield from counter("penstock_node_disk_writes_total", numbers[4], label)
            yield from counter("penstock_node_disk_written_bytes_total", numbers[6] * _SECTOR, label)
            yield from counter("penstock_node_disk_write_seconds_total", numbers[7] / 1e3, label)
            yield from counter("penstock_node_disk_busy_seconds_total", numbers[9] / 1e3, label)

    def _nvme(self) -> Iterator[Point]:
        for device in self.tree.names("sys/class/nvme"):
            state = self.tree.text(f"sys/class/nvme/{device}/state")
            if state:
                yield from gauge("penstock_node_nvme_live", float(state == "live"), ("device", device))
            for sensor in self.tree.names(f"sys/class/nvme/{device}"):
                if re.fullmatch(r"hwmon\d+", sensor):
                    degrees = self.tree.number(f"sys/class/nvme/{device}/{sensor}/temp1_input")
                    yield from gauge(
                        "penstock_node_nvme_temperature_celsius",
                        degrees / 1000 if degrees is not None else None,
                        ("device", device),
                    )


def _unescaped(path: str) -> str:
    r"""/proc/mounts writes blanks as ``\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
