"""View models of a job's pages: pure functions from the API's JSON to what a template shows.

Numbers stay numbers and times stay RFC 3339: the templates' filters write them for people.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from penstock.base.reasons import Reason

PHASES = ("Pending", "Starting", "Running", "Stopping", "Succeeded", "Failed", "Cancelled")
FINAL = frozenset(PHASES[4:])
MAX_PLOTS = 8  # as in chart.js
MAX_RANKS = 256  # choices in the log's rank selector; further ranks are typed into the address


@dataclass(frozen=True, slots=True)
class Badge:
    """A word, the tone that colours it and the icon that says it without colour."""

    word: str
    tone: str  # wait | run | ok | bad | off | note
    icon: str


_PHASE_BADGES = {
    "Pending": Badge("Pending", "wait", "clock"),
    "Starting": Badge("Starting", "run", "arrow"),
    "Running": Badge("Running", "run", "play"),
    "Stopping": Badge("Stopping", "wait", "stop"),
    "Succeeded": Badge("Succeeded", "ok", "check"),
    "Failed": Badge("Failed", "bad", "cross"),
    "Cancelled": Badge("Cancelled", "off", "slash"),
}

_BAD = frozenset(
    {
        Reason.Failed,
        Reason.OutOfMemory,
        Reason.TimeLimit,
        Reason.Hung,
        Reason.RankHung,
        Reason.NodeLost,
        Reason.CommandNotFound,
        Reason.NotExecutable,
        Reason.WorkdirMissing,
        Reason.EnvironmentMissing,
        Reason.LaunchFailed,
        Reason.SupervisorLost,
        Reason.RestartsExhausted,
        Reason.CrashLoop,
        Reason.NodeAvoided,
        Reason.DependencyFailed,
        Reason.Lost,
        Reason.OrphanEnded,
        Reason.FindingRaised,
    }
)
_WAITING = frozenset(
    {
        Reason.WaitingForResources,
        Reason.WaitingForDependency,
        Reason.WaitingForArraySlot,
        Reason.WaitingBehind,
        Reason.Unschedulable,
        Reason.BackingOff,
        Reason.HandedOver,
        Reason.HeldByAdministrator,
        Reason.Requeued,
        Reason.EngineUnreachable,
        Reason.Preempted,
        Reason.Reclaimed,
        Reason.IdleReclaimed,
        Reason.QuotaExceeded,
        Reason.NodeDrained,
        Reason.RankExited,
        Reason.RankRestarted,
        Reason.Restarting,
        Reason.Cordoned,
        Reason.Drained,
        Reason.HealthActed,
        Reason.HealthHeld,
        Reason.CancelRequested,
    }
)
_GOOD = frozenset({Reason.Completed, Reason.Restored, Reason.Uncordoned, Reason.Joined, Reason.FindingEnded})
_OFF = frozenset({Reason.Cancelled, Reason.IdleTimeout, Reason.Deleted})

# What a phase's reason means, where the server's message does not already say it.
_SENTENCES: dict[str, str] = {
    Reason.Created: "It was accepted and will be looked at in a moment.",
    Reason.WaitingForResources: "It waits until nodes have enough free CPUs, memory and GPUs.",
    Reason.WaitingForDependency: "It waits for a job that it depends on.",
    Reason.WaitingForArraySlot: "It waits: the array's limit of parallel tasks is reached.",
    Reason.WaitingBehind: "It waits behind an earlier job that is first in line.",
    Reason.Unschedulable: "No node could ever hold it as the fleet stands.",
    Reason.BackingOff: "It waits a little before its next attempt.",
    Reason.HandedOver: "It waits in the line of its engine, which places it itself.",
    Reason.HeldByAdministrator: "An administrator of its engine holds it; it starts when they let it go.",
    Reason.Requeued: "Its engine took it back into its line; there it starts again.",
    Reason.EngineUnreachable: "Its engine does not answer: it is as it was last seen.",
    Reason.Admitted: "Nodes are chosen; it is being started.",
    Reason.Started: "Its processes run.",
    Reason.Completed: "Every rank ended with exit code 0.",
    Reason.Failed: "A rank ended with an error.",
    Reason.OutOfMemory: "A rank used more memory than the job asked for and was ended by the kernel.",
    Reason.TimeLimit: "It ran into its time limit.",
    Reason.Cancelled: "It was cancelled.",
    Reason.QuotaExceeded: "It waits until its queue, or its cohort, has quota left.",
    Reason.Preempted: "It gave its place to a more urgent job and will be started again.",
    Reason.Hung: "It made no progress; its events say which rank held the others up.",
    Reason.NodeLost: "A node that it ran on was lost.",
    Reason.NodeDrained: "Its node was drained; it starts again elsewhere.",
    Reason.CommandNotFound: "Its command does not exist on the node.",
    Reason.NotExecutable: "Its command may not be executed.",
    Reason.RestartsExhausted: "It failed more often than max_restarts allows.",
    Reason.CrashLoop: "It failed again and again at one step: the script is at fault.",
    Reason.Resizing: "It saves, and starts again on more nodes.",
    Reason.NodeAvoided: "A node is at fault; the job is kept off it.",
    Reason.DependencyFailed: "A job that it depends on did not succeed.",
    Reason.CancelRequested: "A cancel was asked for; its processes have their grace period to end.",
}


def phase_badge(phase: str) -> Badge:
    return _PHASE_BADGES.get(phase, Badge(phase, "off", "dot"))


def reason_badge(reason: str) -> Badge:
    """How an event's or an attempt's reason looks."""
    if reason in _BAD:
        return Badge(reason, "bad", "cross")
    if reason in _WAITING:
        return Badge(reason, "wait", "back" if reason in {"RankRestarted", "Restarting"} else "clock")
    if reason in _GOOD:
        return Badge(reason, "ok", "check")
    if reason in _OFF:
        return Badge(reason, "off", "slash")
    if reason in {Reason.Started, Reason.AttemptStarted, Reason.Admitted}:
        return Badge(reason, "run", "play")
    return Badge(reason, "note", "dot")


def href(project: str, name: str) -> str:
    return f"/jobs/{quote(project, safe='')}/{quote(name, safe='')}"


@dataclass(frozen=True, slots=True)
class Progress:
    step: float
    total: float | None
    percent: float | None  # 0 to 100
    rate: float | None  # steps a second
    eta_s: float | None
    metrics: tuple[tuple[str, float], ...]


def progress(status: Mapping[str, Any]) -> Progress | None:
    """None for a job that reports nothing."""
    given = status.get("progress") or {}
    step, total = _number(given.get("step")), _number(given.get("total_steps"))
    metrics = _numbers(given.get("metrics"))
    if step is None and not metrics:
        return None
    percent = min(100.0, max(0.0, 100.0 * step / total)) if step is not None and total else None
    return Progress(step or 0.0, total, percent, _number(given.get("rate")), _number(given.get("eta_s")), metrics)


@dataclass(frozen=True, slots=True)
class JobRow:
    id: str
    project: str
    name: str
    href: str
    user: str
    badge: Badge
    reason: str
    message: str
    nodes: tuple[str, ...]
    gpus: int
    restarts: int
    progress: Progress | None
    headline: tuple[str, float] | None  # the metric that the sparkline shows, and its latest value
    array: Mapping[str, int] | None
    created_at: str | None
    started_at: str | None
    finished_at: str | None


def job_row(job: Mapping[str, Any]) -> JobRow:
    """One line of the list of jobs."""
    status, spec = job.get("status") or {}, job.get("spec") or {}
    seen = progress(status)
    reason = str(status.get("reason") or "")
    gpus = int((spec.get("resources") or {}).get("gpus") or 0) * int(spec.get("nodes") or 1)
    return JobRow(
        id=str(job.get("id") or ""),
        project=str(job.get("project")),
        name=str(job.get("name")),
        href=href(str(job.get("project")), str(job.get("name"))),
        user=str(job.get("user") or ""),
        badge=phase_badge(str(status.get("phase"))),
        reason=reason,
        message=str(status.get("message") or ("" if reason == Reason.Completed else _SENTENCES.get(reason, ""))),
        nodes=tuple(map(str, status.get("nodes") or ())),
        gpus=gpus,
        restarts=int(status.get("restarts") or 0),
        progress=seen,
        headline=_headline(seen.metrics) if seen else None,
        array=status.get("array"),
        created_at=job.get("created_at"),
        started_at=status.get("started_at"),
        finished_at=status.get("finished_at"),
    )


def _headline(metrics: Sequence[tuple[str, float]]) -> tuple[str, float] | None:
    return next((m for m in metrics if m[0] == "loss"), None) or (metrics[0] if metrics else None)


@dataclass(frozen=True, slots=True)
class JobHead:
    """The top of a job's page."""

    row: JobRow
    sentence: str
    final: bool
    facts: tuple[tuple[str, str], ...]
    labels: tuple[tuple[str, str], ...]
    spec: str
    ranks: tuple[str, ...]
    attempt: int
    plots: tuple[str, ...]  # the metrics that are drawn, in their order
    children: str | None  # address of an array's tasks


