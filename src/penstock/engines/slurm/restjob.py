"""A submission as slurmrestd wants it: sbatch's long options as fields of its job document. Pure.

What a version of slurmrestd has no field for is named, not left out in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from penstock.engines.slurm.parsing import duration
from penstock.engines.slurm.restdata import NEW, PATH, SLASH, struct
from penstock.engines.slurm.spec import Submission

Value = str | int | bool


class Field(NamedTuple):
    """``old`` up to v0.0.38, ``new`` from v0.0.39 on; None: that version has no such field."""

    old: str | None
    new: str | None
    form: Callable[[Value], Any] = str
    form_new: Callable[[Value], Any] | None = None


def document(submission: Submission, version: int) -> tuple[dict[str, Any], list[str]]:
    """The body of ``job/submit``, and the options that it cannot carry."""
    job: dict[str, Any] = {"current_working_directory": submission.cwd, "environment": _environment(version)}
    if submission.array:
        job["array"] = submission.array
    lacking = []
    for name, value in submission.options.items():
        if value is False or name in _IGNORED:
            continue
        try:
            if not _put(job, name, value, version):
                lacking.append(name)
        except ValueError:
            lacking.append(f"{name}={value}")
    script = submission.script.decode("utf-8", "surrogateescape")
    return {"script": script, "job": job}, lacking


# What has no meaning here: the answer is read by us, and no variables of ours go along (`environment`).
_IGNORED = frozenset({"parsable", "export", "quiet"})


def _environment(version: int) -> Any:
    """It may not be empty."""
    return {"PATH": PATH} if version < NEW else [f"PATH={PATH}"]


def _put(job: dict[str, Any], name: str, value: Value, version: int) -> bool:
    special = _SPECIAL.get(name)
    if special is not None:
        return special(job, value, version)
    field = FIELDS.get(name)
    if field is None:
        return False
    key = field.old if version < NEW else field.new
    if key is None:
        return False
    job[key] = (field.form_new or field.form)(value) if version >= NEW else field.form(value)
    return True


def _number(value: Value) -> int:
    return int(value)


def minutes(value: Value) -> int:
    """sbatch's forms of a time: 90, 1:30 (minutes and seconds), 1:00:00, 1-12, 1-12:30."""
    text = str(value)
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if dash:
        rest = ":".join([*parts, *["00"] * (3 - len(parts))])
    elif len(parts) == 1:
        rest = f"{rest}:00"
    seconds = duration(f"{days}-{rest}" if dash else rest)
    if seconds is None:
        raise ValueError(text)
    return max(1, -(-int(seconds) // 60))


def mebibytes(value: Value) -> int:
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", str(value).upper())
    if found is None:
        raise ValueError(str(value))
    power = {"K": -1, "": 0, "M": 0, "G": 1, "T": 2}[found[2]]
    return int(found[1]) // 1024 if power < 0 else int(found[1]) * 1024**power


def _list(value: Value) -> list[str]:
    return str(value).split(",")


FIELDS: Mapping[str, Field] = {
    "account": Field("account", "account"),
    "begin": Field(None, None),
    "comment": Field("comment", "comment"),
    "constraint": Field("constraints", "constraints"),
    "cpus-per-task": Field("cpus_per_task", "cpus_per_task", _number),
    "deadline": Field(None, None),
    "dependency": Field("dependency", "dependency"),
    "error": Field("standard_error", "standard_error"),
    "exclude": Field(None, "excluded_nodes", _list),
    "input": Field("standard_input", "standard_input"),
    "job-name": Field("name", "name"),
    "licenses": Field("licenses", "licenses"),
    "mail-user": Field("mail_user", "mail_user"),
    "mem": Field("memory_per_node", "memory_per_node", mebibytes, lambda value: struct(mebibytes(value))),
    "mem-per-cpu": Field("memory_per_cpu", "memory_per_cpu", mebibytes, lambda value: struct(mebibytes(value))),
    "mincpus": Field("minimum_cpus_per_node", "minimum_cpus_per_node", _number),
    "nice": Field("nice", "nice", _number),
    "nodelist": Field(None, "required_nodes", _list),
    "nodes": Field("nodes", "nodes"),
    "ntasks": Field("tasks", "tasks", _number),
    "ntasks-per-core": Field("tasks_per_core", "tasks_per_core", _number),
    "ntasks-per-node": Field("tasks_per_node", "tasks_per_node", _number),
    "ntasks-per-socket": Field("tasks_per_socket", "tasks_per_socket", _number),
    "output": Field("standard_output", "standard_output"),
    "partition": Field("partition", "partition"),
    "prefer": Field("prefer", "prefer"),
    "priority": Field("priority", "priority", str, lambda value: struct(int(value))),
    "qos": Field("qos", "qos"),
    "reservation": Field("reservation", "reservation"),
    "switches": Field(None, "required_switches", _number, lambda value: struct(int(value))),
    "threads-per-core": Field("threads_per_core", "threads_per_core", _number),
    "time": Field("time_limit", "time_limit", minutes, lambda value: struct(minutes(value))),
    "time-min": Field("time_minimum", "time_minimum", minutes, lambda value: struct(minutes(value))),
    "wckey": Field("wckey", "wckey"),
}


def _tres(target: str, prefix: str = "") -> Callable[[dict[str, Any], Value, int], bool]:
    def put(job: dict[str, Any], value: Value, version: int) -> bool:
        if version < NEW:
            job[target] = str(value)
            return True
        mark = "gres/" if version >= SLASH else "gres:"
        field = {"gres": "node", "gpus_per_node": "node", "gpus": "job", "gpus_per_task": "task"}[target]
        parts = [f"{mark}{prefix}{part}" for part in str(value).split(",")]
        key = f"tres_per_{field}"
        job[key] = ",".join([*filter(None, [job.get(key)]), *parts])
        return True

    return put


def _chdir(job: dict[str, Any], value: Value, _version: int) -> bool:
    job["current_working_directory"] = str(value)
    return True


def _requeue(job: dict[str, Any], _value: Value, _version: int) -> bool:
    job["requeue"] = True
    return True


def _no_requeue(job: dict[str, Any], _value: Value, _version: int) -> bool:
    job["requeue"] = False
    return True


def _hold(job: dict[str, Any], _value: Value, _version: int) -> bool:
    job["hold"] = True
    return True


def _no_kill(job: dict[str, Any], _value: Value, version: int) -> bool:
    job["no_kill" if version < NEW else "kill_on_node_fail"] = version < NEW
    return True


def _exclusive(job: dict[str, Any], value: Value, version: int) -> bool:
    if version < NEW:
        job["exclusive"] = "true" if value is True else str(value)
    else:
        job["shared"] = ["none" if value is True else str(value)]
    return True


def _open_mode(job: dict[str, Any], value: Value, version: int) -> bool:
    job["open_mode"] = str(value) if version < NEW else [str(value).upper()]
    return True


def _invalid_dependency(job: dict[str, Any], value: Value, version: int) -> bool:
    kill = str(value).lower() in {"yes", "true"}
    if version < NEW:
        job["kill_on_invalid_dependency"] = kill
    else:
        job["flags"] = [*job.get("flags", []), "KILL_INVALID_DEPENDENCY" if kill else "NO_KILL_INVALID_DEPENDENCY"]
    return True


def _signal(job: dict[str, Any], value: Value, version: int) -> bool:
    """B:TERM@60; up to v0.0.38 slurmrestd refuses a B."""
    found = re.fullmatch(r"(?:(B|R|BR|RB):)?([A-Za-z0-9]+)(?:@(\d+))?", str(value))
    if found is None:
        raise ValueError(str(value))
    if version < NEW:
        if "B" in (found[1] or ""):
            return False
        job["signal"] = str(value)
        return True
    job["kill_warning_signal"] = found[2]
    job["kill_warning_delay"] = struct(int(found[3] or 60))
    if "B" in (found[1] or ""):
        job["kill_warning_flags"] = ["BATCH_JOB"]
    return True


_SPECIAL: Mapping[str, Callable[[dict[str, Any], Value, int], bool]] = {
    "chdir": _chdir,
    "exclusive": _exclusive,
    "gpus": _tres("gpus", "gpu:"),
    "gpus-per-node": _tres("gpus_per_node", "gpu:"),
    "gpus-per-task": _tres("gpus_per_task", "gpu:"),
    "gres": _tres("gres"),
    "hold": _hold,
    "kill-on-invalid-dep": _invalid_dependency,
    "no-kill": _no_kill,
    "no-requeue": _no_requeue,
    "open-mode": _open_mode,
    "requeue": _requeue,
    "signal": _signal,
}
