"""What must hold before Envoy is told anything: it would take some mistakes without a word, and serve 503 for them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from penstock.base.errors import Problem
from penstock.base.ids import check_name
from penstock.serving.gateway.spec import Gateway, Match, ServiceRoute, VersionRoute
from penstock.serving.state import WHOLE

# Envoy passes over a token that it does not know, with a line in its log.
RETRY_TOKENS = frozenset({
    "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited", "retriable-4xx",
    "refused-stream", "retriable-status-codes", "retriable-headers", "http3-post-connect-failure",
    "cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
})  # fmt: skip

_LONG = 366 * 86400.0
_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def check(gateway: Gateway) -> list[Problem]:
    """Of what is no service's own: without it nothing can be published."""
    return list(_whole(gateway))


def settle(gateway: Gateway) -> tuple[Gateway, list[Problem]]:
    """What can be published, and what was left out with the reason why. One service's mistake costs the others nothing, and
    itself no more than it must: a replica, a route, else the service.
    """
    problems: list[Problem] = []
    taken = _places(gateway.services)
    kept: dict[str, ServiceRoute] = {}
    for service in gateway.services:
        path = f"services.{service.id}"
        found = list(_service(service, path))
        if service.id in kept:
            found.append(Problem(path, "is there twice"))
        problems += found
        if not found:
            versions, lost = _reachable(service, path)
            matches, refused = _own(service, taken, path)
            problems += lost + refused
            kept[service.id] = replace(service, versions=versions, matches=matches)
    return replace(gateway, services=tuple(kept.values())), problems


def _whole(gateway: Gateway) -> Iterator[Problem]:
    if not _is_ip(gateway.host):
        yield Problem("host", f"{gateway.host!r} is no IP address")
    if not _is_port(gateway.port):
        yield Problem("port", f"{gateway.port} is no port")
    if (gateway.tls_cert is None) != (gateway.tls_key is None):
        yield Problem("tls_cert", "a certificate and its key come together")
    for field, path in (
        ("tls_cert", gateway.tls_cert),
        ("tls_key", gateway.tls_key),
        ("access_log", gateway.access_log),
    ):
        if path is not None and not path.startswith("/"):
            yield Problem(field, f"{path!r} is no absolute path")


def _home(service: ServiceRoute) -> str:
    return f"/{service.project}/{service.name}"


def _places(services: Iterable[ServiceRoute]) -> dict[tuple[str, str], str]:
    """Whose each host and path is: `/PROJECT/NAME` is the service's of that name, the rest is the first one's."""
    services = list(services)
    taken = {("", _home(service)): service.id for service in services}
    for service in services:
        for match in service.matches:
            taken.setdefault((match.host.lower(), match.prefix.rstrip("/")), service.id)
    return taken


def _own(
    service: ServiceRoute, taken: Mapping[tuple[str, str], str], path: str
) -> tuple[tuple[Match, ...], list[Problem]]:
    """A longer path would be asked first, so that what lies below another's `/PROJECT/NAME` is that one's too."""
    kept, problems = [], []
    for match in service.matches:
        prefix = match.prefix.rstrip("/")
        below = "/".join(prefix.split("/")[:3])
        owners = (taken[match.host.lower(), prefix], taken.get(("", below)) if not match.host else None)
        other = next((owner for owner in owners if owner not in (None, service.id)), None)
        if not _PATH.fullmatch(match.prefix):
            what = f"{match.prefix!r} is no path: it begins with / and has A-Z a-z 0-9 . _ ~ -"
        elif match.host and not _HOST.fullmatch(match.host):
            what = f"{match.host!r} is no host (without its port; *.example.com is one)"
        elif other is not None:
            what = f"{match.host}{match.prefix} is {other}'s already"
        else:
            kept.append(match)
            continue
        problems.append(Problem(f"{path}.matches", what))
    return tuple(kept), problems