def job_head(job: Mapping[str, Any]) -> JobHead:
    row = job_row(job)
    status, spec = job.get("status") or {}, job.get("spec") or {}
    return JobHead(
        row=row,
        sentence=sentence(status),
        final=str(status.get("phase")) in FINAL,
        facts=tuple(_facts(job)),
        labels=tuple(sorted((str(k), str(v)) for k, v in (job.get("labels") or {}).items())),
        spec=spec_text(spec),
        ranks=ranks(spec),
        attempt=int(status.get("attempt") or 0),
        plots=plots(row.progress),
        children=f"/?q={quote(row.name)}-&project={quote(row.project)}" if spec.get("array") else None,
    )


def plots(seen: Progress | None) -> tuple[str, ...]:
    """``loss`` first, then by name (chart.js has the same order)."""
    names = [name for name, _ in seen.metrics] if seen else []
    return tuple(sorted(names, key=lambda name: (name != "loss", name)))[:MAX_PLOTS]


def sentence(status: Mapping[str, Any]) -> str:
    """Phase and reason, said once, ending with a full stop."""
    reason = str(status.get("reason") or "")
    said = str(status.get("message") or "").strip() or _SENTENCES.get(reason, "")
    if not said:
        return ""
    said = said[0].upper() + said[1:]
    return said if said[-1] in ".!?" else said + "."


