"""What the console is handed: the API's own endpoints, and who stands at the door."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request

from penstock.base.resource import Actor


class Ask(Protocol):
    """Calls the endpoint that ``path`` names and answers its JSON; raises ``PenstockError`` as the API would answer it."""

    async def __call__(
        self, method: str, path: str, actor: Actor, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> Any: ...


class May(Protocol):
    """Whether to show a button; the endpoint decides again."""

    def __call__(self, actor: Actor, verb: str, project: str | None = None) -> bool: ...


@dataclass(frozen=True, slots=True)
class Gate:
    """One for the console's whole life; ``app.py`` makes it."""

    ask: Ask
    may: May
    signed_in: Callable[[Request], Actor | None]
    log_in: Callable[[str], Awaitable[str]]  # a token for a session's secret; raises Unauthenticated
    log_out: Callable[[str], Awaitable[None]]
    cookie: str  # its name
    secure: bool = False  # served over TLS: the cookie travels over nothing else
