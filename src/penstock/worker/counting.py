"""What the kernel has counted of this process and its node: cumulative but for gauges, each read costs microseconds.

Names are those of ``diagnosis/state.py: Counters``. What this kernel does not tell is left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import resource
import socket
import sys
import termios
from collections.abc import Callable, Iterator
from typing import Final

from penstock.worker.sockets import LOOKED_AT, Peers, socket_of

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_CGROUPS: Final = "/sys/fs/cgroup"
_UNSYNC: Final = 0x40  # STA_UNSYNC of adjtimex(2)
_NANO: Final = 0x2000  # STA_NANO
_FLAGS: Final = 0x8913  # SIOCGIFFLAGS of netdevice(7)
_LOOPBACK: Final = 0x8
_POINT_TO_POINT: Final = 0x10
_BLKIO: Final = 39  # delayacct_blkio_ticks of proc_pid_stat(5), after the name


class Pages:
    """Files of /proc and /sys, held open: read again from their begin."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}

    def text(self, path: str) -> str:
        """Raises OSError."""
        fd = self._open.get(path)
        if fd is None:
            fd = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(fd, 1 << 16, 0).decode("ascii", "replace")

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()


class Counts:
    """``read`` gives all that can be had."""

    def __init__(self) -> None:
        self._pages, self._peers = Pages(), Peers()
        self._groups, self._throttles, self._throttled_before = "", list[_Throttle](), 0.0
        self._main = f"/proc/self/task/{os.getpid()}/schedstat"  # of the main thread, also after a fork
        self._readers: list[Callable[[], dict[str, float]]] = [
            self._usage, self._schedstat, self._throttled, self._stat, self._statm, self._io, self._pressure, self._network,
            self._traffic, self._files, self._kills, _clock,
        ]  # fmt: skip

    def read(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for reader in list(self._readers):
            try:
                found |= reader()
            except (OSError, ValueError, IndexError, KeyError, AttributeError):
                self._readers.remove(reader)  # not told here
        return found

    def close(self) -> None:
        self._pages.close()

    def _usage(self) -> dict[str, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "cpu_s": round(used.ru_utime + used.ru_stime, 4),
            "nonvoluntary": used.ru_nivcsw,
            "major_faults": used.ru_majflt,
            "max_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        }

    def _schedstat(self) -> dict[str, float]:
        return {"run_delay_s": int(self._pages.text(self._main).split()[1]) / 1e9}

    def _throttled(self) -> dict[str, float]:
        """Of the group that was throttled most since it was first read; a process may be moved to another one meanwhile."""
        groups = self._pages.text("/proc/self/cgroup")
        if groups != self._groups:
            self._throttled_before += self._most_throttled()
            self._throttles = [(one, self._throttle(*one)) for one in _throttles(groups)]
            self._groups = groups
        return {"throttled_s": self._throttled_before + self._most_throttled()} if self._throttles else {}

    def _most_throttled(self) -> float:
        found = 0.0
        for one, first in self._throttles:
            with contextlib.suppress(OSError):  # a group that is gone
                found = max(found, self._throttle(*one) - first)
        return found

    def _throttle(self, path: str, word: str, unit: float) -> float:
        for line in self._pages.text(path).splitlines():
            if line.startswith(word + " "):
                return int(line.split()[1]) / unit
        return 0.0

    def _stat(self) -> dict[str, float]:
        fields = self._pages.text("/proc/self/stat").rpartition(") ")[2].split()
        return {"io_wait_s": int(fields[_BLKIO]) / _TICKS}

    def _statm(self) -> dict[str, float]:
        return {"rss_bytes": int(self._pages.text("/proc/self/statm").split()[1]) * _PAGE}

    def _io(self) -> dict[str, float]:
        lines = dict(line.split(": ") for line in self._pages.text("/proc/self/io").splitlines())
        return {"read_bytes": int(lines["read_bytes"]), "write_bytes": int(lines["write_bytes"])}

    def _pressure(self) -> dict[str, float]:
        found = {}
        for name in ("cpu", "io", "memory"):
            some = self._pages.text(f"/proc/pressure/{name}").split("\n", 1)[0]
            found[f"{name}_pressure_s"] = int(some.rpartition("total=")[2]) / 1e6
        return found

    def _network(self) -> dict[str, float]:
        names, values = [line for line in self._pages.text("/proc/net/snmp").splitlines() if line.startswith("Tcp:")]
        tcp = dict(zip(names.split(), values.split(), strict=True))
        return {"retransmits": int(tcp["RetransSegs"]), "segments_out": int(tcp["OutSegs"])}

    def _traffic(self) -> dict[str, float]:
        """Of the links; what goes through a tunnel is counted by the link that it goes over."""
        received = sent = 0
        for line in self._pages.text("/proc/net/dev").splitlines()[2:]:
            name, _, figures = line.partition(":")
            if _carries(name.strip()):
                fields = figures.split()
                received, sent = received + int(fields[0]), sent + int(fields[8])
        return {"net_rx_bytes": received, "net_tx_bytes": sent}

    def _files(self) -> dict[str, float]:
        """Open files; what its sockets have to send that is not acknowledged yet, and how it goes to each peer, of the first of them."""
        numbers = list(map(int, os.listdir("/proc/self/fd")))
        looked_at = [number for number in numbers[:LOOKED_AT] if socket_of(number) is not None]
        waiting = sum(map(_unsent, looked_at))
        return {"open_files": len(numbers) - 1, "send_queue_bytes": waiting, **self._peers.counters(looked_at)}

    def _kills(self) -> dict[str, float]:
        found = self._pages.text("/proc/vmstat").rpartition("\noom_kill ")[2]
        return {"oom_kills": int(found.split("\n", 1)[0])}


@functools.cache
def _carries(name: str) -> bool:
    """Whether a device is a link: not the loopback, nor one between two points as tunnels are."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, contextlib.suppress(OSError):
        answer = fcntl.ioctl(any_socket, _FLAGS, name.encode()[:15].ljust(40, b"\0"))
        return not int.from_bytes(answer[16:18], sys.byteorder) & (_LOOPBACK | _POINT_TO_POINT)
    return True


def _unsent(fd: int) -> int:
    """Of a socket: SIOCOUTQ of tcp(7)."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)
    except OSError:  # no stream, or closed meanwhile
        return 0


_Stat = tuple[str, str, float]  # a file, the word in it, its unit
_Throttle = tuple[_Stat, float]  # with what it said first


def _throttles(groups: str) -> Iterator[_Stat]:
    """``cpu.stat`` of this process's cgroup and those above it: a limit may be set on any of them."""
    for line in groups.splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        root, word, unit = (f"{_CGROUPS}/cpu", "throttled_time", 1e9) if kinds else (_CGROUPS, "throttled_usec", 1e6)
        while True:
            if os.access(f"{root}{path}/cpu.stat", os.R_OK):
                yield f"{root}{path.rstrip('/')}/cpu.stat", word, unit
            if path in ("/", ""):
                break
            path = os.path.dirname(path)


class _Timex(ctypes.Structure):
    _fields_ = (
        ("modes", ctypes.c_uint), ("offset", ctypes.c_long), ("freq", ctypes.c_long), ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long), ("status", ctypes.c_int), ("rest", ctypes.c_byte * 512),
    )  # fmt: skip


def _clock() -> dict[str, float]:
    """How far NTP says that the clock is off; nothing where nobody keeps it."""
    timex = _Timex()
    if ctypes.CDLL(None).adjtimex(ctypes.byref(timex)) < 0 or timex.status & _UNSYNC:
        return {}
    return {"clock_offset_s": timex.offset / (1e9 if timex.status & _NANO else 1e6)}
