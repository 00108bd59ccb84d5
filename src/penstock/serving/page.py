"""View models of the console's pages of services: pure functions from the API's JSON to what a template shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from penstock.jobs.page import Badge

Body = Mapping[str, Any]
_PHASES = {
    "Ready": Badge("Ready", "ok", "check"),
    "RollingOut": Badge("RollingOut", "run", "arrow"),
    "Starting": Badge("Starting", "run", "arrow"),
    "Degraded": Badge("Degraded", "bad", "cross"),
    "Idle": Badge("Idle", "off", "clock"),
    "Deleting": Badge("Deleting", "wait", "stop"),
    # of replicas
    "Warming": Badge("Warming", "run", "play"),
    "Draining": Badge("Draining", "wait", "stop"),
    # of rollouts
    "Preparing": Badge("Preparing", "run", "clock"),
    "Progressing": Badge("Progressing", "run", "arrow"),
    "Paused": Badge("Paused", "wait", "stop"),
    "Promoted": Badge("Promoted", "ok", "check"),
    "RolledBack": Badge("RolledBack", "bad", "back"),
}


def badge(word: str) -> Badge:
    return _PHASES.get(word, Badge(word, "note", "dot"))


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g}%"


def latency(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def price(amount: float | None) -> str:
    """Three figures, however little it is: a small model's thousand requests cost hundredths of a cent."""
    if amount is None:
        return "-"
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{amount:.{2 - math.floor(math.log10(amount))}f}"


@dataclass(frozen=True, slots=True)
class Share:
    """A version in the traffic's split; ``x`` and ``width`` in percent of the bar."""

    number: int
    hue: int
    role: str
    weight: float
    mirror: float
    x: float
    width: float
    ready: int
    replicas: int
    model: str
    message: str


@dataclass(frozen=True, slots=True)
class ServiceRow:
    id: str
    project: str
    name: str
    href: str
    badge: Badge
    reason: str
    message: str
    url: str
    ready: int
    wanted: int
    shares: tuple[Share, ...]
    rate: str
    p95: str
    errors: str
    failing: bool


def href(project: str, name: str) -> str:
    return f"/services/{quote(project, safe='')}/{quote(name, safe='')}"


def service_row(service: Body) -> ServiceRow:
    status = service["status"]
    replicas, traffic = status["replicas"], status.get("traffic") or {}
    errors = traffic.get("error_share")
    return ServiceRow(
        str(service["id"]),
        str(service["project"]),
        str(service["name"]),
        href(str(service["project"]), str(service["name"])),
        badge(str(status["phase"])),
        str(status["reason"]),
        str(status["message"]),
        str(status["url"]),
        int(replicas["ready"]),
        int(replicas["wanted"]),
        shares(status["versions"]),
        f"{traffic['requests_per_second']:,.3g}" if traffic else "-",
        latency(traffic.get("p95")),
        percent(errors),
        bool(errors),
    )


def hue(number: int) -> int:
    """Of a version, wherever it is drawn."""
    return (number - 1) % 9


def shares(versions: Sequence[Body]) -> tuple[Share, ...]:
    found, x = [], 0.0
    for version in versions:
        weight = float(version["weight"])
        replicas = version["replicas"]
        found.append(
            Share(
                int(version["number"]),
                hue(int(version["number"])),
                str(version["role"]),
                weight,
                float(version["mirror"]),
                round(x, 3),
                weight,
                sum(one["phase"] == "Ready" for one in replicas),
                len(replicas),
                str(version["template"].get("model") or version["template"].get("runtime") or ""),
                str(version["message"]),
            )
        )
        x += weight
    return tuple(found)


# -- over time

WIDE, HIGH = 600, 120  # of a chart's own units


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    hue: int
    dash: bool
    paths: tuple[str, ...]  # points of polylines: one for each stretch without a gap
    newest: str


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    top: str
    lines: tuple[Line, ...]
    empty: bool


