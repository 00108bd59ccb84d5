"""From the gateway's spec to Envoy's files: text in, text out.

One file per resource, because Envoy reads a whole file again when it changes, and an EDS file may hold one cluster only.
What changes often (a weight, an endpoint) never touches a listener or a cluster: those would drain connections.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from penstock.serving.gateway import routes
from penstock.serving.gateway.auth import FILTER_SOURCE
from penstock.serving.gateway.spec import Backend, Gateway, ServiceRoute, VersionRoute
from penstock.serving.gateway.words import (
    ADMIN,
    RATE_LIMIT,
    ROUTES,
    cluster_name,
    comparator_name,
    eds_file,
    seconds,
    typed,
)

BOOTSTRAP, CLUSTERS, LISTENERS, ROUTE_FILE = "bootstrap.json", "cds/all.json", "lds/all.json", "rds/all.json"
LIMITS, CERTIFICATE = "ecds/rate_limit.json", "sds/gateway.json"

# Upper ends in ms. Envoy counts whole milliseconds, rounded down: one that is told as 3 took 3 to 4 ms, so that what it
# counts up to 3.5 are those of less than 4 ms. counters.py adds the half again.
BUCKETS_MS = (*range(1, 21), *(round(20 * 1.15**step) for step in range(1, 58)), 120_000, 300_000, 600_000)

_API = "type.googleapis.com/envoy.config"
_MANY = 1_000_000  # circuit breakers are not what bounds load here: replicas refuse for themselves, with 503
_FOLD = 100_000  # percent: one healthy replica of a thousand keeps all traffic off the activator


def render(gateway: Gateway, folder: str, inlined: Collection[str] = ()) -> dict[str, str]:
    """Every file by its path in ``folder``, which is absolute: Envoy is told where to look. Clusters ``inlined`` have their
    endpoints with them, the others a file of their own.
    """
    files = {BOOTSTRAP: json.dumps(_bootstrap(folder), sort_keys=True) + "\n"}
    clusters: list[dict[str, Any]] = []
    for name, service, version, grpc in _versions(gateway):
        endpoints = _endpoints(name, service, version, grpc=grpc)
        clusters.append(_cluster(name, service, folder, grpc=grpc))
        if name in inlined:
            del clusters[-1]["eds_cluster_config"]
            clusters[-1] |= {"type": "STATIC", "load_assignment": endpoints}
        else:
            assignment = {"@type": f"{_API}.endpoint.v3.ClusterLoadAssignment", **endpoints}
            files[eds_file(name)] = response([assignment])
    for address in sorted({service.comparator for service in gateway.services if service.comparator}):
        clusters.append(_comparator_cluster(address))
    if gateway.otlp is not None:
        clusters.append(_static("otlp", gateway.otlp, http2=False))
    files[CLUSTERS] = response(clusters)
    files[ROUTE_FILE] = response([routes.configuration(gateway)])
    files[LIMITS] = response([_rate_limits(gateway.services)])
    if gateway.tls_cert and gateway.tls_key:
        files[CERTIFICATE] = response([_certificate(gateway.tls_cert, gateway.tls_key)])
    files[LISTENERS] = response([_listener(gateway, folder)])
    return files


def _versions(gateway: Gateway) -> Iterator[tuple[str, ServiceRoute, VersionRoute, bool]]:
    for service in sorted(gateway.services, key=lambda service: service.id):
        for version in sorted(service.versions, key=lambda version: version.version):
            for grpc in (False, True) if any(one.grpc_port for one in version.backends) else (False,):
                yield cluster_name(service, version.version, grpc=grpc), service, version, grpc


def inline(gateway: Gateway, files: Collection[str], most: int) -> set[str]:
    """Which clusters have their endpoints with them, where ``most`` files can be watched and ``files`` are already: a new
    replica then makes their cluster anew, with new connections.
    """
    names = [name for name, *_ in _versions(gateway)]
    first = sorted(names, key=lambda name: eds_file(name) not in files)  # stable: nothing moves without need
    return set(first[most:])


def response(resources: Iterable[Mapping[str, Any]]) -> str:
    """A resource a line. Envoy tells in its statistics which version of a file it goes by, so that is its content's."""
    text = ",\n".join(json.dumps(resource, sort_keys=True) for resource in resources)
    return f'{{"version_info": "{hashlib.sha256(text.encode()).hexdigest()[:16]}", "resources": [\n{text}\n]}}\n'


