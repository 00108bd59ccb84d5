"""Where a server's part of this room is, and the words that its files share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KIND = "InferenceService"


@dataclass(frozen=True, slots=True)
class Place:
    """Where the gateway listens, and where the room's processes keep their files."""

    host: str
    port: int
    folder: str
    jobs: str  # the jobs' folders
    python: str  # of replicas on this machine
    tls_cert: str | None = None
    tls_key: str | None = None
    otlp: tuple[str, int] | None = None  # the collector of spans
    snapshots: str = ""  # the folder of what clients carried along


def report_of(progress: Mapping[str, Mapping[str, Any]], job_id: str) -> Mapping[str, Any]:
    """The numbers that a replica reported last."""
    found = (progress.get(job_id) or {}).get("metrics")
    return found if isinstance(found, Mapping) else {}