@dataclass(frozen=True, slots=True)
class Charts:
    charts: tuple[Chart, ...]
    minutes: float  # from the left to the right


Series = tuple[str, int, bool, Sequence[tuple[float, float | None]]]  # name, hue, dashed, points


def charts(history: Body) -> Charts | None:
    """None while there are no two points."""
    versions = history["items"][-3:]
    times = [at for version in versions for at in version["at"]]
    if not times or max(times) <= min(times):
        return None
    first, last = min(times), max(times)

    def drawn(title: str, words: Any, series: Sequence[Series], least: float = 0.0) -> Chart:
        return _chart(title, words, series, (first, last), least)

    def of(version: Body, name: str) -> list[tuple[float, float | None]]:
        return list(zip(version["at"], version[name], strict=True))

    def by_version(values: Any) -> list[Series]:
        return [(f"version {v['version']}", hue(int(v["version"])), False, values(v)) for v in versions]

    found = [
        drawn("Requests a second", lambda v: f"{v:,.3g}", by_version(lambda v: _each(v, "requests", "seconds"))),
        drawn("Errors", percent, by_version(lambda v: _each(v, "errors", "requests")), 0.01),
        *(
            drawn(
                f"Latency of version {v['version']}",
                latency,
                [(name.upper(), n, name == "p50", of(v, name)) for n, name in ((2, "p50"), (0, "p95"), (4, "p99"))],
            )
            for v in versions
            if any(value is not None for value in v["p95"])
        ),
        drawn(
            "Replicas against load",
            lambda v: f"{v:,.3g}",
            [
                ("replicas ready", 2, False, _summed(versions, "ready")),
                ("requests at once", 1, False, _summed(versions, "active")),
            ],
            1.0,
        ),
    ]
    return Charts(tuple(found), (last - first) / 60)


def _each(version: Body, name: str, by: str) -> list[tuple[float, float | None]]:
    rows = zip(version["at"], version[name], version[by], strict=True)
    return [(at, value / whole if whole else None) for at, value, whole in rows]


def _summed(versions: Sequence[Body], name: str) -> list[tuple[float, float | None]]:
    found: dict[float, float] = {}
    for version in versions:
        for at, value in zip(version["at"], version[name], strict=True):
            found[at] = found.get(at, 0.0) + (value or 0.0)
    return sorted(found.items())


def _chart(title: str, words: Any, series: Sequence[Series], within: tuple[float, float], least: float) -> Chart:
    known = [value for *_, points in series for _, value in points if value is not None]
    top = max([*known, least]) or 1.0
    lines = []
    for name, colour, dash, points in series:
        newest = points[-1][1] if points else None
        lines.append(
            Line(name, colour, dash, _paths(points, within, top), words(newest) if newest is not None else "-")
        )
    return Chart(title, words(top), tuple(lines), not known)


def _paths(points: Sequence[tuple[float, float | None]], within: tuple[float, float], top: float) -> tuple[str, ...]:
    """A gap where nothing was asked; a point that stands alone is a short stroke."""
    first, last = within
    found: list[str] = []
    run: list[str] = []
    for at, value in [*points, (last, None)]:
        if value is not None:
            x, y = WIDE * (at - first) / (last - first), 2 + (HIGH - 4) * (1 - min(value, top) / top)
            run.append(f"{x:.1f},{y:.1f}")
        elif run:
            if len(run) == 1:
                x, y = map(float, run[0].split(","))
                run = [f"{max(0.0, x - 2):.1f},{y:.1f}", f"{min(WIDE, x + 2):.1f},{y:.1f}"]
            found.append(" ".join(run))
            run = []
    return tuple(found)


# -- replicas


@dataclass(frozen=True, slots=True)
class Stage:
    part: str
    x: float
    width: float
    title: str


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    job: str
    href: str
    version: int
    badge: Badge
    since: str | None
    where: str
    stages: tuple[Stage, ...]
    cold: str