def ranks(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """What the log can be narrowed to; a launcher (torchrun, ...) has a log of its own."""
    count = int(spec.get("nodes") or 1) * int(spec.get("procs") or 1)
    launcher = ("launcher",) if spec.get("launcher") not in (None, "none") else ()
    return tuple(str(rank) for rank in range(min(count, MAX_RANKS))) + launcher


def _facts(job: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    status, spec = job.get("status") or {}, job.get("spec") or {}
    needs = spec.get("resources") or {}
    yield "User", str(job.get("user") or "")
    yield "Command", shlex.join(map(str, spec.get("command") or ())) or "(interactive)"
    nodes, procs = int(spec.get("nodes") or 1), int(spec.get("procs") or 1)
    yield "Shape", f"{nodes} node{'s' * (nodes > 1)} x {procs} rank{'s' * (procs > 1)}"
    asked = [f"{float(needs.get('cpus') or 1):g} CPU"]
    asked += [str(needs["memory"])] if needs.get("memory") else []
    if needs.get("mig"):
        asked.append(f"{needs.get('gpus') or 1} x {needs['mig']}")
    elif needs.get("gpu_share"):
        asked.append(f"{needs['gpu_share']:g} of a GPU")
    elif needs.get("gpus"):
        asked.append(f"{needs['gpus']} GPU")
    yield "Per node", ", ".join(asked)
    if status.get("engine"):
        named = f", as job {status['engine_job']}" if status.get("engine_job") else ""
        yield "Engine", f"{status['engine']}{named}"
    if status.get("start_estimate"):
        yield "May start", f"about {status['start_estimate']}"
    if status.get("nodes"):
        yield "Nodes", ", ".join(map(str, status["nodes"]))
    if spec.get("depends_on"):
        yield "Depends on", ", ".join(f"{d['job']} ({d.get('condition', 'Succeeded')})" for d in spec["depends_on"])
    if spec.get("time_limit"):
        yield "Time limit", str(spec["time_limit"])
    yield "Restarts", f"{int(status.get('restarts') or 0)} of {int(spec.get('max_restarts') or 0)}"
    yield "Generation", str(job.get("generation") or 1)
    yield "Id", str(job.get("id") or "")


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: ``word`` for people ("0", "exit 1", "SIGKILL")."""

    word: str
    tone: str
    icon: str


_SIGNALS = {
    1: "SIGHUP",
    2: "SIGINT",
    3: "SIGQUIT",
    4: "SIGILL",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    13: "SIGPIPE",
    14: "SIGALRM",
    15: "SIGTERM",
}


def how_ended(exit_code: int | None, signal: int | None) -> Exit | None:
    """None while it runs, or where nothing is known."""
    if signal:
        return Exit(f"{_SIGNALS.get(signal, 'signal')} ({signal})", "bad", "cross")
    if exit_code is None:
        return None
    return Exit("exit 0", "ok", "check") if exit_code == 0 else Exit(f"exit {exit_code}", "bad", "cross")


@dataclass(frozen=True, slots=True)
class AttemptRow:
    number: int
    badge: Badge
    message: str
    nodes: tuple[str, ...]
    submitted_at: str | None
    started_at: str | None
    ended_at: str | None
    exit: Exit | None
    restarts: int
    engine: str  # another than the server's own, and what it calls it
    ranks: tuple[tuple[int, str, Exit | None, int], ...]  # rank, node, exit, restarts


def attempt_rows(attempts: Iterable[Mapping[str, Any]]) -> tuple[AttemptRow, ...]:
    """Newest first."""
    rows = [_attempt(a) for a in attempts]
    return tuple(sorted(rows, key=lambda row: -row.number))


def _attempt(attempt: Mapping[str, Any]) -> AttemptRow:
    reason = str(attempt.get("reason") or "")
    badge = reason_badge(reason) if attempt.get("ended_at") and reason else phase_badge(str(attempt.get("phase")))
    return AttemptRow(
        number=int(attempt.get("number") or 0),
        badge=badge,
        message=str(attempt.get("message") or ""),
        nodes=tuple(map(str, attempt.get("nodes") or ())),
        submitted_at=attempt.get("submitted_at"),
        started_at=attempt.get("started_at"),
        ended_at=attempt.get("ended_at"),
        exit=how_ended(attempt.get("exit_code"), attempt.get("signal")),
        restarts=int(attempt.get("restarts") or 0),
        engine=f"{attempt['engine']}:{attempt.get('engine_job') or '?'}" if attempt.get("queued") else "",
        ranks=tuple(
            (
                int(r["rank"]),
                str(r.get("node") or ""),
                how_ended(r.get("exit_code"), r.get("signal")),
                int(r.get("restarts") or 0),
            )
            for r in sorted(attempt.get("ranks") or (), key=lambda r: int(r["rank"]))
        ),
    )


@dataclass(frozen=True, slots=True)
class EventRow:
    seq: int
    at: str
    actor: str
    kind: str
    subject: str
    href: str | None
    badge: Badge
    message: str
    data: str  # JSON, empty when there is none


def event_row(event: Mapping[str, Any]) -> EventRow:
    kind, project, name = (str(event.get(k) or "") for k in ("kind", "project", "name"))
    link = (
        href(project, name)
        if kind == "Job" and project and name
        else "/nodes#" + quote(name)
        if kind == "Node"
        else None
    )
    data = event.get("data")
    return EventRow(
        seq=int(event.get("seq") or 0),
        at=str(event.get("at") or ""),
        actor=str(event.get("actor") or ""),
        kind=kind,
        subject=f"{project}/{name}" if project else name,
        href=link,
        badge=reason_badge(str(event.get("reason") or "")),
        message=str(event.get("message") or ""),
        data=json.dumps(data, ensure_ascii=False) if data else "",
    )


def spark(series: Sequence[Sequence[float]], width: float = 84, height: float = 18, points: int = 42) -> str:
    """The ``points`` of an SVG polyline for ``[[step, t, value], ...]``; empty where there is no line to draw."""
    values = [v for v in (_number(row[2]) for row in series if len(row) > 2) if v is not None]
    if len(values) < 2:
        return ""
    if len(values) > points:
        values = [values[round(i * (len(values) - 1) / (points - 1))] for i in range(points)]
    values = [min(1e150, max(-1e150, v)) for v in values]  # so that no difference overflows
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    dx = width / (len(values) - 1)
    return " ".join(f"{i * dx:.1f},{1 + (height - 2) * (high - v) / span:.1f}" for i, v in enumerate(values))


def headline_series(answer: Mapping[str, Any], name: str) -> Sequence[Sequence[float]]:
    found: Sequence[Sequence[float]] = (answer.get("series") or {}).get(name) or ()
    return found


# -- the specification, as YAML reads ------------------------------------------------------------


def spec_text(spec: Mapping[str, Any]) -> str:
    """Block style with JSON scalars, which every YAML parser reads back; fields that say nothing are left out."""
    return "\n".join(_block(spec, 0))


_NOTHING: tuple[Any, ...] = (None, [], {}, (), 0, False)  # each is its field's default


def _block(value: Mapping[str, Any] | Sequence[Any], depth: int) -> Iterable[str]:
    pad = "  " * depth
    pairs = value.items() if isinstance(value, Mapping) else ((None, item) for item in value)
    for key, item in pairs:
        lead = pad + ("-" if key is None else f"{_scalar(str(key))}:")
        if isinstance(item, (Mapping, list, tuple)) and item:
            if isinstance(item, (list, tuple)) and all(isinstance(i, (str, int, float)) for i in item):
                yield f"{lead} [{', '.join(map(_scalar, item))}]"
            elif inside := list(_block(item, depth + 1)):
                yield lead
                yield from inside
        elif key is None or item not in _NOTHING:
            yield f"{lead} {_scalar(item)}"


def _scalar(value: Any) -> str:
    plain = (
        isinstance(value, str) and value and value.replace("-", "").replace("_", "").replace("/", "").replace(".", "")
    )
    if plain and plain.isalnum() and plain[0].isalpha() and value[0] not in "-." and value.lower() not in _YAML_WORDS:
        return str(value)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


_UNPRINTABLE = re.compile(
    "[^\\t\\n -~\\xa0-\\u2027\\u202a-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]"
)  # YAML 1.1, 5.1, less breaks
_YAML_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def _number(value: Any) -> float | None:
    """Finite numbers only: NaN and infinities come from diverged training and cannot be drawn."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    number = float(value)
    return number if number - number == 0 else None


def _numbers(metrics: Mapping[str, Any] | None) -> tuple[tuple[str, float], ...]:
    pairs = ((str(k), _number(v)) for k, v in (metrics or {}).items())
    return tuple((k, v) for k, v in pairs if v is not None)
