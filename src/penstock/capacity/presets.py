"""What the rows of each kind of trace mean: one function from a row to a job."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from penstock.base.quantities import parse_duration, parse_memory
from penstock.capacity.replay import TraceJob

Row = Mapping[str, str]
LONGEST_S = 100 * 365.25 * 86400.0
_EARLIEST, _LATEST = -62135596800.0, 253402300800.0  # the years 1 to 9999
_NONE = frozenset({"", "Unknown", "None", "N/A", "INVALID"})


class BadRow(Exception):
    """A row that cannot be replayed. ``skip``: it is no job of its own (a job step), so nothing is wrong with it."""

    def __init__(self, why: str, what: str, *, skip: bool = False) -> None:
        super().__init__(what)
        self.why, self.what, self.skip = why, what, skip


@dataclass(frozen=True, slots=True)
class Preset:
    name: str
    needs: tuple[tuple[str, ...], ...]  # of each group one column at least
    job: Callable[[Row, int], TraceJob]
    delimiter: str = ","
    has_ids: bool = False
    joined: Callable[[TraceJob, TraceJob], TraceJob | None] | None = None  # a row and the next one: one job, or None

    def missing(self, header: Sequence[str]) -> list[str]:
        return [" or ".join(group) for group in self.needs if not any(name in header for name in group)]


def _number(row: Row, name: str, *, whole: bool = False) -> float:
    text = row.get(name, "").strip()
    try:
        value = float(text)
    except ValueError:
        raise BadRow("not a number", f"{name} is {text!r}") from None
    if not math.isfinite(value):
        raise BadRow("not a number", f"{name} is {text!r}")
    if value < 0:
        raise BadRow(f"negative {name}", f"{name} is {text}")
    if whole and value != int(value):
        raise BadRow("not a whole number", f"{name} is {text}")
    return value


_days: dict[str, float] = {}


def _time(text: str, name: str) -> float:
    """Epoch seconds, RFC 3339 or ``2017-10-09 07:01:55``; without a zone it is UTC."""
    text = text.strip()
    if len(text) == 19 and text[10] in " T":  # the commonest form, some ten times as fast
        day = _days.get(text[:10])
        try:
            if day is None:
                day = _days[text[:10]] = datetime.fromisoformat(text[:10]).replace(tzinfo=UTC).timestamp()
                if len(_days) > 10_000:
                    _days.clear()
            hour, minute, second = int(text[11:13]), int(text[14:16]), int(text[17:19])
        except ValueError:
            raise BadRow("not a time", f"{name} is {text!r}") from None
        if hour < 24 and minute < 60 and second < 61:
            return day + hour * 3600 + minute * 60 + second
    try:
        return float(text)
    except ValueError:
        pass
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise BadRow("not a time", f"{name} is {text!r}") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def check_times(job: TraceJob) -> None:
    """Raises BadRow for times that no calendar has and run times that no job has: sums of them would say nothing."""
    for name, at in (("its submission", job.submit), ("its start", job.started)):
        if at is not None and not _EARLIEST <= at < _LATEST:
            raise BadRow("not in the years 1 to 9999", f"{name} is {at:g} s after 1970")
    for name, seconds in (("run time", job.duration), ("time limit", job.limit)):
        if seconds is not None and not (seconds <= LONGEST_S or (name == "time limit" and seconds == math.inf)):
            raise BadRow(f"{name} above 100 years", f"its {name} is {seconds:g} s")


def _positive(gpus: float) -> int:
    if gpus <= 0:
        raise BadRow("asks no GPU", "a replay is of GPUs", skip=True)
    return int(gpus)


def _philly(row: Row, line: int) -> TraceJob:
    return TraceJob(
        str(line),
        _time(row["timestamp"], "timestamp"),
        max(_number(row, "duration"), 1.0),
        _positive(_number(row, "num_gpus", whole=True)),
        row.get("cluster") or "default",
        line=line,
    )


def _openb(row: Row, line: int) -> TraceJob:
    created = _number(row, "creation_time")
    started = _number(row, "scheduled_time") if row.get("scheduled_time", "").strip() else None
    if not row.get("deletion_time", "").strip():
        raise BadRow("never ended", "deletion_time is empty")
    deleted = _number(row, "deletion_time")
    if deleted < (created if started is None else started):
        raise BadRow("negative duration", f"deleted at {deleted:g}, before it was scheduled")
    gpus = _positive(_number(row, "num_gpu", whole=True))
    milli = int(_number(row, "gpu_milli")) if row.get("gpu_milli", "").strip() else 1000
    milli = milli if gpus == 1 and 0 < milli < 1000 else 0
    return TraceJob(
        row.get("name") or str(line),
        created,
        max(deleted - (created if started is None else started), 1.0),
        milli / 1000 if milli else gpus,
        row.get("qos") or "default",
        gpu_milli=milli,
        started=started,
        line=line,
        models=tuple(filter(None, row.get("gpu_spec", "").split("|"))),
    )


def _own(row: Row, line: int) -> TraceJob:
    try:
        limit = parse_duration(row["limit_s"]) if row.get("limit_s", "").strip() else None
        memory = parse_memory(row["memory"]) if row.get("memory", "").strip() else 0
    except ValueError as exc:
        raise BadRow("not a quantity", str(exc)) from None
    started = _time(row["start"], "start") if row.get("start", "").strip() else None
    gpus = _number(row, "gpus")
    if gpus >= 1 or gpus == 0:
        gpus = _positive(_number(row, "gpus", whole=True))
    return TraceJob(
        row.get("id") or str(line),
        _time(row["submit"], "submit"),
        max(_number(row, "duration_s"), 1.0),
        gpus,
        row.get("queue") or "default",
        row.get("user") or "",
        limit,
        int(_number(row, "priority")) if row.get("priority", "").strip() else 0,
        int(_number(row, "nodes", whole=True)) if row.get("nodes", "").strip() else None,
        _number(row, "cpus") if row.get("cpus", "").strip() else 0.0,
        memory,
        int(gpus * 1000) if gpus < 1 else 0,
        started,
        line,
    )


def slurm_seconds(text: str) -> float | None:
    """``1-02:03:04``, ``02:03:04``, ``03:04``; None for UNLIMITED, Partition_Limit and nothing."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)(?:\.\d+)?", text.strip())
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(days * 86400 + hours * 3600 + minutes * 60 + seconds)


