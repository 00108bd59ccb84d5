"""Envoy's route table: who is called by which host and path, in which shares, and what is tried again."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from penstock.serving.gateway.spec import Gateway, Match, ServiceRoute, VersionRoute
from penstock.serving.gateway.words import ROUTES, cluster_name, comparator_name, seconds, typed

KEYS, COMPARE = "keys", "compare"
SERVICE_HEADER = "x-penstock-service"  # names the service where a path cannot: gRPC's is the method's
VERSION_HEADER = "x-penstock-version"
PREFIX_HEADER = "x-penstock-prefix"  # to the comparator: what was taken off the path

# What is tried again, on another replica: connections refused or reset, streams refused, and 503 (a full queue). An
# inference leaves nothing behind, so that one whose replica died in the middle may be asked again.
RETRY_ON = ("connect-failure", "refused-stream", "reset-before-request", "reset", "retriable-status-codes")
RETRIABLE = (503,)


def configuration(gateway: Gateway) -> dict[str, Any]:
    """A host's routes are those of the services that name it, with what they have for any host behind."""
    services = sorted(gateway.services, key=lambda service: service.id)
    hosts = sorted({match.host.lower() for service in services for match in service.matches if match.host})
    named = [
        _virtual_host(host, [host], [one for one in services if any(m.host.lower() == host for m in one.matches)])
        for host in hosts
    ]
    return {
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": ROUTES,
        "validate_clusters": True,
        "virtual_hosts": [*named, _virtual_host("", ["*"], services)],
    }


def _virtual_host(host: str, domains: list[str], services: Iterable[ServiceRoute]) -> dict[str, Any]:
    """The longest prefix first; at the same length what names this host, then the order of the services' names."""
    found: list[tuple[int, int, ServiceRoute, Match]] = []
    seen: set[str] = set()
    named: list[dict[str, Any]] = []
    for service in services:
        for match in service.matches:
            if match.host.lower() in ("", host):
                found.append((-len(match.prefix.rstrip("/")), 0 if match.host else 1, service, match))
        named += _by_header(service)
    table: list[dict[str, Any]] = []
    for _, _, service, match in sorted(found, key=lambda one: one[:2]):
        prefix = match.prefix.rstrip("/")
        if prefix not in seen:
            seen.add(prefix)
            table += _by_path(service, prefix, keep=match.keep)
    return {
        "name": host or "any",
        "domains": domains,
        "routes": [*named, *table],
        "include_request_attempt_count": True,
    }


def _by_header(service: ServiceRoute) -> list[dict[str, Any]]:
    """gRPC has no path of ours: the service is named by a header, as metadata. Where no replica takes it, the activator holds it."""
    there = _has_grpc(service)
    if not there and service.activator is None:
        return []
    named = {"name": SERVICE_HEADER, "string_match": {"exact": service.id}}
    return [_route(service, {"prefix": "/", "grpc": {}, "headers": [named]}, "", grpc=there)]


def _by_path(service: ServiceRoute, prefix: str, *, keep: bool) -> list[dict[str, Any]]:
    """`/p/n/...` and `/p/n` itself, but not `/p/nothing`."""
    match = {"path_separated_prefix": prefix} if prefix else {"prefix": "/"}
    taken = prefix if prefix and not keep else ""
    plain = _http(service, match, taken)
    return [_route(service, {**match, "grpc": {}}, taken, grpc=True), plain] if _has_grpc(service) else [plain]


def _http(service: ServiceRoute, match: dict[str, Any], taken: str) -> dict[str, Any]:
    """Where a service has a comparator, each exchange is copied to it; which of them count, it decides itself."""
    route = _route(service, match, taken)
    if service.comparator is None:
        return route
    metadata = [{"key": SERVICE_HEADER, "value": service.id}, {"key": PREFIX_HEADER, "value": taken or "/"}]
    whole = {"request_header_mode": "SEND", "response_header_mode": "SEND"}
    whole |= {"request_body_mode": "STREAMED", "response_body_mode": "STREAMED"}
    whole |= {"request_trailer_mode": "SKIP", "response_trailer_mode": "SEND"}
    overrides = {
        "grpc_service": {"envoy_grpc": {"cluster_name": comparator_name(service.comparator)}},
        "grpc_initial_metadata": metadata,
        "processing_mode": whole,
    }
    copy = typed("envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute", overrides=overrides)
    return {**route, "typed_per_filter_config": {**route.get("typed_per_filter_config", {}), COMPARE: copy}}


def _has_grpc(service: ServiceRoute) -> bool:
    return any(backend.grpc_port for version in service.versions for backend in version.backends)


def _share(of_whole: int) -> dict[str, Any]:
    return {"numerator": of_whole, "denominator": "TEN_THOUSAND"}


