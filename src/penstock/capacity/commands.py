"""``penstock capacity replay|plan|synth|pack``: questions about a fleet, answered on this machine by its own planners."""

from __future__ import annotations

import csv
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import parse_duration, parse_memory
from penstock.capacity import picture
from penstock.capacity.pack import picture as pack_picture
from penstock.capacity.pack import run_files
from penstock.capacity.pricing import costs
from penstock.capacity.scenario import Scenario, Source, changed, checked, replayed
from penstock.capacity.sizing import parse_target, planned
from penstock.capacity.synth import CLUSTERS, FIELDS, synthesize
from penstock.capacity.traces import Selection
from penstock.client.verb import Invocation, Progress, Verb
from penstock.cost.prices import load_both

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


_MOST_TEXT = 4 << 20  # bytes of a queue file, a slurm.conf or a failure file


def _trace_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("trace", metavar="TRACE", help="the trace: .csv, .csv.xz, .csv.gz, or - for standard input")
    add("--preset", default="csv", help="philly, openb, slurm-sacct or csv (default)")
    add("--cluster", metavar="VC", help="only this virtual cluster, partition or queue")
    add("--first", type=int, metavar="N", help="only its first N jobs by submission")
    add("--max-gpus", type=int, metavar="G", help="of these, only jobs of at most G GPUs")
    add("--gpus-per-node", type=int, required=True, metavar="G")
    add("--cpus-per-node", type=float, default=0.0, metavar="C", help="cores; without it cores are not counted")
    add("--memory-per-node", default="0", metavar="SIZE", help="8Gi; without it memory is not counted")
    add("--gpu-model", default="", metavar="NAME", help="the nodes' GPUs; without it models are not looked at")


def _samples(text: str) -> int:
    """Raises ValueError, as argparse wants it."""
    if not 1 <= int(text) <= 10_000:
        raise ValueError
    return int(text)


def _policy_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--policy", help="fifo, sjf, fairshare or multifactor (default: what --queues or --slurm-conf say, else fifo)")
    add("--blocking", help="strict: the head blocks; skip: what fits starts (default: theirs, else strict)")
    add("--backfill", help="none, easy or conservative (default: theirs, else none)")
    add("--placement", help="bestfit, firstfit, spread or fgd (default: bestfit; with --blocking skip: firstfit)")
    add("--depth", type=int, help="workloads that backfill looks at (default: theirs, else 100)")
    add("--queues", metavar="FILE", help="a queue file: quotas, cohorts, weights")
    add("--slurm-conf", metavar="FILE", help="take multifactor weights and backfill from a slurm.conf")
    add("--failures", metavar="FILE", help="CSV of node, at_s, until_s")
    add("--mtbf", metavar="TIME", help="mean time between failures of one node: 500h; a bare number is hours")
    add(
        "--repair",
        default="4h",
        metavar="TIME",
        help="how long a failed node is away (default: 4h); a bare number is seconds",
    )
    add(
        "--checkpoint-interval",
        metavar="TIME",
        help="work since then is lost, all of it without; a bare number is seconds",
    )
    add("--estimates", action="store_true", help="measure start estimates, though nothing is promised: takes longer")
    add("--seed", type=int, default=0)


