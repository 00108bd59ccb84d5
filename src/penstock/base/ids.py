"""Identifiers and names."""

from __future__ import annotations

import re

from penstock.base.errors import Problem

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
NAME_RULE = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def new_id(now: float, entropy: bytes) -> str:
    """A ULID (github.com/ulid/spec): 48 bits of milliseconds since the epoch, 80 bits of ``entropy`` (10 bytes)."""
    value = (int(now * 1000) & (1 << 48) - 1) << 80 | int.from_bytes(entropy[:10], "big")
    return "".join(_CROCKFORD[value >> shift & 31] for shift in range(125, -5, -5))


def check_name(name: str, path: str = "name") -> Problem | None:
    """What is wrong with a resource's name, if anything (the rule is a DNS label's, RFC 1123)."""
    if NAME_RULE.fullmatch(name):
        return None
    shown = name if len(name) <= 40 else name[:40] + "..."
    return Problem(
        path, f"{shown!r} is not a name: use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit"
    )
