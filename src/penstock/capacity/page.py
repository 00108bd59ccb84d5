"""View models of the capacity page: pure functions between the API's JSON, what a person fills in, and what a template shows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import format_duration, parse_duration
from penstock.base.text import one_line

DEFAULT_NODES, DEFAULT_GPUS = 16, 8  # where the fleet has no GPU to go by
_PERCENT = re.compile(r"([+-])\s*(\d{1,4}(?:\.\d+)?)\s*%")
_MOST = {"nodes": 20_000, "GPUs a node": 1024, "jobs": 500_000, "days": 3660}  # as ``asked`` has it
_LONGEST_MTBF = 3.2e9
_STATES = {
    "waiting": ("Waiting", "wait", "clock"),
    "running": ("Running", "run", "play"),
    "done": ("Done", "ok", "check"),
    "failed": ("Failed", "bad", "cross"),
    "cancelled": ("Cancelled", "off", "slash"),
}
_FIELDS = ("nodes", "gpus", "policy", "blocking", "backfill", "queues", "mtbf")


# -- the form


def defaults(sources: Mapping[str, Any]) -> dict[str, str]:
    """The question that most come with: the fleet as it is against a fifth more of it, backfilled."""
    fleet, own = sources["fleet"], sources["own"]
    values = {
        "source": "own" if own["jobs"] else "synth:philly",
        "jobs": "5000",
        "days": "",
        "preset": "csv",
        "compare": "on",
    }
    for side in "ab":
        values |= {f"{side}_{name}": "" for name in _FIELDS}
        values[f"{side}_gpus"] = str(fleet["gpus_per_node"] or DEFAULT_GPUS)
        values[f"{side}_queues"] = "today"
    values["a_nodes"] = str(fleet["nodes"] or DEFAULT_NODES)
    return values | {"b_nodes": "+20%", "b_backfill": "easy"}


def body(given: Mapping[str, str], sources: Mapping[str, Any]) -> dict[str, Any]:
    """What the API is asked, from the form's fields. Raises InvalidInput with everything that the form itself gets wrong."""
    problems: list[Problem] = []
    kind, _, name = given.get("source", "").partition(":")
    source: dict[str, Any] = {"kind": kind}
    if kind == "own":
        source |= {"days": _whole(given, "days", problems)} if given.get("days", "").strip() else {}
    else:
        source["jobs"] = _whole(given, "jobs", problems)
        source |= {"cluster": name} if kind == "synth" else {"name": name, "preset": given.get("preset") or "csv"}
    fleet = sources["fleet"]
    asked: dict[str, Any] = {"source": source, "a": _scenario(given, "a", fleet["nodes"], fleet["gpu_model"], problems)}
    if given.get("compare"):
        base = asked["a"]["nodes"] or 1  # where A's are wrong, that is told already
        asked["b"] = _scenario(given, "b", base, fleet["gpu_model"], problems)
    if problems:
        raise InvalidInput("this cannot be asked yet", details=problems)
    return asked


def _scenario(given: Mapping[str, str], side: str, base: int, model: str, problems: list[Problem]) -> dict[str, Any]:
    found: dict[str, Any] = {"gpu_model": model, "queues": given.get(f"{side}_queues") or "today"}
    found["nodes"] = _nodes(given.get(f"{side}_nodes", ""), base, f"{side.upper()}: nodes", problems)
    found["gpus_per_node"] = _whole(given, f"{side}_gpus", problems)
    for name in ("policy", "blocking", "backfill"):
        if value := given.get(f"{side}_{name}"):
            found[name] = value
    if mtbf := given.get(f"{side}_mtbf", "").strip():
        found["mtbf"] = mtbf + "h" if mtbf.replace(".", "", 1).isdigit() else mtbf
        try:
            right = 0 < parse_duration(found["mtbf"]) <= _LONGEST_MTBF
        except ValueError:
            right = False
        if not right:
            told = f"{one_line(mtbf, 40)!r} is no time up to a hundred years: write 500h or 90d"
            problems.append(Problem(f"{side.upper()}: mean time between failures", told))
    return found


