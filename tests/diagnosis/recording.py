"""Recorded telemetry as evidence: what exporters' pages and kernels wrote goes through the agent's own rules and the server's own
history, so that a diagnosis gets what it would get of a real node.

A file is one cause. Half of the job's steps are well; at the middle (``T``) it begins. README.md in ``recorded/`` says what a file
may hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from penstock.diagnosis.state import Evidence, Happened, LogLine, NodeEvidence, Rank, Series
from penstock.telemetry import push
from penstock.telemetry.history import History
from penstock.telemetry.kept import place
from penstock.telemetry.names import canonical
from penstock.telemetry.rules import Rules
from penstock.telemetry.spec import Finding, Line, Point, Reading, Severity
from tests.diagnosis.scenes import Fault, Scene, adds, everywhere, from_step

FOLDER: Final = Path(__file__).parent / "recorded"
STEPS: Final = 400
EVERY: Final = 10.0  # seconds between looks at a page
AFTER: Final = 40.0  # that the agent still looks after the last step
GPUS: Final = 4  # of a node
LONG: Final = 1000.0  # more than half of any job here
STEP_S: Final = 0.40  # of compute
H100: Final[Mapping[str, Any]] = {
    "device": "cuda:0 NVIDIA H100 80GB HBM3",
    "dtype": "float32",
    "autocast": "bfloat16",
    "tf32": True,
    "backend": "nccl",
    "wrapper": "ddp",
    "cpus": 64,
    "loader_workers": 6,
    "loader_pin": True,
    "batch_size": 16,
    "gpu_memory_free": 0.1,
}
USUAL: Final[Mapping[str, float]] = {  # a GPU's page while it trains
    "DCGM_FI_DEV_GPU_TEMP": 58,
    "DCGM_FI_DEV_SM_CLOCK": 1980,
    "DCGM_FI_DEV_GPU_UTIL": 98,
    "DCGM_FI_DEV_POWER_USAGE": 640,
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": 0,
    "DCGM_FI_DEV_PCIE_REPLAY_COUNTER": 2,
    "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL": 0,
    "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL": 0,
    "DCGM_FI_DEV_ROW_REMAP_PENDING": 0,
    "DCGM_FI_DEV_ROW_REMAP_FAILURE": 0,
}


@dataclass(frozen=True)
class Recorded:
    """One file, or one of its near misses: ``verdict`` is one of those that are right, ``never`` one that would be wrong."""

    name: str
    evidence: Evidence
    verdict: tuple[str, ...]
    never: str
    culprits: frozenset[str]
    hint: bool  # it does not hurt the job yet: "healthy" is right too, with the cause named first


def files() -> list[Path]:
    return sorted(FOLDER.glob("*.yaml"))


def read(path: Path) -> list[Recorded]:
    """The cause itself first, then what only looks like it."""
    told = yaml.safe_load(path.read_text())
    misses = told.pop("near_misses", [])
    right, culprits = (path.stem, *told.get("or", ())), frozenset(map(str, told["culprits"]))
    found = [Recorded(path.stem, evidence(told), right, "", culprits, told.get("hint", False))]
    for miss in misses:
        whole = {**told, "slow": None, **miss}
        verdict = tuple(miss["verdict"].split()) if "verdict" in miss else ()
        found.append(
            Recorded(
                f"{path.stem}: {miss['about']}",
                evidence(whole),
                verdict,
                path.stem,
                frozenset(),
                miss.get("hint", False),
            )
        )
    return found


def evidence(told: Mapping[str, Any]) -> Evidence:
    nodes = [f"node-{number}" for number in range(told.get("nodes", 2))]
    world = GPUS * len(nodes)
    steps = told.get("steps", STEPS)
    scene = Scene(
        world=world,
        steps=steps,
        transfer=0.030,
        nodes={rank: nodes[rank // GPUS] for rank in range(world)},
        config={**H100, **told.get("config", {})},
        slower=_transfer(told, steps),
    )
    whole = scene.evidence(everywhere(adds(compute=STEP_S)), *_faults(told.get("slow") or {}, steps))
    own = whole.ranks[0].steps
    begins = own[steps // 2].at if steps else 1000.0
    ends = own[-1].at if steps else 1000.0 + 2 * STEPS / 2 * STEP_S
    begins = begins if steps else 1000.0 + STEPS / 2 * STEP_S
    ranks = tuple(_rank(rank, told, begins) for rank in whole.ranks)
    return replace(
        whole,
        at=ends,
        phase=told.get("phase", "Running"),
        ranks=ranks,
        nodes=tuple(_node(name, told, begins, ends + AFTER) for name in nodes),
        happened=tuple(
            Happened(begins + each["at"], each["what"], each["message"], each.get("facts", {}))
            for each in told.get("happened", ())
        ),
        env=told.get("env", {}),
        topology="ddp",
    )


def _transfer(told: Mapping[str, Any], steps: int) -> Any:
    times, begin = told.get("transfer", 1.0), 0 if told.get("transfer_from_start") else steps // 2
    return lambda step, _world: times if step >= begin else 1.0


def _faults(slow: Mapping[str, Any], steps: int) -> Iterator[Fault]:
    """Seconds more of a phase on some ranks, from the middle on (or ``always``)."""
    more = {name: value for name, value in slow.items() if name not in {"ranks", "always", "every"}}
    change, every = adds(**more), slow.get("every", 1)

    def some(rank: int, step: int, work: Any) -> None:
        if rank in slow["ranks"] and step % every == 0:
            change(step, work)

    if slow:
        yield some if slow.get("always") else from_step(steps // 2, some)


def _rank(rank: Rank, told: Mapping[str, Any], begins: float) -> Rank:
    lines = {**(told.get("lines") or {})}
    own = [*lines.get("all", ()), *lines.get(rank.rank, ())]
    counters = tuple(
        replace(reading, values={**reading.values, **_counted(told, rank.rank, reading.at - begins)})
        for reading in rank.counters
    )
    config = {**rank.config, **told.get("rank_config", {}).get(rank.rank, {})}
    more = {key: told[key][rank.rank] for key in ("exit_code", "signal", "state") if rank.rank in told.get(key, {})}
    uuid = gpu(f"node-{rank.rank // GPUS}", rank.rank % GPUS)["UUID"]
    return replace(rank, lines=_lines(own, begins, rank.rank), counters=counters, config=config, gpu=uuid, **more)


def _counted(told: Mapping[str, Any], rank: int, since: float) -> dict[str, float]:
    """Counters that this file adds: ``before``, ``after`` and by how much they ``grow`` each second from T on."""
    found = {}
    for name, each in (told.get("counters") or {}).items():
        if rank in each.get("ranks", [rank]):
            found[name] = _value(each, since)
    return found


def _value(each: Mapping[str, Any], since: float) -> float:
    before = each.get("before", each.get("after", 0.0))
    if each.get("from_start"):
        return float(before) + float(each["grow"]) * (since + LONG)
    if since < 0:
        return float(before)
    return float(each.get("after", before)) + float(each.get("grow", 0.0)) * since


def _lines(texts: Any, begins: float, rank: int | None = None) -> tuple[LogLine, ...]:
    """``"+3.5 text"``: seconds after T."""
    pairs = (str(text).partition(" ") for text in texts)
    return tuple(LogLine(begins + float(at), text, rank) for at, _, text in pairs)


# -- nodes ---------------------------------------------------------------------------------------------------------------


def gpu(node: str, index: int) -> dict[str, str]:
    number = int(node.rpartition("-")[2])
    return {
        "gpu": str(index),
        "UUID": f"GPU-{number:02d}{index:02d}6f3c-8a1d-4b77-9d0e-3f2a1c5b7e90",
        "pci_bus_id": f"00000000:{27 + 16 * index:02X}:00.0",
        "modelName": "NVIDIA H100 80GB HBM3",
        "Hostname": node,
    }


def _node(name: str, told: Mapping[str, Any], begins: float, ends: float) -> NodeEvidence:
    rules, history = Rules(name, told.get("gpus", 0)), History()
    kernel = _lines((told.get("kernel") or {}).get(name, ()), begins)
    findings: dict[tuple[str, str, str, str], Finding] = {}
    other: dict[tuple[str, str], list[tuple[float, float]]] = {}
    at, waiting = 1000.0, list(kernel)
    while at <= ends:
        points = list(_points(name, told, at - begins))
        due = [line for line in waiting if line.at <= at]
        waiting = [line for line in waiting if line.at > at]
        readings = (
            Reading("kmsg", at, lines=tuple(Line(line.at, line.text) for line in due)),
            Reading("dcgm", at, tuple(points)),
        )
        for reading in readings:
            findings |= {finding.key: finding for finding in rules.take(reading, at)}
        _keep(history, name, points, at, other)
        at += EVERY
    for each in told.get("findings", {}).get(name, ()):
        finding = Finding(node=name, at=begins, first_at=begins, **{**each, "severity": Severity(each["severity"])})
        findings[finding.key] = finding
    series = [Series(one.name, one.device, one.samples) for one in history.series(name, 0.0, ends)]
    series += [Series(metric, device, tuple(samples)) for (metric, device), samples in other.items()]
    labels = (told.get("labels") or {}).get(name, {})
    return NodeEvidence(name, tuple(series), tuple(findings.values()), kernel, labels)


def _points(node: str, told: Mapping[str, Any], since: float) -> Iterator[Point]:
    values: dict[tuple[str, str], tuple[float, dict[str, str]]] = {}
    if told.get("dcgm", True):
        for index in range(GPUS):
            for name, value in USUAL.items():
                values[name, str(index)] = (value, gpu(node, index))
    for each in told.get("points", ()):
        if each.get("node", node) != node:
            continue
        if each["name"] == "*":
            gone = {str(index) for index in _indices(each["gpu"])} if since >= 0 or each.get("from_start") else set()
            values = {key: value for key, value in values.items() if key[1] not in gone}
            continue
        places = [gpu(node, index) for index in _indices(each["gpu"])] if "gpu" in each else [each.get("labels", {})]
        for labels in places:
            key = (each["name"], labels.get("gpu", str(sorted(labels.items()))))
            values[key] = (_value(each, since), labels)
    for (name, _), (value, labels) in values.items():
        yield Point(
            name, value, tuple(sorted(labels.items())), "counter" if name.endswith(("_total", "_TOTAL")) else "gauge"
        )


def _indices(which: Any) -> list[int]:
    return list(range(GPUS)) if which == "all" else [int(which)]


def _keep(
    history: History, node: str, points: list[Point], at: float, other: dict[tuple[str, str], list[tuple[float, float]]]
) -> None:
    """What the server keeps; of the rest what Prometheus would, under the exporter's name."""
    ours = [point for raw in points for point in canonical(raw)]
    sent = tuple(push.Series(point.name, point.labels, point.type) for point in ours)
    digest = push.digest(sent)
    history.learn(node, digest, sent)
    history.take(node, [push.Row(at, tuple(point.value for point in ours))])
    for point in points:
        if not any(place(push.Series(own.name, own.labels)) for own in canonical(point)):
            labels = dict(point.labels)
            device = labels.get("UUID") or "/".join(labels[key] for key in ("device", "port") if key in labels)
            other.setdefault((point.name, device or next(iter(labels.values()), "")), []).append((at, point.value))