def _configure(parser: ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="replay|plan|synth|pack")
    replay = what.add_parser("replay", help="run a trace through the scheduler")
    _trace_arguments(replay)
    replay.add_argument("--nodes", type=int, required=True, metavar="N")
    replay.add_argument("--samples", type=_samples, default=0, metavar="N", help="JSON: a timeline of so many points")
    replay.add_argument(
        "--versus", metavar="KEY=VALUE,...", help="once more with these changed: nodes=96,policy=sjf,backfill=easy"
    )
    _policy_arguments(replay)
    plan = what.add_parser("plan", help="the least number of nodes that meets a target")
    _trace_arguments(plan)
    plan.add_argument("--target", required=True, metavar="METRIC=TIME", help="p95-wait=1h, p50-wait or mean-wait")
    plan.add_argument("--nodes", type=int, default=1, metavar="N", help="the fleet as it was, to check the replay by")
    plan.add_argument("--prices", metavar="FILE", help="the price file (default: the one that ships with Penstock)")
    plan.add_argument("--force", action="store_true", help="answer though the replay is far from what happened")
    _policy_arguments(plan)
    synth = what.add_parser("synth", help="make up a trace like that of a published cluster")
    synth.add_argument("--cluster", required=True, help="seren, kalos, philly, helios or pai")
    synth.add_argument("--jobs", type=int, required=True, metavar="N")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--per-day", type=float, metavar="N", help="jobs a day (default: the cluster's)")
    synth.add_argument("--out", metavar="FILE", help="where to write it (default: standard output)")

    pack = what.add_parser("pack", help="fill a fleet with pods, to compare placements")
    pack.add_argument("--pods", required=True, metavar="CSV", help="openb's columns: .csv, .csv.xz, .csv.gz")
    pack.add_argument("--nodes", required=True, metavar="CSV")
    pack.add_argument("--policy", default="fgd", help="random, bestfit, packing, dotprod or fgd (default: fgd)")
    pack.add_argument(
        "--tune", type=float, default=1.3, metavar="X", help="GPU demand by GPUs there are (default: 1.3)"
    )
    pack.add_argument("--seed", type=int, default=42)


def _text(path: str | None, option: str) -> str:
    if path is None:
        return ""
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        raise InvalidInput(f"{option} cannot be read: {exc}") from exc
    if len(data) > _MOST_TEXT:
        raise InvalidInput(f"{option} {path} is larger than {_MOST_TEXT >> 20} MiB")
    return data.decode("utf-8", "replace")


def _times(arguments: Namespace) -> dict[str, float | None]:
    """Durations of the options, all that are wrong at once."""
    problems: list[Problem] = []
    found: dict[str, float | None] = {}
    mtbf = arguments.mtbf
    if mtbf is not None and mtbf.replace(".", "", 1).isdigit():
        mtbf += "h"
    for name, text in (("mtbf", mtbf), ("repair", arguments.repair), ("checkpoint", arguments.checkpoint_interval)):
        try:
            found[name] = None if text is None else parse_duration(text)
        except ValueError as exc:
            problems.append(Problem(f"--{name}", str(exc)))
    if problems:
        raise InvalidInput("the options cannot be read", details=problems)
    return found


def _scenario(arguments: Namespace) -> Scenario:

    times = _times(arguments)
    try:
        memory = parse_memory(arguments.memory_per_node)
    except ValueError as exc:
        raise InvalidInput(f"--memory-per-node: {exc}") from exc
    return checked(
        Scenario(
            arguments.nodes,
            arguments.gpus_per_node,
            arguments.policy,
            arguments.blocking,
            arguments.backfill,
            arguments.depth,
            arguments.placement,
            arguments.cpus_per_node,
            memory,
            arguments.gpu_model,
            _text(arguments.queues, "--queues"),
            _text(arguments.slurm_conf, "--slurm-conf"),
            _text(arguments.failures, "--failures"),
            times["mtbf"],
            times["repair"] or 0.0,
            times["checkpoint"],
            arguments.seed,
            arguments.estimates,
        )
    )


def _source(arguments: Namespace) -> Source:

    return Source(arguments.trace, arguments.preset, Selection(arguments.cluster, arguments.first, arguments.max_gpus))


def _replay(call: Invocation, arguments: Namespace) -> int:

    live = call.output.live()

    def watch(done: float | None, words: str) -> None:
        live.show(Progress(done, words))

    scenario, table = _scenario(arguments), call.output.format == "table"
    other = changed(scenario, arguments.versus) if arguments.versus else None
    if other is not None and arguments.trace == "-":
        raise InvalidInput("--versus reads the trace twice: give a file")
    samples = arguments.samples or (picture.SAMPLES if table else 0)
    try:
        found = replayed(scenario, _source(arguments), time.perf_counter, watch=watch, samples=samples)
        if other is not None:
            again = replayed(other, _source(arguments), time.perf_counter, watch=watch, samples=samples)
            found["versus"] = again
    finally:
        live.close()
    _tell_problems(call, found["trace"])
    if found["not_modelled"]:
        call.output.note(f"a replay does not follow {', '.join(found['not_modelled'])}")
    if not table:
        call.output.document(found)
        return 0
    for line in (*picture.summary(found, scenario), "", *picture.lines_over_time(found["timeline"]), ""):
        call.output.line(line)
    rows = [{"queue": name} | row for name, row in found["by_queue"].items()]
    call.output.table(picture.columns(found), rows, call.now)
    if "versus" in found:
        for line in ("", *picture.versus(found, found["versus"], arguments.versus)):
            call.output.line(line)
    if found["reality"]:
        for line in ("", *picture.reality(found["reality"])):
            call.output.line(line)
    return 0


def _tell_problems(call: Invocation, trace: Mapping[str, Any]) -> None:
    for key, word in (("rejected_by_reason", "left out"), ("noted_by_reason", "noted")):
        for why, count in trace[key].items():
            call.output.note(f"{count} of {trace['rows']} rows {word}: {why}")
    for problem in (*trace["problems"], *trace["oddities"][:3]):
        call.output.note(f"  line {problem['line']}: {problem['path']}: {problem['message']}")


def _plan(call: Invocation, arguments: Namespace) -> int:
    target, priced = parse_target(arguments.target), load_both(arguments.prices)
    live = call.output.live()
    try:
        found = planned(
            _scenario(arguments),
            _source(arguments),
            target,
            force=arguments.force,
            note=live.show,
            clock=time.perf_counter,
        )
    finally:
        live.close()
    found["cost"] = None if found["gpus"] is None else costs(found["gpus"], arguments.gpu_model, *priced)
    _tell_problems(call, found["trace"])
    if call.output.format != "table":
        call.output.document(found)
        return 0
    for line in picture.plan(found):
        call.output.line(line)
    return 0 if found["nodes"] is not None else 1


def _synth(call: Invocation, arguments: Namespace) -> int:

    if arguments.cluster not in CLUSTERS:
        raise InvalidInput(f"--cluster {arguments.cluster!r} is none of {', '.join(CLUSTERS)}")
    if not 1 <= arguments.jobs <= 10_000_000:
        raise InvalidInput("--jobs must be from 1 to 10000000")
    if arguments.per_day is not None and not arguments.per_day > 0:
        raise InvalidInput("--per-day must be above zero")
    rows = synthesize(arguments.cluster, arguments.jobs, random.Random(arguments.seed), per_day=arguments.per_day)
    try:
        file = open(arguments.out, "w", newline="") if arguments.out else sys.stdout  # noqa: SIM115 - closed below
    except OSError as exc:
        raise InvalidInput(f"--out cannot be written: {exc}") from exc
    try:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    finally:
        if arguments.out:
            file.close()
    if arguments.out:
        call.output.note(f"{arguments.jobs} jobs like those of {arguments.cluster} are in {arguments.out}")
    return 0


def _pack(call: Invocation, arguments: Namespace) -> int:
    options = {"policy": arguments.policy, "tune": arguments.tune, "seed": arguments.seed}
    found = run_files(arguments.pods, arguments.nodes, **options, clock=time.perf_counter)
    if call.output.format != "table":
        call.output.document(found)
        return 0
    for line in pack_picture(found):
        call.output.line(line)
    return 0


_RUN = {"replay": _replay, "plan": _plan, "synth": _synth, "pack": _pack}

VERBS = {
    "capacity": Verb(
        "penstock capacity replay jobs.csv --nodes 16 --gpus-per-node 8 --backfill easy\n"
        "penstock capacity plan jobs.csv --gpus-per-node 8 --target p95-wait=1h\n"
        "penstock capacity replay history.txt --preset slurm-sacct --slurm-conf site.txt --nodes 64 --gpus-per-node 8",
        _configure,
        lambda call, arguments: _RUN[arguments.what](call, arguments),
        about="Traces run through the very planners that schedule live. Needs no server. "
        "docs/capacity.md says how `sacct` writes a history, and what else of Slurm is taken.",
    )
}
