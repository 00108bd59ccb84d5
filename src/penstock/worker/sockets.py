"""What TCP knows of this process's own connections, by whom they lead to: TCP_INFO of tcp(7), on Linux.

By libc and not by ``socket``: an object of a socket that another library holds would set its flags.
"""

from __future__ import annotations

import ctypes
import functools
import ipaddress
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

PEERS: Final = 4  # that are told of, those to whom most was sent
LEAST: Final = 1 << 20  # bytes sent to a peer, below which it is one of rendezvous and not of data
LOOKED_AT: Final = 512  # sockets of a process
# Of struct tcp_info: tcpi_rtt (microseconds), tcpi_total_retrans, tcpi_data_segs_out, tcpi_bytes_sent (since Linux 4.19).
_INFO: Final = struct.Struct("=68xI28xI52xI40xQ")
_ADDRESS: Final = 128  # bytes of struct sockaddr_storage


@dataclass(frozen=True, slots=True)
class Connection:
    """``rtt_s``: smoothed, with what waits in queues on the way there and back; ``segments``: those with data."""

    rtt_s: float
    segments: int
    resent: int
    sent_bytes: int


class Peers:
    """Whom a socket leads to is asked once; its inode names it, since a file's number is soon another's."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def counters(self, numbers: Iterable[int]) -> dict[str, float]:
        """Of the peers that most was sent to: ``rtt_s:ADDRESS`` of the connection that carried most, and sums of all."""
        by_peer: dict[str, list[Connection]] = {}
        seen: dict[int, str] = {}
        for fd in numbers:
            inode = socket_of(fd)
            if inode is None:
                continue
            peer = self._known.get(inode)
            seen[inode] = peer = address(fd, far=True) if peer is None else peer
            connection = read(fd) if peer else None
            if connection is not None:
                by_peer.setdefault(peer, []).append(connection)
        self._known = {inode: peer for inode, peer in seen.items() if peer}
        sums = {peer: sum(one.sent_bytes for one in found) for peer, found in by_peer.items()}
        chosen = sorted((peer for peer, sent in sums.items() if sent >= LEAST), key=lambda peer: (-sums[peer], peer))
        told: dict[str, float] = {}
        for peer in chosen[:PEERS]:
            told |= _told(peer, by_peer[peer])
        return told


def _told(peer: str, found: Iterable[Connection]) -> dict[str, float]:
    all_of = list(found)
    most = max(all_of, key=lambda one: one.sent_bytes)
    return {
        f"rtt_s:{peer}": most.rtt_s,
        f"sent_bytes:{peer}": sum(one.sent_bytes for one in all_of),
        f"segments:{peer}": sum(one.segments for one in all_of),
        f"resent:{peer}": sum(one.resent for one in all_of),
    }


def addresses() -> list[str]:
    """The own ends of connections to others: what its peers know a process by."""
    found = set()
    for number in os.listdir("/proc/self/fd")[:LOOKED_AT]:
        if socket_of(int(number)) is not None and address(int(number), far=True):
            found.add(address(int(number), far=False))
    return sorted(found - {""})


def socket_of(fd: int) -> int | None:
    """The inode; None of what is no socket, or closed meanwhile."""
    try:
        known = os.fstat(fd)
    except OSError:
        return None
    return known.st_ino if stat.S_ISSOCK(known.st_mode) else None


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def read(fd: int) -> Connection | None:
    """None of what is no TCP, and of a kernel that tells less."""
    space, size = ctypes.create_string_buffer(_INFO.size), ctypes.c_uint(_INFO.size)
    if (
        _libc().getsockopt(fd, socket.IPPROTO_TCP, socket.TCP_INFO, space, ctypes.byref(size))
        or size.value < _INFO.size
    ):
        return None
    rtt, resent, segments, sent = _INFO.unpack(space.raw)
    return Connection(rtt / 1e6, segments, resent, sent)


def address(fd: int, *, far: bool) -> str:
    """Of the peer, or the own one: an IP address; "" of what has none."""
    space, size = ctypes.create_string_buffer(_ADDRESS), ctypes.c_uint(_ADDRESS)
    ask = _libc().getpeername if far else _libc().getsockname
    if ask(fd, space, ctypes.byref(size)):
        return ""
    family = int.from_bytes(space.raw[:2], sys.byteorder)
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(space.raw[4:8]))
    if family == socket.AF_INET6:
        long = ipaddress.IPv6Address(space.raw[8:24])
        return str(long.ipv4_mapped or long)
    return ""
