"""A replica as a job: what it is submitted as, and what its row and its reports say of the replica."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Row

from penstock.base.ids import new_id
from penstock.jobs.queries import SERVICE
from penstock.jobs.spec import JobSpec
from penstock.jobs.state import FINAL, Phase
from penstock.serving.plan import Seen
from penstock.serving.runtimes.spec import COLLECTOR, Batching, Options
from penstock.serving.spec import ServiceSpec
from penstock.serving.state import ReplicaPhase
from penstock.serving.told import OWN, PHASES, REFUSED, STAGES, Told, killed

VERSION = "penstock.serving/version"
_GRACE_S = 40.0  # beside the drain: what a runtime may need after SIGTERM, and a little
_STEM = 40


@dataclass(frozen=True, slots=True)
class Wanted:
    """One replica to be made. ``python`` runs it; ``host``: the address that it listens at."""

    service: str
    version: int
    spec: ServiceSpec
    pickles: bool
    python: str
    host: str
    at: float
    otlp: tuple[str, int] | None = None


def options(spec: ServiceSpec, otlp: tuple[str, int] | None = None) -> Options:
    """``otlp``: told to every runtime by OpenTelemetry's own variable, unless the service names another collector."""
    batching = Batching(spec.batching.max, spec.batching.preferred, spec.batching.delay)
    return Options(
        batching,
        spec.threads,
        spec.max_queue,
        spec.request_timeout,
        spec.max_body,
        spec.command,
        spec.args,
        spec.health,
        _collector(spec, otlp),
    )


def _collector(spec: ServiceSpec, otlp: tuple[str, int] | None) -> dict[str, str]:
    own = spec.env.get(COLLECTOR)
    if own is not None or otlp is None:
        return {} if own is None else {COLLECTOR: own}
    host, port = otlp
    return {COLLECTOR: f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"}


def job_spec(one: Wanted) -> JobSpec:
    spec = one.spec
    told = Told(
        one.service,
        one.version,
        spec.model_name or one.service,
        spec.model,
        spec.runtime,
        spec.health,
        one.pickles,
        one.host,
        spec.drain,
        one.at,
        options(spec, one.otlp),
    )
    return JobSpec(
        command=(one.python, "-m", "penstock.serving.replica", told.to_json()),
        launcher="none",
        resources=spec.resources,
        environment=spec.environment,
        env=spec.env,
        snapshot=spec.snapshot,
        queue=spec.queue,
        priority=spec.priority,
        engine=spec.engine,
        grace_period=spec.drain + _GRACE_S,
        crash_loop=0,
    )


def as_job(service: str, spec: ServiceSpec) -> JobSpec:
    """A replica of its first version, as far as that is known beforehand."""
    return job_spec(Wanted(service, 1, spec, False, "python", "127.0.0.1", 0.0))


def job_name(service: str, version: int, at: float) -> str:
    return f"{service[:_STEM].rstrip('-')}-v{version}-{new_id(at, os.urandom(10))[-6:].lower()}"


def labels(service: str, version: int | None = None) -> dict[str, str]:
    """Of a replica's job; without a version, what all of the service's have."""
    return {SERVICE: service} if version is None else {SERVICE: service, VERSION: str(version)}


def seen_of(job: Row[Any] | None, report: Mapping[str, Any], address: str) -> Seen:
    """What a job's row and its last report say. ``address``: of the node that it runs on."""
    if job is None:
        return Seen(over=True, message="its job was deleted")
    if job.phase in FINAL:
        said = _last_words(job)
        return Seen(over=True, message=said or (f"{job.reason}: {job.message}" if job.message else str(job.reason)))
    if job.phase == Phase.STOPPING:
        return Seen(ending=True, message=job.message)
    if job.phase != Phase.RUNNING:
        return Seen()
    told = _number(report.get("serving_phase"))
    if told is None or not 0 <= told < len(PHASES):
        return Seen()
    stages = {stage: seconds for stage in STAGES if (seconds := _number(report.get(f"{stage}_s"))) is not None}
    return Seen(
        phase=ReplicaPhase(PHASES[int(told)]),
        port=int(_number(report.get("port")) or 0),
        grpc_port=int(_number(report.get("grpc_port")) or 0),
        address=address,
        stages=stages,
    )


def _last_words(job: Row[Any]) -> str:
    """What the replica, or its runtime, wrote last before it failed. One that was killed had no time for last words: what stands
    there is older.
    """
    if job.signal is not None:
        return ""
    failures = json.loads(job.failures) if job.failures else []
    lines = [line.strip() for line in failures[-1].get("lines", ()) if line.strip()] if failures else []
    own = [line.removeprefix(OWN) for line in lines if line.startswith(OWN)]
    silent = bool(own) and killed(own[-1])
    return " / ".join([*own[-1:], *(line for line in lines[-1:] if not silent and not line.startswith(OWN))])


def refused(job: Row[Any] | None) -> bool:
    """The replica would not serve its model: trying again mends nothing."""
    return job is not None and job.exit_code == REFUSED


def node_of(job: Row[Any]) -> str:
    nodes = json.loads(job.nodes)
    return str(nodes[0]) if nodes else ""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
