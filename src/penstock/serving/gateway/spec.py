"""What the gateway is told: the routes of every inference service. Pure; render.py makes Envoy's files of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from penstock.serving.state import WHOLE


@dataclass(frozen=True, slots=True)
class Backend:
    """A replica that takes requests. One that drains is not among them."""

    replica: str
    address: str
    port: int
    grpc_port: int = 0


@dataclass(frozen=True, slots=True)
class VersionRoute:
    """``weight`` of WHOLE of the requests go to this version; ``mirror`` of WHOLE of all are sent to it as copies, whose
    answers no caller sees.
    """

    version: int
    backends: tuple[Backend, ...]
    weight: int = WHOLE
    mirror: int = 0


@dataclass(frozen=True, slots=True)
class RateLimit:
    """``requests`` each ``per`` seconds, over all callers of the service."""

    requests: int
    per: float


@dataclass(frozen=True, slots=True)
class Match:
    """``host`` empty: any. ``prefix`` is taken off before the runtime sees the path, unless ``keep``."""

    host: str = ""
    prefix: str = "/"
    keep: bool = False


@dataclass(frozen=True, slots=True)
class ServiceRoute:
    """``activator``: who holds requests while there is no replica. ``comparator``: who is sent the answers of the stable
    version and compares the candidate's with them. ``keys``: SHA-256 of API keys; empty: everybody may call. ``health``: the
    path that a ready replica answers with 200; empty: that its port takes connections is enough. Addresses are IPs.
    """

    project: str
    name: str
    matches: tuple[Match, ...]
    versions: tuple[VersionRoute, ...]
    timeout: float = 60.0
    retries: int = 2
    rate_limit: RateLimit | None = None
    keys: tuple[str, ...] = ()
    activator: tuple[str, int] | None = None
    comparator: tuple[str, int] | None = None
    protocol: Literal["http1", "http2"] = "http1"
    health: str = ""

    @property
    def id(self) -> str:
        return f"{self.project}/{self.name}"


@dataclass(frozen=True, slots=True)
class Gateway:
    """All of it. Ports 0 are none. ``otlp``: where spans are sent (host, port); None: traces are passed on, not exported."""

    host: str
    port: int
    services: tuple[ServiceRoute, ...] = ()
    tls_cert: str | None = None
    tls_key: str | None = None
    access_log: str | None = None
    otlp: tuple[str, int] | None = None