def _reachable(service: ServiceRoute, path: str) -> tuple[tuple[VersionRoute, ...], list[Problem]]:
    versions, problems = [], []
    seen: dict[tuple[str, int], int] = {}
    for version in service.versions:
        kept = []
        for backend in version.backends:
            owner = seen.setdefault((backend.address, backend.port), version.version)
            if not _is_ip(backend.address):
                what = f"{backend.address!r} is no IP address: Envoy asks no name server for a replica"
            elif not _is_port(backend.port) or not (backend.grpc_port == 0 or _is_port(backend.grpc_port)):
                what = f"{backend.port} or {backend.grpc_port} is no port"
            elif owner != version.version:
                what = f"{backend.address}:{backend.port} is another version's already"
            else:
                kept.append(backend)
                continue
            problems.append(Problem(f"{path}.versions.{version.version}.{backend.replica}", what))
        versions.append(replace(version, backends=tuple(kept)))
    return tuple(versions), problems


def _service(service: ServiceRoute, path: str) -> Iterator[Problem]:
    for field, name in (("project", service.project), ("name", service.name)):
        problem = check_name(name)
        if problem is not None:
            yield Problem(f"{path}.{field}", problem.message)
    versions = [version.version for version in service.versions]
    if len(set(versions)) != len(versions) or any(version < 0 for version in versions):
        yield Problem(f"{path}.versions", "a version is there twice, or is negative")
    weights = [version.weight for version in service.versions]
    if any(weight < 0 for weight in weights) or sum(weights) not in (0, WHOLE):
        yield Problem(f"{path}.versions", f"the weights are {weights}: they must sum to {WHOLE}, or all be 0")
    if any(not 0 <= version.mirror <= WHOLE for version in service.versions):
        yield Problem(f"{path}.versions", f"a mirrored share is from 0 to {WHOLE}")
    if not 0.001 <= service.timeout <= _LONG:
        yield Problem(f"{path}.timeout", f"{service.timeout:g} s: from 1 ms to {_LONG:g} s")
    if service.rate_limit is not None and not (
        1 <= service.rate_limit.requests < 1 << 32 and 0.05 <= service.rate_limit.per <= _LONG
    ):
        yield Problem(f"{path}.rate_limit", f"at least 1 request, in 50 ms to {_LONG:g} s")
    if any(len(key) != 64 or not set(key.lower()) <= set("0123456789abcdef") for key in service.keys):
        yield Problem(f"{path}.keys", "a key's digest is 64 hexadecimal digits")
    for field, address in (("activator", service.activator), ("comparator", service.comparator)):
        if address is not None and not (_is_ip(address[0]) and _is_port(address[1])):
            yield Problem(f"{path}.{field}", f"{address[0]}:{address[1]} is no IP address with a port")


def _is_port(port: int) -> bool:
    return 0 < port < 65536


def _is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def check_rendered(clusters: Iterable[Mapping[str, Any]], routes: Mapping[str, Any]) -> list[Problem]:
    """Of what is rendered: every cluster that a route names is there, and Envoy knows every condition of a retry."""
    known = {cluster["name"] for cluster in clusters}
    problems = []
    for host in routes["virtual_hosts"]:
        for route in host["routes"]:
            for name in _named(route) - known:
                problems.append(Problem(f"routes.{route['name']}", f"names the cluster {name}, which is not there"))
            for token in _tokens(route) - RETRY_TOKENS:
                problems.append(Problem(f"routes.{route['name']}", f"Envoy knows no retry_on {token!r}"))
    return problems


def _named(route: Mapping[str, Any]) -> set[str]:
    action = route.get("route", {})
    found = {one["name"] for one in action.get("weighted_clusters", {}).get("clusters", ())}
    found |= {one["cluster"] for one in action.get("request_mirror_policies", ())}
    for config in route.get("typed_per_filter_config", {}).values():
        copied = config.get("overrides", {}).get("grpc_service", {})
        found |= {copied["envoy_grpc"]["cluster_name"]} if copied else set()
    return found


def _tokens(route: Mapping[str, Any]) -> set[str]:
    policy = route.get("route", {}).get("retry_policy")
    return set() if policy is None else set(policy["retry_on"].split(","))
