"""How a job reads in a terminal: columns of the list, and the page of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.base.quantities import format_duration, parse_time
from penstock.client.verb import Column, Progress

Job = Mapping[str, Any]

_STYLES = {
    "Succeeded": "green",
    "Failed": "red",
    "Cancelled": "dim",
    "Running": "cyan",
    "Starting": "blue",
    "Pending": "yellow",
    "Stopping": "magenta",
}


def phase_style(phase: str) -> str:
    return _STYLES.get(phase, "")


def age(at: object, now: float) -> str:
    """How long ago an RFC 3339 time was, in one or two units."""
    return format_duration(max(0.0, round(now - parse_time(at)))) if isinstance(at, str) else ""


def why_column(job: Job, _now: float) -> str:
    """The reason, and what is behind it where that says more; of several lines the first."""
    return first_line(whole_why(job))


def whole_why(job: Job) -> str:
    status = job["status"]
    return because(status.get("reason"), status.get("message"), status["phase"])


def first_line(text: str) -> str:
    return text.partition("\n")[0]


def because(reason: object, message: object, phase: object) -> str:
    """``Reason: message``, without a reason that only repeats the phase."""
    words = [str(word) for word in (reason if reason != phase or not message else "", message) if word]
    return ": ".join(words)


def engine_text(job: Job) -> str:
    """``c1:1234``: an engine that schedules itself, and what it calls the job; empty for the server's own."""
    status = job["status"]
    return ":".join(str(status[key]) for key in ("engine", "engine_job") if status.get(key))


def progress_text(job: Job, _now: float = 0.0) -> str:
    """``30/100`` of steps, or an array's tasks; empty where nothing was reported."""
    status = job["status"]
    array = status.get("array")
    if array:
        ended = array["succeeded"] + array["failed"] + array["cancelled"]
        return f"{ended}/{array['total']} tasks"
    progress = status.get("progress") or {}
    step, total = progress.get("step"), progress.get("total_steps")
    return "" if step is None else f"{step}/{total}" if total else str(step)


def bar(job: Job) -> Progress:
    """What the bar of a followed job shows: steps, rate, what is left, metrics."""
    status = job["status"]
    progress = status.get("progress") or {}
    step, total = progress.get("step"), progress.get("total_steps")
    words = [f"{job['name']}: {status['phase']}"]
    if status["phase"] == "Pending":
        words.append(why_column(job, 0.0))
    words += [text] if (text := progress_text(job)) else []
    if isinstance(rate := progress.get("rate"), int | float):
        words.append(f"{rate:.3g} steps/s")
    if isinstance(left := progress.get("eta_s"), int | float):
        words.append(f"{format_duration(round(left))} left")
    words += [
        f"{name} {value:.4g}"
        for name, value in sorted((progress.get("metrics") or {}).items())[:3]
        if isinstance(value, int | float)
    ]
    words += [f"restarts {status['restarts']}"] if status.get("restarts") else []
    if isinstance(step, int | float) and isinstance(total, int | float) and total > 0:
        return Progress(step / total, "  ".join(words))
    return Progress(_tasks_done(status), "  ".join(words))


def _tasks_done(status: Mapping[str, Any]) -> float | None:
    array = status.get("array")
    if not array or not array.get("total"):
        return None
    return float(array["succeeded"] + array["failed"] + array["cancelled"]) / float(array["total"])


COLUMNS = (
    Column("NAME", lambda job, _: str(job["name"])),
    Column("PHASE", lambda job, _: str(job["status"]["phase"]), style=phase_style),
    Column("PROGRESS", progress_text, right=True),
    Column("RESTARTS", lambda job, _: str(job["status"].get("restarts") or 0), right=True),
    Column("AGE", lambda job, now: age(job.get("created_at"), now), right=True),
    Column("NODES", lambda job, _: ",".join(job["status"].get("nodes") or ())),
    Column("WHY", why_column),
)
ENGINE_COLUMN = Column("ENGINE", lambda job, _: engine_text(job))
PROJECT_COLUMN = Column("PROJECT", lambda job, _: str(job.get("project") or ""))

EVENT_COLUMNS = (
    Column("AGE", lambda event, now: age(event.get("at"), now), right=True),
    Column("REASON", lambda event, _: str(event["reason"])),
    Column("ACTOR", lambda event, _: str(event["actor"])),
    Column("MESSAGE", lambda event, _: first_line(str(event.get("message") or ""))),
)