def _nodes(text: str, base: int, where: str, problems: list[Problem]) -> int:
    """``80``, or ``+20%`` of the fleet that it is compared with; of a part of a node a whole one."""
    text = text.strip()
    match = _PERCENT.fullmatch(text)
    if match is None:
        return _number(text, where, problems)
    if not base:
        problems.append(Problem(where, "there is no fleet to take a percentage of: give a number"))
        return 0
    change = float(match[2]) / 100 * (1 if match[1] == "+" else -1)
    found = math.ceil(round(base * (1 + change), 6))
    if change <= -1:
        problems.append(Problem(where, f"{text} leaves no node"))
    elif found > _MOST["nodes"]:
        problems.append(Problem(where, f"{text} makes {found:,}: at the most {_MOST['nodes']:,}"))
    return max(1, found)


def _whole(given: Mapping[str, str], name: str, problems: list[Problem]) -> int:
    side, _, rest = name.rpartition("_")
    word = {"gpus": "GPUs a node"}.get(rest, rest)
    return _number(given.get(name, ""), f"{side.upper()}: {word}" if side else word, problems)


def _number(text: str, where: str, problems: list[Problem]) -> int:
    text = text.strip().replace(",", "")
    if not text.isdecimal():
        problems.append(Problem(where, f"{text[:40]!r} is no whole number" if text else "is missing"))
        return 0
    most = _MOST.get(where.rsplit(": ", maxsplit=1)[-1], _MOST["nodes"])
    if len(text) > 9 or not 1 <= int(text) <= most:
        problems.append(Problem(where, f"{text[:40]} is not from 1 to {most:,}"))
        return 0
    return int(text)


# -- replays


@dataclass(frozen=True, slots=True)
class State:
    word: str
    tone: str
    icon: str


@dataclass(frozen=True, slots=True)
class ReplayRow:
    """A replay in the list, and the top of its page."""

    id: str
    href: str
    source: str
    scenarios: tuple[str, ...]
    by: str
    created_at: str | None
    state: State
    message: str
    problems: tuple[str, ...]
    progress: float | None  # 0 to 100, over all scenarios
    progress_text: str
    over: bool


def replay_row(record: Mapping[str, Any]) -> ReplayRow:
    asked = record["asked"]
    state = str(record["state"])
    sides = _sides(asked)
    percent, told = _progress(record.get("progress"), len(sides))
    problem = record.get("problem") or {}
    return ReplayRow(
        id=str(record["id"]),
        href=f"/capacity/{record['id']}",
        source=source_text(asked["source"]),
        scenarios=tuple(scenario_text(side) for side in sides),
        by=str(record.get("by") or ""),
        created_at=record.get("created_at"),
        state=State(*_STATES.get(state, (state, "note", "dot"))),
        message=str(record.get("message") or ""),
        problems=tuple(
            ": ".join(filter(None, (p.get("path"), p.get("message")))) for p in problem.get("details") or ()
        ),
        progress=percent if state == "running" else None,
        progress_text=told if state == "running" else "",
        over=state not in ("waiting", "running"),
    )


