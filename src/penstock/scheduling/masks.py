"""Sets of nodes as ints: bit i is the i-th node ever put."""

from __future__ import annotations

from collections.abc import Iterator

LONG = 512  # bits of a mask that is better read as a string


def bits(mask: int) -> Iterator[int]:
    """Positions of the set bits, the lowest first."""
    if mask.bit_length() > LONG:  # clearing bit by bit copies all of it each time
        digits = bin(mask)[:1:-1]
        at = digits.find("1")
        while at >= 0:
            yield at
            at = digits.find("1", at + 1)
        return
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low
