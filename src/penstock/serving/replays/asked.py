"""What is asked of a replay, checked, and its answer as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import parse_duration
from penstock.serving.profile import Curve, Point, curve_of
from penstock.serving.replays.machine import CurveMachine, Engine, Machine, TokenMachine, engine_of
from penstock.serving.replays.measure import curve_for, first_replicas
from penstock.serving.replays.policies import Policy, policy_of
from penstock.serving.replays.run import Outcome, Run, World, quantile
from penstock.serving.replays.traces import Trace
from penstock.serving.spec import Autoscaling, Objective

POINTS = 500  # of a timeline
MOST_TEXT = 1 << 20  # bytes of a curve file
TIMES = ("p95", "ttft", "tpot")


@dataclass(frozen=True, slots=True)
class Replica:
    """What one is: by its tokens, or by its curve alone. ``cold_start`` None: nobody said."""

    engine: Engine | None
    curve: Curve
    cold_start: float | None

    def machine(self) -> Machine:
        return CurveMachine(self.curve) if self.engine is None else TokenMachine(self.engine)


def replica_of(path: str | None, trace: Trace) -> Replica:
    """From a file with ``points`` (a service curve) or ``engine`` (a language model); without one the default engine."""
    if path is None:
        if not trace.tokens:
            raise InvalidInput(
                "the trace's requests have no tokens, so nothing is known of what they take",
                hint='Name a service curve: --curve FILE with {"points": [{"concurrency": 1, "throughput": 20, "p95": 0.05}]}.',
            )
        return Replica(Engine(), Curve(), None)
    body = _json(path)
    try:
        if "engine" not in body:
            curve = curve_of(body)
            return Replica(None, curve, curve.cold_start if "cold_start" in body else None)
        if not trace.tokens:
            raise ValueError("engine: is for traces whose requests have tokens")
        if unknown := sorted(set(body) - {"engine", "cold_start"}):
            raise ValueError(f"{unknown[0]}: stands beside `engine`, which takes `cold_start` alone")
        cold = curve_of({"points": [{"concurrency": 1, "throughput": 1}], **body}).cold_start
        return Replica(engine_of(body["engine"]), Curve(), cold if "cold_start" in body else None)
    except ValueError as exc:
        where, _, words = str(exc).partition(": ")
        raise InvalidInput(f"--curve {path} cannot be used", details=[Problem(where, words)]) from exc


def _json(path: str) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_TEXT + 1)
        body = json.loads(data) if len(data) <= MOST_TEXT else None
    except (OSError, ValueError, RecursionError) as exc:
        raise InvalidInput(f"--curve {path} cannot be read: {exc}") from exc
    if not isinstance(body, dict):
        raise InvalidInput(f"--curve {path} is no JSON object of at most {MOST_TEXT >> 20} MiB")
    return body


def objective_of(text: str | None, curve: Curve, *, tokens: bool) -> Objective:
    """``p95=300ms,ttft=2s``. Without one: twice what 95 of 100 take in a replica that is alone with each."""
    first = curve.points[0]
    if text is None:
        name, alone = ("ttft", first.ttft) if tokens else ("p95", first.p95)
        return Objective(**{name: 2 * alone}) if alone else Objective()
    found: dict[str, float] = {}
    problems = []
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in TIMES or (name != "p95" and not tokens):
            problems.append(
                Problem("--objective", f"{part!r}: write p95=TIME" + (", ttft= or tpot=" if tokens else ""))
            )
            continue
        try:
            found[name] = parse_duration(value)
        except ValueError as exc:
            problems.append(Problem("--objective", str(exc)))
    if not problems and any(not 0 < value < 1e6 for value in found.values()):
        problems.append(Problem("--objective", "must be above zero"))
    if problems:
        raise InvalidInput("the objective cannot be read", details=problems)
    return Objective(**found)


@dataclass(frozen=True, slots=True)
class Asked:
    """One replay, ready to run."""

    trace: Trace
    replica: Replica
    curve: Curve
    config: Autoscaling
    policies: tuple[Policy, ...]
    world: World
    allowed: Point | None


def asked(
    trace: Trace,
    replica: Replica,
    cold_start: float,
    words: Sequence[str],
    configured: Callable[[Objective], Autoscaling],
    objective: str | None,
) -> Asked:
    """Measures the curve where the replica is known by its tokens."""
    if replica.engine is None:
        trace, curve = replace(trace, tokens=False), replace(replica.curve, cold_start=cold_start)
    else:
        curve = curve_for(trace, replica.machine, cold_start)
    wanted = objective_of(objective, curve, tokens=trace.tokens)
    config = configured(wanted)
    allowed = curve.allows(wanted)
    begin = first_replicas(trace, (allowed or curve.points[0]).throughput, config.max)
    world = World(replica.machine, cold_start, wanted, max(begin, config.min))
    try:
        policies = tuple(policy_of(one, config, curve) for one in words)
    except ValueError as exc:
        raise InvalidInput(f"--policy {exc}") from exc
    return Asked(trace, replica, curve, config, policies, world, allowed)


def replayed(this: Asked, watch: Callable[[str, float], None]) -> dict[str, Any]:
    """What ``-o json`` prints. ``watch`` is told the policy that runs and how far it is."""
    rows = []
    for number, policy in enumerate(this.policies):
        before, name = number / len(this.policies), policy.name

        def far(part: float, before: float = before, name: str = name) -> None:
            watch(name, before + part / len(this.policies))

        far(0.0)
        rows.append(_told(Run(this.trace, policy, this.world).run(far), this))
    wanted = this.world.objective
    return {
        "trace": {
            "requests": len(this.trace.requests),
            "seconds": this.trace.seconds,
            "lines": this.trace.lines,
            "bad_lines": this.trace.bad,
            "problems": [problem.to_dict() for problem in this.trace.problems],
        },
        "objective": {name: value for name in TIMES if (value := getattr(wanted, name)) is not None},
        "cold_start_s": this.world.cold_start,
        "begin": this.world.begin,
        "curve": this.curve.to_dict(),
        "allowed": None
        if this.allowed is None
        else {"concurrency": this.allowed.concurrency, "throughput": this.allowed.throughput},
        "policies": rows,
    }


def _told(found: Outcome, this: Asked) -> dict[str, Any]:
    kinds = TIMES if this.trace.tokens else TIMES[:1]
    values = {"p95": found.latency, "ttft": found.ttft, "tpot": found.tpot}
    for name in kinds:
        values[name].sort()
    seconds = max(found.ended_at, 1.0)
    return {
        "policy": found.policy,
        "requests": found.requests,
        "misses": found.misses,
        "unanswered": found.unanswered,
        "replica_seconds": round(found.replica_seconds, 3),
        "mean_replicas": round(found.replica_seconds / seconds, 4),
        "most_replicas": found.most,
        "changes": found.changes,
        "reversals": found.reversals,
        "seconds": found.ended_at,
        **{
            {"p95": "latency", "ttft": "ttft", "tpot": "tpot"}[name]: {
                f"p{round(100 * share)}": round(quantile(values[name], share), 6) for share in (0.5, 0.95, 0.99)
            }
            for name in kinds
        },
        "timeline": _timeline(found),
    }


def _timeline(found: Outcome) -> dict[str, Any]:
    """Means of so many seconds each; of P95 the largest."""
    width = max(1, -(-len(found.wanted) // POINTS))
    starts = range(0, len(found.wanted), width)

    def means(values: list[int]) -> list[float]:
        return [round(sum(part := values[at : at + width]) / len(part), 3) for at in starts]

    return {
        "width_s": width,
        "arrived": means(found.arrived),
        "wanted": means(found.wanted),
        "ready": means(found.ready),
        "p95": [round(max(found.p95[at : at + width]), 4) for at in starts],
    }
