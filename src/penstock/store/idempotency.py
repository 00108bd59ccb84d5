"""Idempotency keys: the same request sent twice is answered twice and done once."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import bindparam, delete, insert, select

from penstock.base.errors import Conflict, InvalidInput, Problem
from penstock.store.store import Tx
from penstock.store.tables import idempotency

KEPT_S = 24 * 3600.0  # how long a key is remembered
KEY_LIMIT = 255  # characters, as in the IETF draft's common implementations

SWEEP_EVERY = 60  # seconds of the clock, of which one sweeps
_OWN = (idempotency.c.key == bindparam("mine_key")) & (idempotency.c.user == bindparam("mine_user"))
_MINE = select(idempotency).where(_OWN)
_FORGET = delete(idempotency).where(_OWN)
_INSERT = insert(idempotency)


def digest(body: bytes) -> str:
    """What is compared between two requests with one key: SHA-256 of the body (add the route to it)."""
    return hashlib.sha256(body).hexdigest()


def recall(tx: Tx, key: str, user: str, digest: str) -> Any | None:
    """The answer given before to this ``key`` of this ``user``, None if there was none in the last 24 hours.

    Raises Conflict when the key came with another body, InvalidInput when it is no usable key.
    """
    if not key or len(key) > KEY_LIMIT or not key.isascii() or not key.isprintable():
        raise InvalidInput(
            "the Idempotency-Key cannot be used",
            details=[Problem("Idempotency-Key", f"must be 1 to {KEY_LIMIT} printable ASCII characters")],
        )
    row = tx.conn.execute(_MINE, {"mine_key": key, "mine_user": user}).first()
    if row is None or row.created_at < tx.now - KEPT_S:
        return None
    if row.digest != digest:
        raise Conflict(
            f"the idempotency key {key!r} was used before for a different request",
            hint="Send the first request again unchanged, or use a new key for a new one.",
        )
    return json.loads(row.answer)


def remember(tx: Tx, key: str, user: str, digest: str, answer: Any) -> None:
    """Keep ``answer`` (JSON-able) in the same transaction as what it tells of; forget the keys that have expired."""
    if int(tx.now) % SWEEP_EVERY == 0:  # not at every submission: what has expired does no harm
        tx.conn.execute(delete(idempotency).where(idempotency.c.created_at < tx.now - KEPT_S))
    values = {"key": key, "user": user, "digest": digest, "answer": json.dumps(answer), "created_at": tx.now}
    tx.do(_FORGET, {"mine_key": key, "mine_user": user})  # one that has expired, by the same key
    tx.do(_INSERT, values)
