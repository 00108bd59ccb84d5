"""From a job's row and its placement to what the engine is told. Pure."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from sqlalchemy import RowMapping

from penstock.engines.spec import JobNeeds, Launch, RankGroup
from penstock.jobs import avoided
from penstock.jobs.spec import JobSpec

IDLE_TIMEOUT_S = 30 * 60.0  # of interactive jobs that name none


@dataclass(frozen=True, slots=True)
class Site:
    """What every launch of a server shares: the folder of work folders, the bytes of a rank's log that are kept from its
    beginning and at its end, and the environment of jobs that name none.
    """

    snapshots_dir: str
    log_first_bytes: int
    log_newest_bytes: int
    environment: Mapping[str, Any] = field(default_factory=dict)


def needs(spec: JobSpec) -> JobNeeds:
    return JobNeeds(
        launcher=spec.effective_launcher(),
        procs=spec.procs,
        nodes=spec.nodes,
        least=spec.least,
        environment=spec.environment.model_dump(exclude_defaults=True),
        interactive=spec.interactive,
        cpus=spec.resources.cpus,
        memory=spec.resources.memory,
        gpus=spec.resources.devices,
        gpu_models=spec.resources.models,
        gpu_milli=spec.resources.milli,
        mig=spec.resources.mig,
        time_limit_s=spec.time_limit,
        options=spec.engine_options,
    )


def launch(
    job: RowMapping,
    attempt: Mapping[str, Any],
    spec: JobSpec,
    site: Site,
    queue: str = "",
    account: Mapping[str, str] = MappingProxyType({}),
) -> Launch:
    """``job`` and ``attempt`` are rows. An attempt that has no place yet says what each of its nodes must have. ``account``:
    the options that put it into its queue in its engine's own accounting; a job that names an account goes by that alone.
    """
    groups = json.loads(attempt["groups"]) or [_unplaced(spec)] * spec.nodes
    number = attempt["number"]
    spent = job["restarts"]
    return Launch(
        attempt_id=f"{job['id']}.{number}",
        job_id=job["id"],
        job_name=job["name"],
        project=job["project"],
        user=job["user"],
        attempt=number,
        run_dir=attempt["run_dir"],
        job_dir=posixpath.dirname(attempt["run_dir"]),
        groups=tuple(
            RankGroup(
                g["node"],
                rank,
                g["cpus"],
                g["memory"],
                tuple(gpu["id"] for gpu in g["gpus"]),
                sum(gpu.get("milli", 0) for gpu in g["gpus"]),
            )
            for rank, g in enumerate(groups)
        ),
        procs=spec.procs,
        launcher=spec.effective_launcher(),
        command=spec.command or ("sleep", "infinity"),
        env=_env(job, spec),
        environment=spec.environment.model_dump(exclude_defaults=True) or site.environment,
        snapshot=f"{site.snapshots_dir}/{spec.snapshot}" if spec.snapshot else None,
        workdir=None if spec.snapshot else spec.workdir,
        unix_user=job["unix_user"],
        time_limit_s=spec.time_limit,
        grace_s=spec.grace_period,
        restarts_left=max(spec.max_restarts - spent, 0),
        interactive=spec.interactive,
        idle_timeout_s=(spec.idle_timeout or IDLE_TIMEOUT_S) if spec.interactive else None,
        log_first_bytes=site.log_first_bytes,
        log_newest_bytes=site.log_newest_bytes,
        gpus_per_node=spec.resources.devices,
        gpu_models=spec.resources.models,
        queue=queue,
        priority=spec.priority,
        exclude_nodes=spec.exclude_nodes + _avoided(job, attempt),
        least=spec.least if spec.least < spec.nodes and attempt["groups"] == "[]" else 0,
        options=spec.engine_options
        if account.keys() & spec.engine_options.keys()
        else {**account, **spec.engine_options},
        array=(job["array_of"], job["array_index"]) if job["array_of"] is not None else None,
    )


def _avoided(job: RowMapping, attempt: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(one.node for one in avoided.load(job["avoided"], attempt["admitted_at"]))


def _unplaced(spec: JobSpec) -> dict[str, Any]:
    return {"node": "", "cpus": spec.resources.cpus, "memory": spec.resources.memory, "gpus": ()}


def _env(job: RowMapping, spec: JobSpec) -> dict[str, str]:
    env = dict(spec.env)
    if job["array_index"] is not None:
        env |= {"PENSTOCK_ARRAY_INDEX": str(job["array_index"]), "PENSTOCK_ARRAY_COUNT": str(job["array_count"])}
    return env
