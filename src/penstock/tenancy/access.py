"""Who shows this credential? Answered at every request, so from memory where that is safe."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.engine import Connection

from penstock.base.errors import Unauthenticated
from penstock.base.resource import Actor
from penstock.store.events import EventRow
from penstock.store.store import Store
from penstock.tenancy import accounts, tokens
from penstock.tenancy.state import Token

FRESH_S = 0.5  # how long an answer is believed: the most that a revocation through another process can take
_KEPT = 4096  # answers in memory
_KINDS = frozenset({"User", "Token", "Project", "Session", "Store"})  # events that may change an answer

Source = Literal["bearer", "cookie"]


@dataclass(frozen=True, slots=True)
class _Known:
    hash: str
    actor: Actor
    ends_at: float | None  # epoch seconds: the clock's
    fetched: float  # seconds: the monotonic clock's


class Access:
    """Call it with what was shown. Revocations through this server count at once, through another within ``FRESH_S``."""

    def __init__(self, store: Store, *, now: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._store = store
        self._now = now
        self._monotonic = monotonic
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._age = 0  # grows at every change, so that an answer read before it is not kept after it
        self.close = store.listen(self._changed)

    async def __call__(self, text: str, source: Source = "bearer") -> Actor | None:
        """The actor, or None for anything that opens nothing (malformed, unknown, expired, revoked)."""
        shown = tokens.parse(text)
        if shown is None or (shown.kind == tokens.SESSION) != (source == "cookie"):
            return None
        known = self._known.get(shown.id)
        if known is None or self._monotonic() - known.fetched > FRESH_S:
            known = await self._look_up(shown)
        if known is None or not tokens.same(known.hash, shown.hash):
            return None
        if known.ends_at is not None and self._now() >= known.ends_at:
            return None
        return known.actor

    async def log_in(self, text: str) -> str:
        """A session's secret for the cookie, in exchange for a token. Raises Unauthenticated."""
        shown = tokens.parse(text.strip())
        refusal = Unauthenticated(
            "that is not a valid token", hint="The server's data folder holds one: the file `token`."
        )
        if shown is None or shown.kind != tokens.TOKEN:
            raise refusal
        found = await self._store.read(lambda conn: accounts.token_by_id(conn, shown.id))
        if found is None or not tokens.same(found[1], shown.hash) or not found[0].usable(self._now()):
            raise refusal
        if found[0].node:
            raise Unauthenticated("that is the token of a node's agent, and opens no console")
        token = found[0]
        secret = await self._store.write(lambda tx: accounts.open_session(tx, token))
        return secret.text

    async def log_out(self, text: str) -> None:
        """End the session whose secret this is; anything else is let pass in silence."""
        actor = await self(text, "cookie")
        shown = tokens.parse(text)
        if actor is not None and shown is not None:
            await self._store.write(lambda tx: accounts.close_session(tx, shown.id, actor.user))

    def _changed(self, rows: Sequence[EventRow]) -> None:
        if any(row.kind in _KINDS for row in rows):
            self._known.clear()
            self._age += 1

    async def _look_up(self, shown: tokens.Credential) -> _Known | None:
        age, at = self._age, self._monotonic()
        found = await self._store.read(lambda conn: _find(conn, shown, self._now()))
        self._known.pop(shown.id, None)
        if found is None:
            return None
        known = _Known(*found, fetched=at)
        if age == self._age and tokens.same(known.hash, shown.hash):
            self._known[shown.id] = known
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return known


def agent(node: str) -> Actor:
    """Who shows a node's own token."""
    return Actor(f"agent:{node}", node=node)


def _find(conn: Connection, shown: tokens.Credential, now: float) -> tuple[str, Actor, float | None] | None:
    """The credential's hash, its actor and when it ends."""
    ends_at: float | None = None
    token_id, kept = shown.id, ""
    if shown.kind == tokens.SESSION:
        session = accounts.session_by_id(conn, shown.id)
        if session is None:
            return None
        token_id, kept, ends_at = session
    found = accounts.token_by_id(conn, token_id)
    if found is None or not found[0].usable(now):
        return None
    token, token_hash = found
    if token.node:
        return token_hash, agent(token.node), token.expires_at
    actor = accounts.actor_of(conn, token.user)
    return None if actor is None else (kept or token_hash, actor, _earlier(ends_at, token))


def _earlier(ends_at: float | None, token: Token) -> float | None:
    ends = [at for at in (ends_at, token.expires_at) if at is not None]
    return min(ends) if ends else None