def _sides(asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [asked["a"]] if asked.get("b") is None else [asked["a"], asked["b"]]


def _progress(said: Mapping[str, Any] | None, scenarios: int) -> tuple[float, str]:
    if not said:
        return 0.0, "reading the jobs"
    share = min(1.0, said["ended"] / said["of"]) if said.get("of") else 0.0
    which = f"scenario {'AB'[said['scenario']]}: " if scenarios > 1 else ""
    return 100 * (
        said["scenario"] + share
    ) / scenarios, f"{which}{said['ended']:,} of about {said['of']:,} jobs have ended"


def source_text(source: Mapping[str, Any]) -> str:
    if source["kind"] == "own":
        return "Our own history" + (f", the last {source['days']} days" if source.get("days") else "")
    if source["kind"] == "synth":
        return f"{source['jobs']:,} jobs made up like {str(source['cluster']).capitalize()}'s"
    return f"The first {source['jobs']:,} jobs of {source['name']}"


def scenario_text(side: Mapping[str, Any]) -> str:
    words = [f"{side['nodes']:,} nodes of {side['gpus_per_node']} GPUs"]
    words += [str(side[name]) for name in ("policy", "blocking") if side.get(name)]
    words += (
        [f"{side['backfill']} backfill" if side["backfill"] != "none" else "no backfill"]
        if side.get("backfill")
        else []
    )
    words += {"today": [], "as-is": ["quotas as they are"], "none": ["no queues"]}.get(
        side["queues"], ["another queue file"]
    )
    words += [f"a node fails every {format_duration(side['mtbf'])}"] if side.get("mtbf") else []
    return ", ".join(words)


# -- two scenarios side by side


@dataclass(frozen=True, slots=True)
class Figure:
    """A line of the comparison; ``tone`` says whether B's change is good (ok) or bad."""

    name: str
    values: tuple[str, ...]
    change: str
    tone: str


@dataclass(frozen=True, slots=True)
class QueueFigures:
    name: str
    jobs: tuple[str, ...]
    mean_wait: tuple[str, ...]
    p95_wait: tuple[str, ...]
    gpu_hours: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    names: tuple[str, ...]
    figures: tuple[Figure, ...]
    money: tuple[Figure, ...]
    queues: tuple[QueueFigures, ...]
    notes: tuple[str, ...]
    currency: str
    headline: str


_Read = Callable[[Mapping[str, Any]], float]


def comparison(record: Mapping[str, Any]) -> Comparison | None:
    """None while there is no result."""
    result = record.get("result")
    if not result:
        return None
    answers: list[Mapping[str, Any]] = result["scenarios"]
    costs: list[Mapping[str, Any]] = record["cost"]
    return Comparison(
        names=tuple(scenario_text(side) for side in _sides(record["asked"])),
        figures=tuple(_figures(answers, costs)),
        money=tuple(_money(answers, costs)),
        queues=tuple(_by_queue(answers)),
        notes=tuple(_notes(answers)),
        currency=str(costs[0]["currency"]),
        headline=_headline(answers, costs),
    )


def _headline(answers: Sequence[Mapping[str, Any]], costs: Sequence[Mapping[str, Any]]) -> str:
    """What a person who reads one line should read."""
    a = answers[0]
    if len(answers) == 1:
        return f"95% of {a['jobs']:,} jobs wait at most {_time(a['p95_wait_s'])}; {_percent(a['utilization'])} of the GPUs' time is used."
    b = answers[1]
    told = f"95% of the jobs wait at most {_time(b['p95_wait_s'])} instead of {_time(a['p95_wait_s'])}"
    prices = [cost["on_demand"]["month"] for cost in costs if cost["on_demand"]]
    if len(prices) < len(costs):
        return told + "."
    more = prices[1] - prices[0]
    currency = costs[0]["currency"]
    return told + (
        f", for {abs(more):,.0f} {currency} a month {'more' if more > 0 else 'less'}."
        if round(more)
        else ", at the same price."
    )


def _figures(answers: Sequence[Mapping[str, Any]], costs: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    yield Figure(
        "GPUs", tuple(f"{cost['gpus']:,}" for cost in costs), _change([float(c["gpus"]) for c in costs])[0], ""
    )
    yield Figure("Policy", tuple(str(answer["policy"]) for answer in answers), "", "")
    yield _compared("Jobs", answers, lambda a: a["jobs"], _count, better=0)
    for name, key in (("Mean wait", "mean_wait_s"), ("Median wait", "p50_wait_s"), ("P95 wait", "p95_wait_s")):
        yield _compared(name, answers, _of(key), _time, better=-1)
    yield _compared("Mean time to completion", answers, _of("mean_completion_s"), _time, better=-1)
    yield _compared("GPU time used", answers, _of("utilization"), _percent, better=1)
    yield _compared("All done after", answers, _of("makespan_s"), _time, better=-1)
    for name, key, show in (
        ("Evictions", "evictions", _count),
        ("Restarts after node failures", "failure_restarts", _count),
        ("GPU-hours done twice", "lost_gpu_hours", _hours),
        ("Jobs that could never start", "unplaced", _count),
    ):
        if any(answer[key] for answer in answers):
            yield _compared(name, answers, _of(key), show, better=-1)


def _money(answers: Sequence[Mapping[str, Any]], costs: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    for name, kind in (
        ("On demand, a month", "on_demand"),
        ("Reserved, a month", "reserved"),
        ("Spot, a month", "spot"),
    ):
        prices = [cost[kind]["month"] if cost[kind] else None for cost in costs]
        if any(price is not None for price in prices):
            yield _priced(name, prices)
    hourly = [cost["on_demand"]["hour"] if cost["on_demand"] else None for cost in costs]
    whole = [
        None if rate is None else rate * answer["makespan_s"] / 3600
        for rate, answer in zip(hourly, answers, strict=True)
    ]
    yield _priced("On demand, until all is done", whole)
    used = [sum(queue["used_gpu_hours"] for queue in answer["by_queue"].values()) for answer in answers]
    each = [price / hours if price is not None and hours else None for price, hours in zip(whole, used, strict=True)]
    yield _priced("For each GPU-hour used", each)


def _priced(name: str, prices: Sequence[float | None]) -> Figure:
    known = [price for price in prices if price is not None]
    change, tone = _change(known, better=-1) if len(known) == len(prices) else ("", "")
    return Figure(
        name,
        tuple("-" if price is None else f"{price:,.2f}" if price < 1000 else f"{price:,.0f}" for price in prices),
        change,
        tone,
    )


def _compared(
    name: str, answers: Sequence[Mapping[str, Any]], read: _Read, show: Callable[[float], str], *, better: int
) -> Figure:
    values = [float(read(answer)) for answer in answers]
    return Figure(name, tuple(show(value) for value in values), *_change(values, better=better))


def _change(values: Sequence[float], better: int = 0) -> tuple[str, str]:
    """Of B against A, in percent, and whether that is good. ``better``: 1 where more is, -1 where less is."""
    if len(values) < 2 or values[0] == values[1]:
        return "", ""
    a, b = values
    tone = "" if not better else "ok" if (b - a) * better > 0 else "bad"
    if not a:
        return "from nothing", tone
    percent = 100 * (b - a) / a
    return f"{percent:+.0f}%" if abs(percent) >= 0.5 else f"{percent:+.1f}%", tone


def _by_queue(answers: Sequence[Mapping[str, Any]]) -> Iterator[QueueFigures]:
    names = sorted({name for answer in answers for name in answer["by_queue"]})
    if len(names) < 2:
        return
    for name in names:
        rows = [answer["by_queue"].get(name) for answer in answers]

        def shown(
            key: str, show: Callable[[float], str], rows: Sequence[Mapping[str, Any] | None] = rows
        ) -> tuple[str, ...]:
            return tuple("-" if row is None else show(row[key]) for row in rows)

        yield QueueFigures(
            name,
            shown("jobs", _count),
            shown("mean_wait_s", _time),
            shown("p95_wait_s", _time),
            shown("used_gpu_hours", _hours),
        )


def _notes(answers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What a reader must know to believe it."""
    several = len(answers) > 1
    for letter, answer in zip("AB", answers, strict=False):
        real = answer.get("reality")
        if real and letter == "A":
            yield (
                f"Scenario {letter} against what really happened to these {real['jobs']:,} jobs: P95 wait "
                f"{_time(real['p95_replay_s'])} replayed, {_time(real['p95_real_s'])} real; mean "
                f"{_time(real['mean_replay_s'])} replayed, {_time(real['mean_real_s'])} real."
            )
        trace = answer["trace"]
        for why, count in (*trace["rejected_by_reason"].items(), *trace["noted_by_reason"].items()):
            yield (f"Scenario {letter}: " if several else "") + f"{count:,} of {trace['rows']:,} rows: {why}."


def _of(key: str) -> _Read:
    return lambda answer: float(answer[key])


def _time(seconds: float) -> str:
    return format_duration(round(seconds)) if seconds >= 1 else "0s" if not seconds else "<1s"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _hours(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