def version_of(text: str) -> str:
    """Of what `response` made."""
    return text[18:34]


def _watched(folder: str, file: str) -> dict[str, Any]:
    return {"path_config_source": {"path": f"{folder}/{file}"}, "resource_api_version": "V3"}


def _address(address: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": address, "port_value": port}}


# -------------------------------------------------------------------------------------------------------- bootstrap


def _bootstrap(folder: str) -> dict[str, Any]:
    bounds = [high - 0.5 for high in BUCKETS_MS]
    return {
        "node": {"id": "penstock-gateway", "cluster": "penstock"},
        "admin": {"address": {"pipe": {"path": ADMIN, "mode": 0o600}}},  # below Envoy's folder, in which it runs
        "dynamic_resources": {
            "cds_config": _watched(folder, CLUSTERS),
            "lds_config": _watched(folder, LISTENERS),
        },
        "stats_config": {"histogram_bucket_settings": [{"match": {"prefix": "cluster."}, "buckets": bounds}]},
        "stats_flush_interval": "0.5s",  # a histogram is as old as the last flush
        "cluster_manager": {"outlier_detection": {"event_log_path": f"{folder}/ejections.log"}},
    }


# --------------------------------------------------------------------------------------------------------- clusters


def _protocol(*, http2: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            explicit_http_config=options,
            # Servers close connections that idle, uvicorn after 5 s: a request must not meet one that is being closed.
            common_http_protocol_options={"idle_timeout": "4s"},
        )
    }


def _cluster(name: str, service: ServiceRoute, folder: str, *, grpc: bool) -> dict[str, Any]:
    limits = {"max_connections": _MANY, "max_pending_requests": _MANY, "max_requests": _MANY, "max_retries": _MANY}
    return {
        "@type": f"{_API}.cluster.v3.Cluster",
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": _watched(folder, eds_file(name))},
        "connect_timeout": "2s",
        "lb_policy": "LEAST_REQUEST",
        "ignore_health_on_host_removal": True,  # else a replica that leaves stays until it fails its health check
        "common_lb_config": {"ignore_new_hosts_until_first_hc": True, "update_merge_window": "0s"},
        "circuit_breakers": {"thresholds": [limits]},
        "health_checks": [_health_check("" if grpc else service.health, http2=service.protocol == "http2")],
        "outlier_detection": _outliers(),
        "typed_extension_protocol_options": _protocol(http2=grpc or service.protocol == "http2"),
    }


def _health_check(path: str, *, http2: bool) -> dict[str, Any]:
    how: dict[str, Any] = {"tcp_health_check": {}}
    if path:
        how = {"http_health_check": {"path": path, "codec_client_type": "HTTP2" if http2 else "HTTP1"}}
    return {
        "timeout": "2s",
        "interval": "1s",
        "no_traffic_interval": "5s",
        "no_traffic_healthy_interval": "5s",
        "unhealthy_threshold": 3,  # a busy runtime may be late once
        "healthy_threshold": 1,
        **how,
    }


def _outliers() -> dict[str, Any]:
    """Who refuses or resets connections twice in a row is left out at once, even the only replica: there is the activator
    then, and without one Envoy tries all rather than none. Answers of 500 and above must be twenty in a row.
    """
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 2,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_local_origin_success_rate": 0,
        "consecutive_5xx": 20,
        "enforcing_consecutive_5xx": 100,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "interval": "0.5s",
        "base_ejection_time": "2s",
        "max_ejection_time": "30s",
        "max_ejection_percent": 100,
        "successful_active_health_check_uneject_host": False,
    }


