"""slurmrestd's documents, read and written. Pure; total over what the versions v0.0.36 to v0.0.45 say.

Up to v0.0.38 numbers are numbers, states words, and a submission has sbatch's own names. From v0.0.39 on a number may be
``{"set": true, "infinite": false, "number": 5}``, a state a list with its flags, and resources are TRES strings.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from penstock.engines.slurm import parsing
from penstock.engines.slurm.spec import Partition, SlurmJob, SlurmNode

Doc = Mapping[str, Any]
NEW = 39  # the first version of the second form
SLASH = 40  # from here on gres are written gres/gpu, before gres:gpu
NODE_UPDATE = 40  # the first version that can change a node
KNOWN = tuple(range(45, 35, -1))  # newest first
WAITS = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
_FLAGS = frozenset({"COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "RECONFIG_FAIL", "POWER_UP_NODE",
                    "REVOKED", "LAUNCH_FAILED", "UPDATE_DB", "RESV_DEL_HOLD", "EXPEDITING", *(WAITS - {"PENDING"})})  # fmt: skip
PATH = "/usr/local/bin:/usr/bin:/bin"


def number(value: Any) -> int | None:
    """5, "5" and {"set": true, "number": 5}; None where it is not set, or has no end."""
    if isinstance(value, Mapping):
        return number(value.get("number")) if value.get("set") and not value.get("infinite") else None
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return int(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, str) and value.isdecimal() else None


def struct(value: int) -> dict[str, Any]:
    return {"set": True, "infinite": False, "number": value}


def words(value: Any) -> list[str]:
    """A list of words, or one word, or several with commas."""
    if isinstance(value, str):
        return [part for part in value.split(",") if part]
    return [str(part) for part in value] if isinstance(value, Sequence) else []


def _time(value: Any) -> float | None:
    found = number(value)
    return float(found) if found else None


def state(value: Any) -> str:
    """The base state among a job's: RUNNING of ["RUNNING", "COMPLETING"]."""
    found = [word.upper() for word in words(value)]
    base = [word for word in found if word not in _FLAGS]
    return next((word for word in found if word in WAITS - {"PENDING"}), None) or (base or found or ["UNKNOWN"])[0]


def ended(value: Any) -> tuple[int | None, int | None]:
    """Exit code and signal: of a wait status (a number), or of a document."""
    if isinstance(value, Mapping) and "return_code" in value:
        sent = value.get("signal") or {}
        return number(value["return_code"]), number(sent.get("signal_id", sent.get("id"))) or None
    status = number(value)
    return (None, None) if status is None else (status >> 8, status & 127 or None)


def jobs(doc: Doc) -> list[SlurmJob]:
    """Of slurmctld. Tasks of an array that wait in one record become one each, as squeue --array has them."""
    return [job for record in doc.get("jobs") or () for job in _jobs(record)]


def _jobs(record: Doc) -> Iterator[SlurmJob]:
    array, index = number(record.get("array_job_id")) or None, number(record.get("array_task_id"))
    waiting = indices(str(record.get("array_task_string") or ""))
    if array and index is None and waiting:
        for each in waiting:
            yield _job(record, array, each)
    else:
        yield _job(record, array if index is not None else None, index if array else None)


def _job(record: Doc, array: int | None, index: int | None) -> SlurmJob:
    word = state(record.get("job_state"))
    waits = word in WAITS
    over = not waits and word not in {"RUNNING", "SUSPENDED"}
    code, signal = ended(record.get("exit_code")) if over else (None, None)
    nodes = parsing.hosts(str(record.get("nodes") or ""))
    begin, reason = _time(record.get("start_time")), str(record.get("state_reason") or "")
    return SlurmJob(
        number(record.get("job_id")) or 0,
        str(record.get("name") or ""),
        word,
        "" if reason == "None" else reason,
        str(record.get("user_name") or ""),
        str(record.get("account") or ""),
        str(record.get("partition") or ""),
        str(record.get("qos") or ""),
        nodes,
        submitted_at=_time(record.get("submit_time")),
        started_at=None if waits else begin,
        ended_at=_time(record.get("end_time")) if over else None,
        start_estimate=begin if waits else None,
        exit_code=code,
        signal=signal,
        restarts=number(record.get("restart_cnt")) or 0,
        array_job=array,
        array_index=index,
        gpus=_gpus(nodes, words_of_gres(record.get("gres_detail"))),
    )


def words_of_gres(value: Any) -> list[str]:
    """One text a node; commas within it are its own."""
    return [str(part) for part in value] if isinstance(value, list | tuple) else []


def _gpus(nodes: Sequence[str], details: Sequence[str]) -> dict[str, tuple[int, ...]]:
    if len(nodes) != len(details):
        return {}
    found = {}
    for node, text in zip(nodes, details, strict=True):
        held = re.findall(r"gpu(?::[^:(,]+)?:\d+\(IDX:([\d,-]+)\)", text)
        if held:
            found[node] = tuple(one for spans in held for one in indices(spans))
    return found


def indices(text: str) -> list[int]:
    """``0-2,7%4`` as numbers; ``0-6:2`` steps."""
    found: list[int] = []
    for part in text.partition("%")[0].strip("[]").split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        if (
            first.isdecimal()
            and (last or first).isdecimal()
            and (step or "1").isdecimal()
            and int(last or first) < 10**7
        ):
            found += range(int(first), int(last or first) + 1, max(int(step or 1), 1))
    return found