STAGES = ("queued", "started", "loaded", "warmed")


def replicas(service: Body) -> tuple[ReplicaRow, ...]:
    """Their cold starts on one scale: the slowest is as wide as all."""
    found = [(version, one) for version in service["status"]["versions"] for one in version["replicas"]]
    slowest = max((sum(one["stages"].values()) for _, one in found), default=0.0) or 1.0
    return tuple(_replica(service, version, one, slowest) for version, one in found)


def _replica(service: Body, version: Body, one: Body, slowest: float) -> ReplicaRow:
    stages, x = [], 0.0
    for name in STAGES:
        seconds = float(one["stages"].get(name) or 0.0)
        if seconds > 0:
            width = 100 * seconds / slowest
            stages.append(Stage(name, round(x, 3), round(width, 3), f"{name} {latency(seconds)}"))
            x += width
    total = sum(one["stages"].values())
    return ReplicaRow(
        str(one["job"]),
        f"/jobs/{quote(str(service['project']), safe='')}/{quote(str(one['job']), safe='')}",
        int(version["number"]),
        badge(str(one["phase"])),
        one["since"],
        f"{one['address']}:{one['port']}" if one["port"] else "",
        tuple(stages),
        latency(total) if total else "",
    )


@dataclass(frozen=True, slots=True)
class Batch:
    size: int
    count: int
    percent: float


def batches(service: Body) -> tuple[tuple[Batch, ...], str]:
    """How often batches of each size ran, of the replicas that are there now, and the mean size; no rows: nobody told."""
    counts: dict[int, float] = {}
    for version in service["status"]["versions"]:
        for one in version["replicas"]:
            for size, count in one.get("batches", {}).items():
                counts[int(float(size))] = counts.get(int(float(size)), 0.0) + count
    whole = sum(counts.values())
    if not whole:
        return (), ""
    mean = sum(size * count for size, count in counts.items()) / whole
    return tuple(Batch(size, int(counts[size]), 100 * counts[size] / whole) for size in sorted(counts)), f"{mean:.3g}"


# -- rollouts