def _endpoints(name: str, service: ServiceRoute, version: VersionRoute, *, grpc: bool) -> dict[str, Any]:
    """The activator stands behind the replicas, with the lower priority: Envoy goes there by itself while none is healthy."""

    def replica(backend: Backend) -> dict[str, Any]:
        return {"endpoint": {"address": _address(backend.address, backend.grpc_port if grpc else backend.port)}}

    backends = sorted(version.backends, key=lambda one: (one.address, one.port))
    groups: list[dict[str, Any]] = [
        {"priority": 0, "lb_endpoints": [replica(one) for one in backends if one.grpc_port or not grpc]}
    ]
    if service.activator is not None and not grpc:
        unchecked = {"disable_active_health_check": True}
        activator = {"endpoint": {"address": _address(*service.activator), "health_check_config": unchecked}}
        groups.append({"priority": 1, "lb_endpoints": [activator]})
    return {
        "cluster_name": name,
        "endpoints": groups,
        "policy": {"overprovisioning_factor": _FOLD},
    }


def _static(name: str, address: tuple[str, int], *, http2: bool) -> dict[str, Any]:
    return {
        "@type": f"{_API}.cluster.v3.Cluster",
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(*address)}}]}],
        },
        "typed_extension_protocol_options": _protocol(http2=http2),
    }


# --------------------------------------------------------------------------------------------------------- listener


def _certificate(cert: str, key: str) -> dict[str, Any]:
    """Read again when either file is renewed by a rename in its folder."""
    return {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": "gateway",
        "tls_certificate": {
            "certificate_chain": {"filename": cert},
            "private_key": {"filename": key},
            "watched_directory": {"path": cert.rsplit("/", 1)[0] or "/"},
        },
    }


def _listener(gateway: Gateway, folder: str) -> dict[str, Any]:
    chain: dict[str, Any] = {
        "filters": [{"name": "http", "typed_config": _connection(gateway, folder)}],
    }
    if gateway.tls_cert and gateway.tls_key:
        secret = {"name": "gateway", "sds_config": _watched(folder, CERTIFICATE)}
        context = {"alpn_protocols": ["h2", "http/1.1"], "tls_certificate_sds_secret_configs": [secret]}
        chain["transport_socket"] = {
            "name": "tls",
            "typed_config": typed(
                "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", common_tls_context=context
            ),
        }
    return {
        "@type": f"{_API}.listener.v3.Listener",
        "name": "gateway",
        "address": _address(gateway.host, gateway.port),
        "per_connection_buffer_limit_bytes": 1 << 20,
        "filter_chains": [chain],
    }


def _connection(gateway: Gateway, folder: str) -> dict[str, Any]:
    secured = gateway.tls_cert is not None
    config: dict[str, Any] = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "gateway",
        "rds": {"route_config_name": ROUTES, "config_source": _watched(folder, ROUTE_FILE)},
        "use_remote_address": True,
        "normalize_path": True,
        "server_name": "penstock",
        "strip_any_host_port": True,
        "request_headers_timeout": "10s",
        "stream_idle_timeout": "300s",  # each route has its own
        "common_http_protocol_options": {"max_headers_count": 200, "headers_with_underscores_action": "ALLOW"},
        "http2_protocol_options": {"max_concurrent_streams": 1000},
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "local_reply_config": routes.local_replies(),
        "http_filters": _filters(folder),
        "forward_client_cert_details": "SANITIZE",
        "scheme_header_transformation": {"scheme_to_overwrite": "https" if secured else "http"},
    }
    if gateway.access_log:
        log = typed("envoy.extensions.access_loggers.file.v3.FileAccessLog", path=gateway.access_log)
        log["log_format"] = {"json_format": dict(_ACCESS), "omit_empty_values": True}
        config["access_log"] = [{"name": "file", "typed_config": log}]
    if gateway.otlp is not None:
        config["tracing"] = _tracing(gateway.otlp)
    return config


_ACCESS = {
    "at": "%START_TIME%",
    "method": "%REQ(:METHOD)%",
    "host": "%REQ(:AUTHORITY)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "status": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "received": "%BYTES_RECEIVED%",
    "sent": "%BYTES_SENT%",
    "ms": "%DURATION%",
    "upstream_ms": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "tries": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "version": "%UPSTREAM_CLUSTER_RAW%",
    "replica": "%UPSTREAM_HOST%",
    "from": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "key": "%DYNAMIC_METADATA(penstock:key)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "traceparent": "%REQ(TRACEPARENT)%",
}


