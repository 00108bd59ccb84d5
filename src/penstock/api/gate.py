"""What the console is handed: who asks, what they may do, signing in and out, and the API's own endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from penstock.api.asgi import App, Decide, cookie_name
from penstock.base.errors import Unavailable
from penstock.base.resource import Actor
from penstock.base.settings import Settings


class Sessions(Protocol):
    """Tenancy's ``Access``."""

    async def __call__(self, text: str, source: Any = "bearer") -> Actor | None: ...
    async def log_in(self, text: str) -> str: ...
    async def log_out(self, text: str) -> None: ...


class Gate:
    """Made before the application, whose routes it serves; ``app`` is set once that is built."""

    def __init__(self, access: Sessions, decide: Decide, settings: Settings) -> None:
        self.app: App | None = None
        self.cookie = cookie_name(settings)
        self._access = access
        self._decide = decide

    async def ask(
        self, method: str, path: str, actor: Actor, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> Any:
        """The endpoint's JSON answer; raises ``PenstockError`` as the API would answer it."""
        if self.app is None:
            raise Unavailable("the server is still starting")
        return await self.app.ask(method, path, actor, query, body)

    async def who(self, text: str) -> Actor | None:
        """Whose session the cookie's value is; None where it is nobody's (any more)."""
        return await self._access(text, "cookie")

    def may(self, actor: Actor, verb: str, project: str | None = None) -> bool:
        """Whether to show a button; the endpoint decides again."""
        return self._decide(actor, verb, project)

    async def log_in(self, token: str) -> str:
        """The value for the cookie, in exchange for a token. Raises Unauthenticated."""
        return await self._access.log_in(token)

    async def log_out(self, text: str) -> None:
        """End the session whose secret the cookie held."""
        await self._access.log_out(text)