@dataclass(frozen=True, slots=True)
class Step:
    step: int
    what: Badge
    share: str
    copies: str
    after: float
    requests: float
    errors: str
    stable_errors: str
    p95: str
    stable_p95: str
    why: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A test of the last decision that had one."""

    name: str
    verdict: Badge
    evidence: float  # per cent of what a failure needs
    samples: str
    why: str


@dataclass(frozen=True, slots=True)
class Trend:
    title: str
    candidate: str  # points of polylines on one scale
    stable: str
    top: str


@dataclass(frozen=True, slots=True)
class Example:
    title: str
    differs: str
    request: str
    stable: str
    candidate: str
    slower: str


@dataclass(frozen=True, slots=True)
class Shadow:
    compared: int
    agreed: int
    failed: int
    share: str
    slower: str
    dropped: str
    problem: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class Rollout:
    candidate: int
    stable: int
    badge: Badge
    message: str
    created_at: str | None
    ended_at: str | None
    asked: str
    steps: tuple[Step, ...]
    tests: tuple[Trial, ...]
    trends: tuple[Trend, ...]
    shadow: Shadow | None


_VERDICTS = {
    "pass": Badge("pass", "ok", "check"),
    "fail": Badge("fail", "bad", "cross"),
    "undecided": Badge("undecided", "wait", "clock"),
}
_WHAT = {"Promoted": ("ok", "check"), "RolledBack": ("bad", "back"), "RolloutPaused": ("wait", "stop")}


def rollout(one: Body) -> Rollout:
    entries = [entry for entry in one["evidence"] if "candidate" in entry]
    judged = [entry for entry in entries if entry.get("tests")]
    return Rollout(
        int(one["candidate"]),
        int(one["stable"]),
        badge(str(one["phase"])),
        str(one["message"]),
        one["created_at"],
        one["ended_at"],
        str(one["asked"] or ""),
        tuple(map(_step, entries)),
        tuple(map(_trial, judged[-1]["tests"])) if judged else (),
        _trends(one.get("points") or ()),
        _shadow(one, entries),
    )


def _step(entry: Body) -> Step:
    what = str(entry["what"])
    candidate, stable = entry["candidate"], entry["stable"]
    return Step(
        int(entry["step"]) + 1,
        Badge(what.removeprefix("Rollout"), *_WHAT.get(what, ("run", "arrow"))),
        percent(entry["weight"] / 10_000),
        percent(entry["mirror"] / 10_000) if entry["mirror"] else "",
        float(entry["seconds"]),
        float(candidate["requests"]),
        _errors(candidate),
        _errors(stable),
        latency(candidate["p95"]),
        latency(stable["p95"]),
        str(entry["why"]),
    )


def _errors(side: Body) -> str:
    return percent(side["errors"] / side["requests"]) if side["requests"] else "-"


def _trial(test: Body) -> Trial:
    stable = f" and {test['stable']:,.0f}" if test["stable"] else ""
    return Trial(
        str(test["name"]),
        _VERDICTS.get(str(test["verdict"]), Badge(str(test["verdict"]), "note", "dot")),
        min(100.0, 100 * float(test["evidence"])),
        f"{test['candidate']:,.0f}{stable}",
        str(test["words"]),
    )


def _trends(points: Sequence[Body]) -> tuple[Trend, ...]:
    if len(points) < 2:
        return ()
    found = []
    for title, name, words in (("Errors", "errors", percent), ("P95", "p95", latency)):
        sides = [[(point["at"], point[key]) for point in points] for key in (name, f"stable_{name}")]
        known = [value for side in sides for _, value in side if value is not None]
        top = max(known, default=0.0) or 1.0
        within = (points[0]["at"], points[-1]["at"])
        if known and within[1] > within[0]:
            candidate, stable = (_joined(side, within, top) for side in sides)
            found.append(Trend(title, candidate, stable, words(max(known))))
    return tuple(found)


def _joined(points: Sequence[tuple[float, float | None]], within: tuple[float, float], top: float) -> str:
    return " ".join(_paths([(at, value) for at, value in points if value is not None], within, top))


def _shadow(one: Body, entries: Sequence[Body]) -> Shadow | None:
    """As the comparator has it now; of one that is long over, as it was when the last decision was made."""
    seen = one.get("shadow")
    if seen is not None and seen["compared"]:
        judged = max(1, int(seen["compared"]))
        dropped = ", ".join(f"{count:,} {why.replace('_', ' ')}" for why, count in seen["dropped"].items())
        return _told(seen, seen["slower_s"] / judged, dropped, str(seen["problem"]))
    kept = next((entry for entry in reversed(entries) if "compared" in entry), None)
    return _told(kept, kept["slower_s"], "", "") if kept is not None else None


def _told(seen: Body, slower: float, dropped: str, problem: str) -> Shadow:
    compared, agreed = int(seen["compared"]), int(seen["agreed"])
    return Shadow(
        compared,
        agreed,
        int(seen["failed"]),
        percent(agreed / compared) if compared else "-",
        _slower(slower),
        dropped,
        problem,
        tuple(_example(each) for each in seen["examples"]),
    )


def _slower(seconds: float) -> str:
    return f"{latency(abs(seconds))} {'slower' if seconds >= 0 else 'faster'}"


def _example(one: Body) -> Example:
    def side(name: str) -> str:
        return f"{one.get(f'{name}_status') or 'no answer'}\n{one.get(name, '')}".strip()

    return Example(
        f"{one.get('method', '')} {one.get('path', '')}".strip(),
        str(one.get("differs", "")),
        str(one.get("request", "")),
        side("stable"),
        side("candidate"),
        _slower(float(one.get("slower_s") or 0.0)),
    )