def _filters(folder: str) -> list[dict[str, Any]]:
    """In the order a request meets them. Those that only some services use are off, and each route turns them on."""
    limit_type = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
    keys = typed("envoy.extensions.filters.http.lua.v3.Lua", source_codes={"keys": {"inline_string": FILTER_SOURCE}})
    filters: list[dict[str, Any]] = [
        {"name": routes.KEYS, "disabled": True, "typed_config": keys},
        {
            "name": RATE_LIMIT,
            "config_discovery": {"config_source": _watched(folder, LIMITS), "type_urls": [limit_type]},
        },
    ]
    filters.append({"name": routes.COMPARE, "disabled": True, "typed_config": _comparator()})
    router = typed("envoy.extensions.filters.http.router.v3.Router")
    filters += [
        {"name": "grpc_stats", "typed_config": typed("envoy.extensions.filters.http.grpc_stats.v3.FilterConfig")},
        {"name": "router", "typed_config": router},
    ]
    return filters


def _comparator() -> dict[str, Any]:
    """Copies only: nobody waits for the comparator, and without it requests go on as before. Routes say which one, and
    what of an exchange it is sent.
    """
    nothing = {"request_header_mode": "SKIP", "response_header_mode": "SKIP"}
    nothing |= {"request_body_mode": "NONE", "response_body_mode": "NONE"}
    nothing |= {"request_trailer_mode": "SKIP", "response_trailer_mode": "SKIP"}
    return typed(
        "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": "comparator"}},
        observability_mode=True,
        failure_mode_allow=True,
        deferred_close_timeout="5s",
        processing_mode=nothing,
    )


def _comparator_cluster(address: tuple[str, int]) -> dict[str, Any]:
    """One that hangs is noticed within seconds; what it does not keep up with is not copied."""
    cluster = _static(comparator_name(address), address, http2=True)
    http2 = {
        "connection_keepalive": {"interval": "1s", "timeout": "1s"},
        "initial_stream_window_size": 1 << 20,
        "initial_connection_window_size": 16 << 20,
    }
    for options in cluster["typed_extension_protocol_options"].values():
        options["explicit_http_config"] = {"http2_protocol_options": http2}
    return {**cluster, "connect_timeout": "0.25s", "circuit_breakers": {"thresholds": [{"max_requests": 4096}]}}


def _rate_limits(services: Iterable[ServiceRoute]) -> dict[str, Any]:
    """One filter for all, apart from the routes: a weight that changes must not fill the buckets again."""
    descriptors = [
        {
            "entries": [{"key": "service", "value": service.id}],
            "token_bucket": {
                "max_tokens": service.rate_limit.requests,
                "tokens_per_fill": service.rate_limit.requests,
                "fill_interval": seconds(service.rate_limit.per),
            },
        }
        for service in sorted(services, key=lambda service: service.id)
        if service.rate_limit is not None
    ]
    whole = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    of_route = {
        "descriptor_key": "service",
        "metadata_key": {"key": "penstock", "path": [{"key": "service"}]},
        "source": "ROUTE_ENTRY",
        "skip_if_absent": True,
    }
    config = typed(
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="rate_limit",
        token_bucket={"max_tokens": 4294967295, "tokens_per_fill": 4294967295, "fill_interval": "1s"},
        filter_enabled=whole,
        filter_enforced=whole,
        always_consume_default_token_bucket=False,
        descriptors=descriptors,
        rate_limits=[{"actions": [{"metadata": of_route}]}],
    )
    return {
        "@type": f"{_API}.core.v3.TypedExtensionConfig",
        "name": RATE_LIMIT,
        "typed_config": config,
    }


def _tracing(otlp: tuple[str, int]) -> dict[str, Any]:
    uri = {"uri": f"http://{otlp[0]}:{otlp[1]}/v1/traces", "cluster": "otlp", "timeout": "2s"}
    config = typed(
        "envoy.config.trace.v3.OpenTelemetryConfig", service_name="penstock-gateway", http_service={"http_uri": uri}
    )
    return {"provider": {"name": "envoy.tracers.opentelemetry", "typed_config": config}, "spawn_upstream_span": True}
