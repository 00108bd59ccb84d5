"""Making and reading secrets. ``pst_<id>_<secret>`` is a token, ``pss_<id>_<secret>`` a session of the console."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from penstock.base.ids import new_id

TOKEN = "pst"  # noqa: S105 - a prefix, by which scanners for leaked secrets can find ours
SESSION = "pss"
_FORM = re.compile(r"(pst|pss)_([0-9A-HJKMNP-TV-Z]{26})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Secret:
    """A fresh secret. ``text`` is shown once; ``hash`` is what is kept."""

    id: str
    text: str
    hash: str

    def __repr__(self) -> str:
        return f"Secret(id={self.id!r})"  # never the text: this may end up in a log


@dataclass(frozen=True, slots=True)
class Credential:
    """What somebody showed, taken apart."""

    kind: str
    id: str
    hash: str


def mint(kind: str, now: float) -> Secret:
    """256 random bits under a fresh id."""
    identity = new_id(now, secrets.token_bytes(10))
    text = f"{kind}_{identity}_{secrets.token_urlsafe(32)}"
    return Secret(identity, text, digest(text))


def digest(text: str) -> str:
    """A plain SHA-256 is enough: there is nothing to guess in 256 random bits."""
    return hashlib.sha256(text.encode()).hexdigest()


def parse(text: str) -> Credential | None:
    """None for what is no credential of ours; costs no database look-up."""
    match = _FORM.fullmatch(text)
    return Credential(match[1], match[2], digest(text)) if match else None


def same(one: str, other: str) -> bool:
    """Compares in a time that does not depend on where the two differ."""
    return hmac.compare_digest(one, other)
