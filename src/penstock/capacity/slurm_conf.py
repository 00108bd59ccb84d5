"""A site's own slurm.conf -> the policy to replay its history with: multifactor weights, decay, and backfill."""

from __future__ import annotations

import re
from dataclasses import replace

from penstock.base.errors import InvalidInput, Problem
from penstock.capacity.presets import slurm_seconds
from penstock.scheduling.state import Policy

_WEIGHTS = {
    "priorityweightage": "age",
    "priorityweightfairshare": "fairshare",
    "priorityweightjobsize": "jobsize",
    "priorityweightpartition": "partition",
    "priorityweightqos": "qos",
}


def apply(policy: Policy, text: str) -> Policy:
    """Other lines of the file are passed over. Raises InvalidInput with every value that cannot be read."""
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for n, line in enumerate(text.splitlines(), 1):
        name, equals, value = line.partition("#")[0].partition("=")
        if equals:
            found[name.strip().lower()] = value.strip()
            lines[name.strip().lower()] = n
    problems: list[Problem] = []
    weights = []
    for key, name in _WEIGHTS.items():
        if key in found:
            try:
                weights.append((name, float(found[key])))
            except ValueError:
                problems.append(Problem(key, f"{found[key]!r} is no number", lines[key]))
    times: dict[str, float] = {}
    for key, name in (("prioritydecayhalflife", "decay_half_life_s"), ("prioritymaxage", "max_age_s")):
        if key in found:
            seconds = _slurm_span(found[key])
            if seconds is None:
                problems.append(Problem(key, f"{found[key]!r} is no time: write D-HH:MM:SS", lines[key]))
            elif seconds > 0:
                times[name] = seconds
    if problems:
        raise InvalidInput("the slurm.conf cannot be used", details=problems)
    fifo = found.get("prioritytype", "").endswith("basic")
    backfilled = found.get("schedulertype", "sched/backfill").endswith("backfill")
    depth = re.search(r"\bbf_max_job_test=(\d+)", found.get("schedulerparameters", ""))
    return replace(
        policy,
        order="fifo" if fifo else "multifactor",
        backfill="conservative" if backfilled else "none",
        depth=int(depth[1]) if depth else policy.depth,
        weights=tuple(weights) or policy.weights,
        decay_half_life_s=times.get("decay_half_life_s", policy.decay_half_life_s),
        max_age_s=times.get("max_age_s", policy.max_age_s),
    )


def _slurm_span(text: str) -> float | None:
    """``7-0``, ``7-00:00:00``, ``14:00:00``, or minutes."""
    if re.fullmatch(r"\d+", text):
        return int(text) * 60.0
    if match := re.fullmatch(r"(\d+)-(\d+)(?::(\d+))?", text):
        return int(match[1]) * 86400.0 + int(match[2]) * 3600.0 + int(match[3] or 0) * 60.0
    return slurm_seconds(text)
