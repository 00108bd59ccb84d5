"""What the front and a model's process say to each other: one short message a batch, the tensors in shared memory.

A message is its length in four bytes and JSON. Each side writes one region, which the other reads: a file in memory
that grows, so that neither copies a tensor through the socket.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterable
from typing import Any

ALIGN = 64
FIRST_BYTES = 1 << 16
MESSAGE_BYTES = 1 << 22


class Region:
    """Shared memory behind a descriptor. The writer calls ``grow``, the reader ``view`` with the size it was told."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = 0
        self._map: mmap.mmap | None = None

    @classmethod
    def new(cls, name: str) -> Region:
        region = cls(os.memfd_create(name, os.MFD_CLOEXEC))
        region.grow(FIRST_BYTES)
        return region

    def grow(self, size: int) -> memoryview:
        """Its memory, at least ``size`` bytes of it."""
        if size > self.size:
            size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(self.fd, size)
        return self.view(max(size, self.size))

    def view(self, size: int) -> memoryview:
        if self._map is None or size > self.size:
            self._map = mmap.mmap(self.fd, size)  # views of the former keep it until they are gone
            self.size = size
        return memoryview(self._map)

    def shrink(self, size: int) -> None:
        """Give back what one large batch took."""
        if self.size > size and self._map is not None:
            self._map = None
            self.size = 0
            os.ftruncate(self.fd, size)

    def close(self) -> None:
        self._map = None
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


def aligned(sizes: Iterable[int]) -> tuple[list[int], int]:
    """Where pieces of these sizes begin, and where the last one ends."""
    offsets, at = [], 0
    for size in sizes:
        offsets.append(at)
        at += -(-size // ALIGN) * ALIGN
    return offsets, at


def pack(message: dict[str, Any]) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return struct.pack("<I", len(body)) + body


class Reader:
    """Messages out of a stream's pieces."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Raises ValueError of what is no message."""
        self._left += data
        found: list[dict[str, Any]] = []
        while len(self._left) >= 4:
            (size,) = struct.unpack_from("<I", self._left)
            if size > MESSAGE_BYTES:
                raise ValueError(f"a message of {size} bytes")
            if len(self._left) < 4 + size:
                break
            found.append(json.loads(self._left[4 : 4 + size]))
            self._left = self._left[4 + size :]
        return found