def finished(doc: Doc) -> list[SlurmJob]:
    """Of slurmdbd."""
    return [_finished(record) for record in doc.get("jobs") or ()]


def _finished(record: Doc) -> SlurmJob:
    told, times, array = record.get("state") or {}, record.get("time") or {}, record.get("array") or {}
    word = state(told.get("current"))
    code, signal = ended(record.get("exit_code"))
    index, of = number(array.get("task_id")), number(array.get("job_id")) or None
    by = record.get("kill_request_user")
    begin = _time(times.get("start"))
    return SlurmJob(
        number(record.get("job_id")) or 0,
        str(record.get("name") or ""),
        word,
        user=str(record.get("user") or ""),
        account=str(record.get("account") or ""),
        partition=str(record.get("partition") or ""),
        qos=str(record.get("qos") or ""),
        nodes=parsing.hosts(str(record.get("nodes") or "")),
        submitted_at=_time(times.get("submission")),
        started_at=None if word in WAITS else begin,
        ended_at=_time(times.get("end")),
        exit_code=code,
        signal=signal,
        restarts=number(record.get("restart_cnt")) or 0,
        array_job=of if index is not None else None,
        array_index=index if of else None,
        cancelled_by=str(by) if by and word == "CANCELLED" else None,
    )


def nodes(doc: Doc) -> list[SlurmNode]:
    return [_node(record) for record in doc.get("nodes") or ()]


def _node(record: Doc) -> SlurmNode:
    flags = [*words(record.get("state")), *words(record.get("state_flags"))]
    reason = str(record.get("reason") or "")
    return SlurmNode(
        str(record.get("name") or ""),
        "+".join(word.upper() for word in flags) or "UNKNOWN",
        number(record.get("cpus")) or 0,
        (number(record.get("real_memory")) or 0) << 20,
        str(record.get("gres") or ""),
        str(record.get("gres_used") or ""),
        reason,
        str(record.get("reason_set_by_user") or "") if reason else "",
        _time(record.get("reason_changed_at")) if reason else None,
        tuple(words(record.get("partitions"))),
        tuple(words(record.get("features"))),
        str(record.get("topology") or ""),
        str(record.get("address") or ""),
    )


def partitions(doc: Doc) -> list[Partition]:
    return [_partition(record) for record in doc.get("partitions") or ()]


def _partition(record: Doc) -> Partition:
    """Of both forms; minutes become seconds, -1 and what is infinite None."""
    most, least = record.get("maximums") or {}, record.get("defaults") or {}
    inner = record.get("partition") or {}
    flags = {word.lower() for word in [*words(record.get("flags")), *words(inner.get("flags"))]}
    members = record.get("nodes")
    listed = members.get("configured") if isinstance(members, Mapping) else members
    states = [word.upper() for word in words(inner.get("state", record.get("state", "UP")))]
    accounts, qos = record.get("accounts") or {}, record.get("qos")
    return Partition(
        str(record.get("name") or ""),
        "default" in flags,
        states[0] if states else "UP",
        _minutes(most.get("time", record.get("max_time_limit"))),
        _minutes(least.get("time", record.get("default_time_limit"))),
        parsing.hosts(str(listed or "")),
        tuple(words(accounts.get("allowed", record.get("allowed_accounts")))),
        tuple(words(qos.get("allowed") if isinstance(qos, Mapping) else record.get("allowed_qos"))),
        _positive(most.get("nodes", record.get("maximum_nodes_per_job"))),
    )


def _minutes(value: Any) -> float | None:
    found = _positive(value)
    return None if found is None else found * 60.0


def _positive(value: Any) -> int | None:
    found = number(value)
    return found if found is not None and found > 0 else None


def errors(doc: Doc) -> list[tuple[int | None, str]]:
    """Number and words of each."""
    return [
        (
            number(one.get("error_number", one.get("error_code"))),
            ": ".join(dict.fromkeys(str(one[key]) for key in ("error", "description") if one.get(key)))
            or "error without words",
        )
        for one in doc.get("errors") or ()
        if isinstance(one, Mapping)
    ]


def release(doc: Doc) -> tuple[str, str]:
    """Slurm's version and the cluster's name ("" where older versions do not tell)."""
    meta = doc.get("meta") or {}
    told = meta.get("slurm") or meta.get("Slurm") or {}
    return str(told.get("release") or ""), str(told.get("cluster") or "")


def versions(paths: Iterable[str]) -> list[int]:
    """Which versions the paths of an OpenAPI document are of, newest first."""
    return sorted({int(found[1]) for path in paths if (found := re.match(r"/slurm/v0\.0\.(\d+)/", path))}, reverse=True)


def chosen(offered: Sequence[int]) -> int | None:
    """The newest that we know; of a server that is all newer, its oldest: that is the nearest to what we know."""
    known = [one for one in offered if one in KNOWN]
    newer = [one for one in offered if one > KNOWN[0]]
    return max(known) if known else min(newer) if newer else None


def token_user(token: str | None) -> tuple[str, float | None]:
    """Whose a JWT is and when it ends, as far as it says; it is not verified here."""
    try:
        body = (token or "").split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return str(claims.get("sun") or claims.get("username") or ""), _time(claims.get("exp"))
    except (IndexError, ValueError, AttributeError):
        return "", None
