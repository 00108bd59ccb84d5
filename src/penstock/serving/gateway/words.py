"""Names that several files of the gateway spell: of clusters, files and filters."""

from __future__ import annotations

from typing import Any

from penstock.serving.gateway.spec import ServiceRoute

ROUTES = "gateway"
ADMIN = "admin.sock"  # in the folder in which Envoy runs
RATE_LIMIT = "rate_limit"


def typed(kind: str, /, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/{kind}", **fields}


def seconds(value: float) -> str:
    return f"{value:.3f}s"


def cluster_name(service: ServiceRoute, version: int, *, grpc: bool = False) -> str:
    """`project/name/3`; a version's gRPC port is a cluster of its own, `project/name/3/grpc`."""
    return f"{service.id}/{version}" + ("/grpc" if grpc else "")


def comparator_name(address: tuple[str, int]) -> str:
    return f"comparator-{address[0].replace(':', '-').replace('.', '-')}-{address[1]}"


def eds_file(cluster: str) -> str:
    return f"eds/{cluster.replace('/', '.')}.json"


def version_of_cluster(cluster: str) -> tuple[str, str, int] | None:
    """Project, service and version; None of a cluster that is none of a service."""
    parts = cluster.split("/")
    if len(parts) in (3, 4) and parts[2].isdecimal() and parts[3:] in ([], ["grpc"]):
        return parts[0], parts[1], int(parts[2])
    return None