ATTEMPT_COLUMNS = (
    Column("NUMBER", lambda attempt, _: str(attempt["number"]), right=True),
    Column("PHASE", lambda attempt, _: str(attempt["phase"]), style=phase_style),
    Column("NODES", lambda attempt, _: ",".join(attempt.get("nodes") or ())),
    Column("STARTED", lambda attempt, _: str(attempt.get("started_at") or "")),
    Column("ENDED", lambda attempt, _: str(attempt.get("ended_at") or "")),
    Column("EXIT", lambda attempt, _: exit_text(attempt), right=True),
    Column("RESTARTS", lambda attempt, _: str(attempt.get("restarts") or 0), right=True),
    Column(
        "WHY", lambda attempt, _: first_line(because(attempt.get("reason"), attempt.get("message"), attempt["phase"]))
    ),
)


def exit_text(attempt: Mapping[str, Any]) -> str:
    """An exit code, or the signal that ended it."""
    if attempt.get("signal"):
        return f"signal {attempt['signal']}"
    return "" if attempt.get("exit_code") is None else str(attempt["exit_code"])


def page(job: Job, now: float) -> list[str]:
    """The upper part of ``describe``: what was asked, and how it stands."""
    spec, status = job["spec"], job["status"]
    resources = spec.get("resources") or {}
    rows: list[tuple[str, object]] = [
        ("Name", f"{job.get('project')}/{job['name']}"),
        ("Id", job.get("id")),
        ("User", job.get("user")),
        ("Created", f"{job.get('created_at')} ({age(job.get('created_at'), now)} ago)"),
        ("Generation", job.get("generation")),
        ("Labels", _pairs(job.get("labels"))),
        ("Command", " ".join(spec.get("command") or ())),
        ("Launcher", spec.get("launcher")),
        ("Shape", f"{_nodes(spec)} node(s) x {spec.get('procs', 1)} rank(s)"),
        ("Per node", _pairs(resources)),
        ("Queue", spec.get("queue") or "its project's"),
        ("Placement", _placed(spec.get("placement"))),
        ("Flavors", ", ".join(spec.get("flavors") or ())),
        ("Not on", ", ".join(spec.get("exclude_nodes") or ())),
        ("Reservation", spec.get("reservation")),
        ("Engine", engine_text(job) or spec.get("engine")),
        ("Options", _pairs(spec.get("engine_options"))),
        ("Environment", _pairs(spec.get("environment"))),
        ("Variables", _pairs(spec.get("env"))),
        ("Work folder", spec.get("workdir")),
        ("Snapshot", str(spec.get("snapshot") or "")[:12]),
        ("Limits", _pairs({key: spec.get(key) for key in ("time_limit", "grace_period", "max_restarts", "priority")})),
        ("Waits for", ", ".join(f"{d['job']} ({d['condition']})" for d in spec.get("depends_on") or ())),
        ("Phase", status["phase"]),
        ("Why", whole_why(job).replace("\n", f"\n{'':<14}")),
        ("Avoids", "; ".join(f"{a['node']} until {a['until']}: {a['why']}" for a in status.get("avoids") or ())),
        ("GPUs", "; ".join(c["message"] for c in status.get("conditions") or () if c["type"] == "GpuIdle")),
        ("Attempt", f"{status.get('attempt', 0)} ({status.get('restarts') or 0} restarts)"),
        ("Nodes", ", ".join(status.get("nodes") or ())),
        ("May start", f"about {status['start_estimate']}" if status.get("start_estimate") else ""),
        ("Progress", bar(job).text if progress_text(job) else ""),
        ("Started", status.get("started_at")),
        ("Finished", status.get("finished_at")),
        ("Exit code", status.get("exit_code")),
        ("Signal", status.get("signal")),
    ]
    return [f"{name + ':':<14}{value}" for name, value in rows if value not in (None, "")]


def _nodes(spec: Mapping[str, Any]) -> str:
    most, least = spec.get("nodes", 1), spec.get("min_nodes")
    return f"{least} to {most}" if least is not None and least < most else str(most)


def _placed(placement: Mapping[str, Any] | None) -> str:
    """``one rack, required``."""
    if not placement:
        return ""
    return f"one {placement['level']}, " + ("required" if placement.get("required") else "preferred")


def _pairs(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name}={value}" for name, value in (values or {}).items() if value not in (None, "", (), []))
