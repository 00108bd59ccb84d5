"""Whether a request may come in at all, before anything is looked up: whom it is addressed to, and which page sent it.

A name that an attacker's DNS points at this machine gives itself away by ``Host``; a foreign page by ``Origin`` or
``Sec-Fetch-Site``. Both are refused on every method, on streams and on WebSockets.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any

from penstock.base.errors import Forbidden

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_WILDCARDS = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - names to leave out, not to bind
_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
_COOKIE_BYTES = 8192


class Guard:
    """``hosts`` are the further names that the server answers to: its bind address, and those it was told of."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self.hosts = _LOOPBACK | {_plain(host) for host in hosts if host not in _WILDCARDS}
        self._good: set[bytes] = set()  # values of Host that passed; bounded by ``_remember``

    def check(self, scope: Any, headers: dict[bytes, bytes]) -> None:
        """Raises Forbidden."""
        host = headers.get(b"host", b"")
        if host not in self._good:
            self._check_host(scope, host)
        origin = headers.get(b"origin")
        if origin is not None and not _same_origin(origin, host):
            raise Forbidden("this request comes from a page of another origin", hint="Open the console itself.")
        site = headers.get(b"sec-fetch-site")
        if site is not None:
            _check_site(site, scope, headers)

    def _check_host(self, scope: Any, host: bytes) -> None:
        name = _host_name(host)
        if name is None or not (name in self.hosts or _is_own_address(scope, name)):
            raise Forbidden(
                "the header Host names another server",
                hint="Use the address that `penstock up` printed, or start it with --allowed-host NAME.",
            )
        if name in self.hosts and len(self._good) < 256:
            self._good.add(host)


def fold(raw: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name. Raises Forbidden where one that decides about access is given twice."""
    headers: dict[bytes, bytes] = {}
    for name, value in raw:
        if name not in headers:
            headers[name] = value
        elif name in (b"host", b"origin", b"authorization", b"sec-fetch-site"):
            raise Forbidden(f"the header {name.decode('latin-1')} is given twice")
        else:
            headers[name] += (b"; " if name == b"cookie" else b", ") + value
    return headers


def credential(headers: dict[bytes, bytes], cookie: str) -> tuple[str, str] | None:
    """(what was shown, "bearer" or "cookie"); a bearer token goes before the cookie."""
    shown = headers.get(b"authorization")
    if shown is not None:
        scheme, _, secret = shown.partition(b" ")
        return (secret.strip().decode("latin-1") if scheme.lower() == b"bearer" else "", "bearer")
    jar = headers.get(b"cookie")
    if jar is None or len(jar) > _COOKIE_BYTES:
        return None
    try:
        found = SimpleCookie(jar.decode("latin-1")).get(cookie)
    except CookieError:
        return None
    return (found.value, "cookie") if found else None


def _host_name(host: bytes) -> str | None:
    """The name in ``name:port``; any port will do, since tunnels change it."""
    try:
        text = host.decode("ascii").lower()
    except UnicodeDecodeError:
        return None
    if text.startswith("["):
        name, closed, rest = text[1:].partition("]")
        if not closed:
            return None
    else:
        name, colon, rest = text.partition(":")
        rest = colon + rest
    if rest and not (rest[0] == ":" and rest[1:].isdigit()):
        return None
    return _plain(name)


def _plain(name: str) -> str:
    return name.lower().strip("[]").removesuffix(".")


def _is_own_address(scope: Any, name: str) -> bool:
    """An address (not a name) that the connection itself was made to: DNS had no part in it."""
    try:
        return bool(scope.get("server")) and ipaddress.ip_address(name) == ipaddress.ip_address(scope["server"][0])
    except ValueError:
        return False


def _same_origin(origin: bytes, host: bytes) -> bool:
    """Name and port must be those of Host: another port of this machine may serve a stranger's notebook."""
    scheme, found, rest = origin.decode("latin-1").lower().partition("://")
    if not found or scheme not in _PORTS:
        return False
    return _with_port(rest, scheme) == _with_port(host.decode("latin-1").lower(), scheme)


def _with_port(host: str, scheme: str) -> str:
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit():
        return f"{name}:{port}"
    return f"{host}:{_PORTS[scheme]}"


def _check_site(site: bytes, scope: Any, headers: dict[bytes, bytes]) -> None:
    if site in (b"same-origin", b"none"):
        return
    # A link on another port of this machine may be followed; nothing else may come from there.
    opened = headers.get(b"sec-fetch-mode") == b"navigate" and scope.get("method") in ("GET", "HEAD")
    if site != b"same-site" or not opened:
        raise Forbidden("this request comes from a page of another site", hint="Open the console itself.")