def _route(service: ServiceRoute, match: dict[str, Any], taken: str, *, grpc: bool = False) -> dict[str, Any]:
    """``taken`` off the path; what is left begins with `/` again."""
    action = _action(service, grpc=grpc)
    route: dict[str, Any] = {"name": service.id, "match": match}
    if action is None:
        text = f'{{"error": "{service.id} has no version that takes requests"}}\n'
        return {**route, "direct_response": {"status": 503, "body": {"inline_string": text}}}
    if taken:
        action["regex_rewrite"] = {"pattern": {"regex": f"^{re.escape(taken)}(/|$)"}, "substitution": "/"}
    route["route"] = action
    if service.rate_limit is not None:
        route["metadata"] = {"filter_metadata": {"penstock": {"service": service.id}}}  # which of its buckets
    if service.keys:
        context = {digest.lower(): True for digest in sorted(service.keys)}
        lua = typed("envoy.extensions.filters.http.lua.v3.LuaPerRoute", name="keys", filter_context=context)
        route["typed_per_filter_config"] = {KEYS: lua}
    return route


def _action(service: ServiceRoute, *, grpc: bool) -> dict[str, Any] | None:
    versions = sorted(service.versions, key=lambda version: version.version)
    taking = [
        one for one in versions if one.weight and (not grpc or any(backend.grpc_port for backend in one.backends))
    ]
    if not taking:
        return None
    action: dict[str, Any] = {
        "weighted_clusters": {"clusters": [_weighted(service, one, grpc=grpc) for one in taking]},
        "timeout": "0s",  # answers may stream for as long as something comes
        "idle_timeout": seconds(service.timeout + 1),  # the try's own comes first, and is counted as this version's
        "retry_policy": _retries(service, grpc=grpc),
    }
    mirrors = (
        [one for one in versions if one.mirror and one.backends] if service.comparator is None and not grpc else []
    )
    if mirrors:
        action["request_mirror_policies"] = [
            {
                "cluster": cluster_name(service, one.version),
                "runtime_fraction": {"default_value": _share(one.mirror)},
            }
            for one in mirrors
        ]
    return action


def _retries(service: ServiceRoute, *, grpc: bool) -> dict[str, Any]:
    """On another replica each time. The third try goes to the activator, where there is one: the only replica may have died
    a moment ago, before anybody could know.
    """
    others = typed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")
    policy = {
        "retry_on": ",".join(RETRY_ON),
        "num_retries": service.retries,
        "retriable_status_codes": list(RETRIABLE),
        "per_try_idle_timeout": seconds(service.timeout),
        "retry_host_predicate": [{"name": "previous_hosts", "typed_config": others}],
        "host_selection_retry_max_attempts": 5,
        "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.05s"},
    }
    if service.activator is not None and not grpc:
        after = typed(
            "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", update_frequency=2
        )
        policy["retry_priority"] = {"name": "envoy.retry_priorities.previous_priorities", "typed_config": after}
    return policy


def _weighted(service: ServiceRoute, version: VersionRoute, *, grpc: bool) -> dict[str, Any]:
    def header(key: str, value: str) -> dict[str, Any]:
        return {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}

    return {
        "name": cluster_name(service, version.version, grpc=grpc),
        "weight": version.weight,
        "request_headers_to_add": [
            header(SERVICE_HEADER, service.id), header(VERSION_HEADER, str(version.version))
        ],
        "response_headers_to_add": [header(VERSION_HEADER, str(version.version))],
    }  # fmt: skip


def local_replies() -> dict[str, Any]:
    """What Envoy answers by itself, in the words of the Open Inference Protocol: an object with ``error``."""
    body = {"json_format": {"error": "%LOCAL_REPLY_BODY%", "request_id": "%REQ(X-REQUEST-ID)%"}}

    def told(which: dict[str, Any], text: str, *, again: bool = True) -> dict[str, Any]:
        after = {"header": {"key": "retry-after", "value": "1"}, "append_action": "ADD_IF_ABSENT"}
        return {
            "filter": which,
            "body": {"inline_string": text},
            "body_format_override": body,
            **({"headers_to_add": [after]} if again else {}),
        }

    def mapper(flag: str, text: str, *, again: bool = True) -> dict[str, Any]:
        return told({"response_flag_filter": {"flags": [flag]}}, text, again=again)

    too_many = {"op": "EQ", "value": {"default_value": 429, "runtime_key": "penstock.too_many"}}
    return {
        "mappers": [
            told(
                {"status_code_filter": {"comparison": too_many}}, "the service's rate limit is reached: try again later"
            ),
            mapper("NR", "no inference service is at this address", again=False),
            mapper("UH", "no replica of the service is ready"),
            mapper("UF", "the replica cannot be reached"),
            mapper("UC", "the replica ended the connection before it answered"),
            mapper("SI", "the service did not answer in time", again=False),
            mapper("UT", "the service did not answer in time", again=False),
        ],
        "body_format": body,
    }