def _tres(text: str) -> tuple[int, float, int]:
    """GPUs, cores and bytes of ``cpu=64,gres/gpu=8,gres/gpu:a100=8,mem=512G,node=1``; ``gres:gpu:8`` of old ones too."""
    total, typed, cpus, memory = 0, 0, 0.0, 0
    for item in text.split(","):
        name, _, value = item.partition("=")
        if name == "gres/gpu":
            total = int(value)
        elif name.startswith("gres/gpu:"):
            typed += int(value)
        elif name == "cpu":
            cpus = float(value)
        elif name == "mem":
            memory = parse_memory(re.sub(r"([KMGTP])B?[nc]?$", r"\1i", value))
        elif (old := re.fullmatch(r"(?:gres:)?gpu(?::[^:]+)?:(\d+)", item)) is not None:
            typed += int(old[1])
    return total or typed, cpus, memory


def _slurm_time(row: Row, *names: str) -> float | None:
    for name in names:
        text = row.get(name, "").strip()
        if text not in _NONE:
            return _time(text, name)
    return None


def _sacct(row: Row, line: int) -> TraceJob:
    id_ = (row.get("JobID") or row.get("JobIDRaw") or "").strip()
    if "." in id_:
        raise BadRow("job step", "a step of a job", skip=True)
    submit = _slurm_time(row, "Eligible", "Submit")  # held or dependent jobs wait for nobody before they are eligible
    if submit is None:
        raise BadRow("no submission", f"job {id_} has neither Submit nor Eligible")
    start, end = _slurm_time(row, "Start"), _slurm_time(row, "End")
    state = row.get("State", "").split(" ")[0]
    if start is None:
        raise BadRow("never started", f"job {id_} ({state or 'no state'}): its run time is not known")
    elapsed = _elapsed(row, start, end, id_)
    try:
        gpus, cpus, memory = _tres(row.get("AllocTRES") or row.get("ReqTRES") or row.get("AllocGRES") or "")
        nodes = int(row.get("NNodes") or row.get("AllocNodes") or 0) or None
    except ValueError as exc:
        raise BadRow("not a quantity", f"job {id_}: {exc}") from None
    return TraceJob(
        id_ or str(line),
        min(submit, start),
        max(elapsed, 1.0),
        _positive(gpus),
        row.get("Account") or row.get("Partition") or "default",
        row.get("User") or "",
        _limit(row, elapsed),
        0,
        nodes,
        cpus,
        memory,
        started=start,
        line=line,
        ongoing=end is None,
        partition=row.get("Partition") or "",
        qos=row.get("QOS") or "",
    )


def _limit(row: Row, elapsed: float) -> float | None:
    """None where the trace has none. Slurm ends a job up to a minute after its limit: that minute was used too."""
    text, minutes = row.get("Timelimit", "").strip(), row.get("TimelimitRaw", "").strip()
    if not text and not minutes:
        return None
    limit = float(minutes) * 60 if minutes.isdigit() else slurm_seconds(text)
    return math.inf if limit is None else max(limit, elapsed)


def _together(first: TraceJob, second: TraceJob) -> TraceJob | None:
    """Components ``12+0`` and ``12+1`` of a heterogeneous job start in one decision: they are one gang."""
    one, plus, _ = first.id.partition("+")
    other, also, _ = second.id.partition("+")
    if not (plus and also) or one != other or first.submit != second.submit:
        return None
    nodes = None if first.nodes is None or second.nodes is None else first.nodes + second.nodes
    return replace(
        first,
        gpus=first.gpus + second.gpus,
        duration=max(first.duration, second.duration),
        nodes=nodes,
        cpus=first.cpus + second.cpus,
        memory=first.memory + second.memory,
    )


def _elapsed(row: Row, start: float, end: float | None, id_: str) -> float:
    """How long it held its place: a suspended job keeps its GPUs, though its time does not count."""
    if end is not None:
        if end < start:
            raise BadRow("negative duration", f"job {id_} ends before it starts")
        return end - start
    found = _number(row, "ElapsedRaw") if row.get("ElapsedRaw", "").strip() else slurm_seconds(row.get("Elapsed", ""))
    if found is None:
        raise BadRow("no run time", f"job {id_} has neither Elapsed nor End")
    return found


PRESETS: dict[str, Preset] = {
    "philly": Preset("philly", (("timestamp",), ("duration",), ("num_gpus",)), _philly),
    "openb": Preset("openb", (("num_gpu",), ("creation_time",), ("deletion_time",)), _openb, has_ids=True),
    "slurm-sacct": Preset(
        "slurm-sacct",
        (
            ("JobID", "JobIDRaw"),
            ("Submit", "Eligible"),
            ("Start",),
            ("Elapsed", "ElapsedRaw", "End"),
            ("AllocTRES", "ReqTRES", "AllocGRES"),
        ),
        _sacct,
        "|",
        has_ids=True,
        joined=_together,
    ),
    "csv": Preset("csv", (("submit",), ("duration_s",), ("gpus",)), _own, has_ids=True),
}
