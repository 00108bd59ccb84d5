"""What people would rather look at than read: a replay's answer as words, sparklines and a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from penstock.base.quantities import format_duration
from penstock.capacity.metrics import LEAST_S
from penstock.capacity.scenario import Scenario
from penstock.capacity.series import sparkline
from penstock.client.verb import Column

WIDTH = 60  # characters of a sparkline
SAMPLES = WIDTH  # so that a sparkline has one to two spans a character


def _wait(title: str, key: str) -> Column:
    return Column(title, lambda row, _: format_duration(row[key]) if row["jobs"] else "", right=True)


def _hours(title: str, key: str) -> Column:
    return Column(title, lambda row, _: "" if row.get(key) is None else _amount(row[key]), right=True)


def _amount(value: float) -> str:
    return f"{value:,.1f}" if 0 < value < 100 else f"{value:,.0f}"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _count(title: str, key: str) -> Column:
    return Column(title, lambda row, _: f"{row[key]:,}", right=True)


QUEUE = Column("QUEUE", lambda row, _: str(row["queue"]))
WAITS = (QUEUE, _count("JOBS", "jobs"), _wait("MEAN WAIT", "mean_wait_s"), _wait("P50", "p50_wait_s"), _wait("P95", "p95_wait_s"))  # fmt: skip
HOURS = _hours("GPU-HOURS", "used_gpu_hours")
QUOTAS = (
    _hours("OF QUOTA", "nominal_gpu_hours"),
    _hours("BORROWED", "borrowed_gpu_hours"),
    _hours("IDLE QUOTA", "idle_gpu_hours"),
    _hours("OF IT LENT", "lent_gpu_hours"),
)
LOSSES = (_count("EVICTIONS", "evictions"), _hours("LOST GPU-H", "lost_gpu_hours"))


def columns(found: Mapping[str, Any]) -> tuple[Column, ...]:
    """Those that say something: quotas where there are any, losses where something was lost."""
    rows = found["by_queue"].values()
    quotas = QUOTAS if any(row["nominal_gpu_hours"] is not None for row in rows) else ()
    losses = LOSSES if found["evictions"] or found["failure_restarts"] else ()
    return (*WAITS, HOURS, *quotas, *losses)


def summary(found: Mapping[str, Any], scenario: Scenario) -> Iterator[str]:
    """A few sentences: what was replayed, how long people waited, how much was used, what was lost."""
    gpus = scenario.nodes * scenario.gpus_per_node
    yield (
        f"{_many(found['jobs'], 'job')} on {_many(scenario.nodes, 'node')} of {scenario.gpus_per_node} GPUs, {found['policy']}: "
        f"all had ended after {format_duration(found['makespan_s'])}"
    )
    yield (
        f"They waited {format_duration(found['mean_wait_s'])} on the mean; half of them at most "
        f"{format_duration(found['p50_wait_s'])}, 95% at most {format_duration(found['p95_wait_s'])}"
    )
    yield f"From submission to end: {format_duration(found['mean_completion_s'])} on the mean"
    yield f"{100 * found['utilization']:.1f}% of the {gpus:,} GPUs' time was used"
    if found["evictions"] or found["failure_restarts"]:
        yield (
            f"{found['evictions']:,} evictions and {found['failure_restarts']:,} restarts after node failures: "
            f"{found['lost_gpu_hours']:,.1f} GPU-hours of work were done twice"
        )
    if found["unplaced"]:
        yield f"{found['unplaced']:,} jobs could never start"
    if told := found["start_estimate_error"]:
        yield (
            f"{told['jobs']:,} were told a start: half of them started within {format_duration(told['median_abs_s'])} "
            f"of it, 95% within {format_duration(told['p95_abs_s'])}; {told['later_than_promised']:,} later than told"
        )


def lines_over_time(timeline: Mapping[str, Any]) -> Iterator[str]:
    """Use, line and waits of all; then the use of each queue where there are several."""
    every, capacity = timeline["all"], timeline["capacity"]
    if not timeline["at"]:
        return
    yield _line("GPUs in use", every["gpus"], capacity, f"of {capacity:,}, most {_most(every['gpus']):,.0f}")
    yield _line("jobs in line", every["waiting"], None, f"most {_most(every['waiting']):,.0f}")
    yield _line("mean wait", every["wait_s"], None, f"most {format_duration(_most(every['wait_s']))}, by submission")
    queues = timeline["gpus"]
    if len(queues) > 1:
        yield "GPUs by queue, each against its own most"
        for name, row in queues.items():
            yield _line(f"  {name}", row, None, f"most {_most(row):,.0f}")
    end = format_duration(timeline["at"][-1] + timeline["width_s"])
    yield f"{'':<{_NAME}} 0{end:>{WIDTH - 1}}"


_NAME = 16


def _line(name: str, values: Sequence[float | None], top: float | None, note: str) -> str:
    shown = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
    return f"{shown:<{_NAME}} {sparkline(values, WIDTH, top or _most(values))} {note}"


def _most(values: Sequence[float | None]) -> float:
    return max((value for value in values if value is not None), default=0.0)


def reality(found: Mapping[str, Any]) -> Iterator[str]:
    """The replay against what really happened."""
    yield f"Against the waits of {_many(found['jobs'], 'job')} that really happened:"
    for key, name in (("mean", "mean"), ("p50", "P50"), ("p95", "P95")):
        yield (
            f"  {name:<5} replayed {format_duration(found[f'{key}_replay_s']):>8}, really "
            f"{format_duration(found[f'{key}_real_s']):>8}: {off(found, key)}"
        )


def off(found: Mapping[str, Any], key: str) -> str:
    """How far off, and of what: of the real wait, or of a minute where that is less."""
    return f"{100 * found[f'{key}_error']:.0f}%{' of a minute' if found[f'{key}_real_s'] < LEAST_S else ''} off"


def versus(one: Mapping[str, Any], other: Mapping[str, Any], changes: str) -> Iterator[str]:
    """Two replays of one trace side by side."""
    yield f"{'':<{_NAME}} {'this':>12} {changes:>24}"
    for name, key in (("mean wait", "mean_wait_s"), ("P50 wait", "p50_wait_s"), ("P95 wait", "p95_wait_s"),
                      ("mean completion", "mean_completion_s"), ("makespan", "makespan_s")):  # fmt: skip
        yield f"{name:<{_NAME}} {format_duration(one[key]):>12} {format_duration(other[key]):>24}{_change(one[key], other[key])}"
    used, again = 100 * one["utilization"], 100 * other["utilization"]
    yield f"{'utilization':<{_NAME}} {used:>11.1f}% {again:>23.1f}%"
    for name, key in (("evictions", "evictions"), ("lost GPU-hours", "lost_gpu_hours")):
        if one[key] or other[key]:
            yield f"{name:<{_NAME}} {one[key]:>12,.0f} {other[key]:>24,.0f}{_change(one[key], other[key])}"
    top = max(_most(found["timeline"]["all"]["waiting"]) for found in (one, other))
    for name, found in (("in line, this", one), ("in line, other", other)):
        row = found["timeline"]["all"]["waiting"]
        yield _line(name, row, top, f"most {_most(row):,.0f}, in {format_duration(found['makespan_s'])}")


def _change(before: float, after: float) -> str:
    return f" {100 * (after - before) / before:+6.0f}%" if before else ""


def plan(found: Mapping[str, Any]) -> Iterator[str]:
    """The answer of ``capacity plan``: how many, how sure, how much; and each replay as a bar."""
    metric, most = found["target"]["metric"], format_duration(found["target"]["seconds"])
    if found["nodes"] is None:
        yield f"{metric} of at most {most} is not met by the most nodes that were tried"
    else:
        low, high = found["interval"]["low"], found["interval"]["high"]
        yield (
            f"{found['nodes']:,} nodes ({found['gpus']:,} GPUs) are the least that keep {metric} to {most}: "
            f"with them it is {format_duration(found['achieved_s'])}"
        )
        yield (
            f"Nine times in ten between {'fewer than were tried' if low is None else low} and "
            f"{'more than were tried' if high is None else high} nodes, drawing the trace's weeks anew"
        )
    yield ""
    yield f"{'NODES':>7}  {metric.upper()}"
    longest = max((trial["value_s"] for trial in found["trials"] if trial["value_s"] is not None), default=0.0)
    for trial in found["trials"]:
        value = trial["value_s"]
        bar = "█" * round(_BAR * value / longest) if value and longest else ""
        words = (
            "ended early: not enough"
            if value is None
            else f"{format_duration(value):<8} {'' if trial['met'] else 'x'} {bar}"
        )
        yield f"{trial['nodes']:>7}  {words}"
    if found["cost"] is not None:
        yield ""
        for kind, name in (("on_demand", "on demand"), ("reserved", "reserved"), ("spot", "spot")):
            price = found["cost"][kind]
            yield f"{name:<10} " + (
                "no price in the price file"
                if price is None
                else f"{price['month']:>14,.2f} {found['cost']['currency']} a month ({price['gpu_hour']:g} a GPU-hour)"
            )


_BAR = 40
