"""Network namespaces for the ranks of a trial: each has one link into a bridge, as nodes have into a switch. Needs root."""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import suppress

PREFIX = "10.77.0."


class Fabric:
    """``size`` namespaces, made once and used by one trial after the other."""

    def __init__(self, size: int) -> None:
        self.names = [f"pt{os.getpid()}-{rank}" for rank in range(size)]
        self._switch = f"pt{os.getpid()}-sw"
        self._make()

    def _make(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "sw", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "sw", "up")
        for rank, name in enumerate(self.names):
            _ip("netns", "add", name)
            _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", f"p{rank}", "netns", self._switch)
            _ip("-n", self._switch, "link", "set", f"p{rank}", "master", "sw", "up")
            _ip("-n", name, "addr", "add", f"{self.address(rank)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")

    @staticmethod
    def address(rank: int) -> str:
        return f"{PREFIX}{rank + 1}"

    def enter(self, rank: int) -> None:
        """Move the calling process's thread in."""
        fd = os.open(f"/run/netns/{self.names[rank]}", os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(fd, 0):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)

    def close(self) -> None:
        for name in (*self.names, self._switch):
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
