"""What NCCL says of itself with ``NCCL_DEBUG=INFO``: which network it uses, GPUDirect, how GPUs of a node reach each other. Pure.

Formats: NVIDIA/nccl, ``src/transport/net.cc``, ``net_socket.cc``, ``net_ib``, ``src/graph``; they differ between versions, so each is
looked for on its own, and what is not said is not known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from penstock.diagnosis.state import LogLine

LONGEST: Final = 1000
MOST_LINES: Final = 20_000
_NETWORK: Final = re.compile(
    r"Using network ([A-Za-z0-9_.-]{1,40})|Assigned NET plugin ([A-Za-z0-9_.-]{1,40}) to comm|Initialized NET plugin ([A-Za-z0-9_.-]{1,40})"
)
_CHANNEL: Final = re.compile(
    r"Channel [0-9]{1,4}(?:/[0-9]{1,4})? {0,2}: [0-9]{1,6}\[[0-9a-fA-F]{1,8}\] -> [0-9]{1,6}\[[0-9a-fA-F]{1,8}\] "
    r"(?:\[(?:send|receive)\] )?via ([A-Za-z0-9_/.()-]{1,60})"
)
_SET: Final = re.compile(r"(NCCL_[A-Z0-9_]{1,60}) set by environment to ([^ ]{1,60}?)\.?$")
_VERSION: Final = re.compile(r"NCCL version ([0-9][0-9.]{1,20})")
_GDR: Final = re.compile(r"GPU Direct RDMA (Enabled|Disabled) for (?:HCA|GPU) ([0-9a-fA-F]{1,8})")


@dataclass(slots=True)
class _Seen:
    version: str = ""
    networks: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    env: dict[str, str] = field(default_factory=dict)
    no_card: bool = False
    gdr: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Transport:
    """``network``: "IB", "Socket", a plugin's name, or "" where it was not said. ``gdr``: whether channels between nodes use
    GPUDirect RDMA; None where there are none. ``paths``: channels by transport ("NET/IB", "P2P", "SHM", "NET/Socket").
    """

    version: str = ""
    network: str = ""
    no_card: bool = False  # it looked for RDMA cards and found none
    gdr: bool | None = None
    paths: tuple[tuple[str, int], ...] = ()
    env: tuple[tuple[str, str], ...] = ()

    @property
    def sockets(self) -> bool:
        """Whether gradients between nodes go by TCP."""
        return self.network.lower() == "socket" or (not self.network and any(p == "NET/Socket" for p, _ in self.paths))

    def count(self, path: str) -> int:
        return dict(self.paths).get(path, 0)


def transport(lines: Iterable[LogLine]) -> Transport:
    """Of one rank's lines, or of all."""
    seen = _Seen()
    for number, line in enumerate(lines):
        if number >= MOST_LINES:
            break
        if "NCCL" in line.text or "via " in line.text:
            _take(seen, line.text[:LONGEST])
    network = seen.networks.most_common(1)[0][0] if seen.networks else ""
    return Transport(
        seen.version,
        network,
        seen.no_card,
        _gdr(seen),
        tuple(sorted(seen.paths.items())),
        tuple(sorted(seen.env.items())),
    )


def _take(seen: _Seen, text: str) -> None:
    if found := _VERSION.search(text):
        seen.version = found[1]
    if found := _NETWORK.search(text):
        seen.networks[found[1] or found[2] or found[3]] += 1
    if "NET/IB : No device found" in text:
        seen.no_card = True
    if found := _SET.search(text):
        seen.env[found[1]] = found[2]
    if found := _GDR.search(text):
        seen.gdr[found[1]] += 1
    if found := _CHANNEL.search(text):
        kind = _kind(found[1])
        seen.paths[kind] += 1
        if kind == "NET/IB":
            seen.gdr["used" if "GDRDMA" in found[1] else "unused"] += 1


def _kind(via: str) -> str:
    """``NET/IB/0/GDRDMA`` -> ``NET/IB``; ``P2P/CUMEM`` -> ``P2P``; ``SHM/direct/direct`` -> ``SHM``."""
    parts = via.split("/")
    return "/".join(parts[:2]) if parts[0] == "NET" else parts[0]


def _gdr(seen: _Seen) -> bool | None:
    """Channels tell what is used; without them the cards' lines what could be."""
    if seen.gdr["used"] or seen.gdr["unused"]:
        return seen.gdr["used"] >= seen.gdr["unused"]
    if seen.gdr["Enabled"] or seen.gdr["Disabled"]:
        return seen.gdr["Enabled"] >= seen.gdr["Disabled"]
    return None
