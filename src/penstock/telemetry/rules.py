"""Readings of one node over time -> findings. Pure; what is kept is bounded, whatever comes in.

Lines tell by themselves (``kernel_lines.py``); values tell by ``conditions.py``, and by the few rules here that look at several values:
GPUs that vanish or are too few, links below what they were, a clock that is wrong or jumps, sources that are silent.

Lengths of time are taken from ``tick``, seconds that never step: a clock that is set gives one finding, ``ClockJump``, and no other.
A reading that has a problem proves nothing by what it lacks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite

from penstock.telemetry.conditions import GROWTHS, LEVELS, Growth, Level
from penstock.telemetry.kept import written
from penstock.telemetry.kernel_lines import told
from penstock.telemetry.names import canonical, pci_address
from penstock.telemetry.spec import Finding, Labels, Line, Point, Reading, Severity

AGAIN_S = 60.0  # what lasts is told again so often
REPEAT_S = 5.0  # what repeats is counted, and told no oftener
WELL_S = 30.0  # a level must be well so long before it has ended
FORGET_S = 6 * 3600.0  # what was not seen for so long is forgotten
SILENT_S = 120.0  # a source that has said nothing useful for so long is told of
JUMP_S = 5.0  # of the clock
SKEW_S = 0.05  # of the clock, where something keeps it
SKEW_FOR_S = 60.0
FLAP_S, FLAPS = 300.0, 2  # of links that the kernel's log tells of
XID_S = 120.0  # within which a Xid of a page is the one of the log
MAX_FINDINGS = 1000
MAX_GPUS = 256
MAX_TRACKS = 20_000
MAX_EVIDENCE = 5
MAX_STEPS = 64  # of one counter that are kept of a window
ABSURD = 1e12  # a counter that grew so much at once was not read, whatever it said

_Id = tuple[str, str, str]  # rule, code, device
_Series = tuple[str, Labels]


@dataclass(slots=True)
class _Open:
    finding: Finding
    tick: float  # last seen
    told: float  # last told
    untold: bool = False


@dataclass(slots=True)
class _Condition:
    since: float | None = None  # since when it is wrong
    well: float | None = None  # since when it is well again
    was_well: bool = False


@dataclass(slots=True)
class _Counter:
    value: float
    tick: float
    steps: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MAX_STEPS))


@dataclass(frozen=True, slots=True)
class _Seen:
    """Where a finding was seen."""

    at: float
    tick: float
    source: str


class Rules:
    """``gpus``: how many the node should have; 0 leaves that to the PCI bus."""

    def __init__(self, node: str, gpus: int = 0) -> None:
        self.node = node
        self.gpus = gpus
        self._open: dict[_Id, _Open] = {}
        self._conditions: dict[_Id, _Condition] = {}
        self._counters: dict[_Series, _Counter] = {}
        self._best: dict[_Series, float] = {}  # the most that a link had
        self._pci: dict[str, str] = {}  # by UUID
        self._index: dict[str, str] = {}
        self._present: dict[str, dict[str, float]] = {}  # by source, when each GPU was seen last
        self._on_bus: dict[str, float] = {}
        self._clock: tuple[float, float] | None = None
        self._good: dict[str, float] = {}  # by source, when it last had no problem
        self._downs: dict[str, deque[tuple[float, float]]] = {}
        self._xids: dict[str, float] = {}  # by code, when the kernel's log last had one
        self._last_xids: dict[_Series, float] = {}

    def take(self, reading: Reading, tick: float) -> list[Finding]:
        """Findings that are new, have repeated, last, or have ended."""
        seen = _Seen(reading.at, tick, reading.source)
        for line in reading.lines:
            self._line(line, seen)
        points = [point for raw in reading.points for point in canonical(raw) if isfinite(point.value)]
        self._learn(points)
        self._levels(points, seen)
        self._growths(points, seen)
        self._links(points, seen)
        self._gpus(points, reading, seen)
        self._xids_of_pages(points, seen)
        self._times(points, seen)
        self._sources(reading, seen)
        self._forget(tick)
        return list(self._due(tick))

    # ------------------------------------------------------------------------------------------------ what is told

    def _found(
        self, key: _Id, severity: Severity, message: str, seen: _Seen, evidence: str, **more: float | str
    ) -> None:
        """Seen now. The same again is counted only where ``_again`` says so."""
        facts = {**self._facts(key[2]), **more}
        entry = self._open.get(key)
        if entry is None or not entry.finding.active:
            finding = Finding(
                key[0], self.node, seen.at, seen.at, message[:400], severity, key[2], key[1],
                source=seen.source, evidence=(evidence[:500],), facts=facts,
            )  # fmt: skip
            if len(self._open) >= MAX_FINDINGS:
                del self._open[min(self._open, key=lambda one: self._open[one].tick)]
            self._open[key] = _Open(finding, seen.tick, float("-inf"), untold=True)
            return
        entry.finding = replace(
            entry.finding,
            at=max(seen.at, entry.finding.first_at),
            severity=severity,
            message=message[:400],
            facts=facts,
        )
        entry.tick = seen.tick

    def _again(self, key: _Id, evidence: str) -> None:
        """It happened once more."""
        entry = self._open[key]
        kept = (*entry.finding.evidence, evidence[:500])[-MAX_EVIDENCE:]
        entry.finding = replace(entry.finding, count=entry.finding.count + 1, evidence=kept)
        entry.untold = True

    def _ended(self, key: _Id, seen: _Seen) -> None:
        entry = self._open.get(key)
        if entry is not None and entry.finding.active:
            entry.finding = replace(entry.finding, at=max(seen.at, entry.finding.first_at), active=False)
            entry.tick, entry.told, entry.untold = seen.tick, float("-inf"), True

    def _due(self, tick: float) -> Iterator[Finding]:
        for entry in self._open.values():
            lasts = entry.finding.active and entry.tick == tick and tick - entry.told >= AGAIN_S
            if lasts or (entry.untold and tick - entry.told >= REPEAT_S):
                entry.told, entry.untold = tick, False
                yield entry.finding

    def _facts(self, device: str) -> dict[str, float | str]:
        """The other names of a GPU."""
        uuid = next((uuid for uuid, pci in self._pci.items() if pci == device), "")
        return {"uuid": uuid, "gpu": self._index.get(uuid, "")} if uuid else {}

    # --------------------------------------------------------------------------------------------------- the log

    def _line(self, line: Line, seen: _Seen) -> None:
        found = told(line.text)
        if found is None:
            return
        rule = found.rule
        key = (rule.rule, found.code, found.device)
        at = _Seen(line.at, seen.tick, seen.source)
        if rule.ends:
            self._ended(key, at)
            return
        before = self._open.get(key)
        repeats = before is not None and before.finding.active
        facts = {**found.facts, **({} if line.facility == "kern" else {"facility": line.facility})}
        self._found(key, rule.severity, found.message, at, line.text, **facts)
        if repeats:
            self._again(key, line.text)
        if rule.rule == "LinkDown":
            self._flap(found.device, line, at)
        if rule.rule == "Xid":
            self._xids[found.code] = seen.tick

    def _flap(self, device: str, line: Line, seen: _Seen) -> None:
        """Also of lines that were written before the agent began, and across a step of the clock: both times count."""
        if device not in self._downs and len(self._downs) >= MAX_FINDINGS:
            return
        downs = self._downs.setdefault(device, deque(maxlen=MAX_STEPS))
        downs.append((line.at, seen.tick))
        recent = sum(abs(line.at - at) <= FLAP_S and seen.tick - tick <= FLAP_S for at, tick in downs)
        if recent >= FLAPS:
            message = f"the link of {device} went down {recent} times in 5 minutes"
            self._found(("LinkFlap", "kernel", device), Severity.WARNING, message, seen, line.text)

    # ------------------------------------------------------------------------------------------------------ values

    def _learn(self, points: Iterable[Point]) -> None:
        """Which GPU lies where; how many the bus has."""
        for point in points:
            if point.name == "penstock_gpu_info":
                labels = dict(point.labels)
                uuid, pci = labels.get("uuid", ""), labels.get("pci", "")
                if uuid and pci and (uuid in self._pci or len(self._pci) < MAX_FINDINGS):
                    self._pci[uuid] = pci_address(pci)
                    self._index[uuid] = labels.get("gpu", "")
            elif point.name == "penstock_node_pci_gpus":
                self._on_bus[dict(point.labels).get("vendor", "")] = point.value

    def _device(self, labels: Mapping[str, str], names: tuple[str, ...]) -> str:
        """A GPU by its PCI address where that is known: the kernel's log knows no other name of it."""
        words = [labels.get(name, "") for name in names]
        if names == ("uuid",):
            return self._pci.get(words[0], words[0] or labels.get("gpu", ""))
        return "/".join(filter(None, words))

    def _levels(self, points: list[Point], seen: _Seen) -> None:
        by_name: dict[str, list[Point]] = {}
        values: dict[_Series, float] = {}
        for point in points:
            by_name.setdefault(point.name, []).append(point)
            values[point.name, point.labels] = point.value
        for level in LEVELS:
            for point in by_name.get(level.metric, ()):
                labels = dict(point.labels)
                if any(labels.get(name) != value for name, value in level.where):
                    continue
                value = point.value
                if level.of:
                    whole = values.get((level.of, point.labels), 0.0)
                    if whole <= 0:
                        continue
                    value /= whole
                wrong = (level.above is not None and value > level.above) or (
                    level.below is not None and value < level.below
                )
                key = (level.rule, _code(level, labels), self._device(labels, level.device))
                message = level.message.format(device=key[2], code=key[1], value=value)
                evidence = f"{_written(point)} of {_number(whole)}" if level.of else _written(point)
                self._condition(key, level, (wrong, message, evidence), seen)

    def _condition(self, key: _Id, level: Level, found: tuple[bool, str, str], seen: _Seen) -> None:
        wrong, message, evidence = found
        state = self._conditions.get(key)
        if state is None:
            if not wrong and not level.changed:
                return
            if len(self._conditions) >= MAX_TRACKS:
                return
            state = self._conditions[key] = _Condition()
        if wrong:
            state.well = None
            if level.changed and not state.was_well:
                return
            state.since = seen.tick if state.since is None else state.since
            if seen.tick - state.since >= level.for_s:
                self._found(key, level.severity, message, seen, evidence)
            return
        state.was_well = True
        if state.since is None:
            return
        state.well = seen.tick if state.well is None else state.well
        if seen.tick - state.well >= WELL_S or key not in self._open:
            state.since = state.well = None
            self._ended(key, seen)

    def _growths(self, points: list[Point], seen: _Seen) -> None:
        for point in points:
            rules = _GROWTHS_OF.get(point.name)
            if rules is None:
                continue
            track = self._counted(point, seen.tick)
            labels = dict(point.labels)
            for rule in rules:
                if track is None or any(labels.get(name) != value for name, value in rule.where):
                    continue
                key = (rule.rule, _code(rule, labels), self._device(labels, rule.device))
                grown = sum(by for tick, by in track.steps if seen.tick - tick < rule.within_s)
                if grown >= rule.by and track.steps[-1][0] == seen.tick:
                    message = rule.message.format(device=key[2], code=key[1], value=grown)
                    repeats = key in self._open and self._open[key].finding.active
                    self._found(key, rule.severity, message, seen, _written(point), grown=grown)
                    if repeats:
                        self._again(key, _written(point))
                elif grown == 0:
                    self._ended(key, seen)

    def _counted(self, point: Point, tick: float) -> _Counter | None:
        """The counter with this step; None where nothing follows: the first value, a reset, a wrap, nonsense."""
        series = (point.name, point.labels)
        track = self._counters.get(series)
        if not 0 <= point.value < 1 << 63:
            return None
        if track is None:
            if len(self._counters) < MAX_TRACKS:
                self._counters[series] = _Counter(point.value, tick)
            return None
        step = point.value - track.value
        track.value, track.tick = point.value, tick
        if 0 < step < ABSURD:
            track.steps.append((tick, step))
        return track

    def _links(self, points: list[Point], seen: _Seen) -> None:
        """Links that are slower than they were, NVLinks that are fewer."""
        for point in points:
            if point.name not in _BEST:
                continue
            rule, words, names = _BEST[point.name]
            series = (point.name, point.labels)
            best = max(point.value, self._best.get(series, 0.0))
            if series in self._best or len(self._best) < MAX_TRACKS:
                self._best[series] = best
            device = self._device(dict(point.labels), names)
            wrong = 0 < point.value < best * 0.99 or (rule == "NvlinkDown" and point.value < best)
            level = Level(rule, point.name, "", for_s=WELL_S)
            message = words.format(device=device, value=point.value, best=best)
            self._condition(
                (rule, "", device), level, (wrong, message, f"{_written(point)}, was {_number(best)}"), seen
            )

    def _gpus(self, points: list[Point], reading: Reading, seen: _Seen) -> None:
        """GPUs that were there and are not, or are fewer than the node should have."""
        told_of = {dict(point.labels).get("uuid", "") for point in points if point.name in _GPU_POINTS} - {""}
        known = self._present.setdefault(reading.source, {})
        known.update(dict.fromkeys(sorted(told_of)[:MAX_GPUS], seen.tick))
        if not told_of or reading.problem:
            return
        lost = {dict(one.labels).get("uuid", "") for one in points if one.name == "penstock_gpu_up" and one.value < 0.5}
        for uuid, last in list(known.items()):
            key = ("GpuMissing", "lost", self._device({"uuid": uuid}, ("uuid",)))
            if seen.tick - last > FORGET_S:
                del known[uuid]
            elif uuid not in told_of:
                evidence = f"{reading.source} tells of {len(told_of)} GPUs, not of {uuid}"
                self._found(key, Severity.CRITICAL, f"GPU {key[2]} is not there any more", seen, evidence)
            elif uuid not in lost:
                self._ended(key, seen)
        expected = self.gpus or int(sum(self._on_bus.values()))
        if expected:
            words = f"{len(told_of)} of {expected} GPUs are there"
            level = Level("GpuMissing", "penstock_gpus", "", for_s=60.0, severity=Severity.CRITICAL)
            self._condition(("GpuMissing", "count", ""), level, (len(told_of) < expected, words, words), seen)

    def _xids_of_pages(self, points: list[Point], seen: _Seen) -> None:
        """dcgm-exporter tells the last Xid of each GPU: repeats cannot be seen there, and the kernel's log says it sooner."""
        for point in points:
            if point.name != "penstock_gpu_xid_last":
                continue
            series = (point.name, point.labels)
            before = self._last_xids.get(series)
            if before is not None or len(self._last_xids) < MAX_GPUS:
                self._last_xids[series] = point.value
            code = f"{point.value:.0f}"
            logged = seen.tick - self._xids.get(code, float("-inf")) <= XID_S
            if before is not None and 0 < point.value != before and not logged:
                device = self._device(dict(point.labels), ("uuid",))
                key = ("Xid", code, device)
                self._found(key, Severity.WARNING, f"Xid {code} on GPU {device}", seen, _written(point))

    def _times(self, points: list[Point], seen: _Seen) -> None:
        values = {point.name: point.value for point in points if point.name in _CLOCKS}
        if {"penstock_node_monotonic_seconds", "penstock_node_time_seconds"} <= values.keys():
            before = self._clock
            self._clock = (values["penstock_node_time_seconds"], values["penstock_node_monotonic_seconds"])
            if before is not None:
                self._jump(self._clock[0] - before[0], self._clock[1] - before[1], seen)
        if "penstock_node_clock_offset_seconds" in values:
            offset = values["penstock_node_clock_offset_seconds"]
            level = Level("ClockSkew", "", "", for_s=SKEW_FOR_S)
            message = f"the node's clock is off by {offset * 1e3:+.0f} ms"
            self._condition(("ClockSkew", "", ""), level, (abs(offset) > SKEW_S, message, message), seen)

    def _jump(self, by_clock: float, in_truth: float, seen: _Seen) -> None:
        """Seconds since the clocks were read last."""
        jumped = by_clock - in_truth
        if abs(jumped) < JUMP_S:
            return
        key = ("ClockJump", "", "")
        self._ended(key, seen)
        message = f"the node's clock jumped by {jumped:+.1f} s"
        evidence = f"{by_clock:.1f} s by the clock, {in_truth:.1f} s in truth"
        self._found(key, Severity.WARNING, message, seen, evidence, seconds=round(jumped, 1))

    def _sources(self, reading: Reading, seen: _Seen) -> None:
        """A driver that hangs or is missing where there are GPUs; any source that is silent."""
        name, problem = reading.source, reading.problem
        if not problem or reading.points:
            self._good[name] = seen.tick
        since = self._good.setdefault(name, seen.tick)
        hangs = name == "nvml" and problem.startswith(HANGING)
        driverless = name == "nvml" and problem.startswith(NO_DRIVER)
        missing = name == "nvml" and problem.startswith(MISSING)
        gpus = self._on_bus.get("nvidia", 0.0)
        for key, (wrong, for_s, severity, words) in {
            ("GpuHung", "nvml", ""): (hangs, 0.0, Severity.CRITICAL, "the NVIDIA driver does not answer"),
            ("GpuMissing", "driver", ""): (driverless and gpus > 0, SILENT_S, Severity.CRITICAL, _DRIVERLESS),
            ("NvmlMissing", "", ""): (missing and gpus > 0, SILENT_S, Severity.INFO, _BLIND),
        }.items():
            if name == "nvml":
                level = Level(key[0], "", "", for_s=for_s, severity=severity)
                self._condition(key, level, (wrong, words, problem), seen)
        silent = bool(problem) and not (hangs or driverless or missing) and seen.tick - since >= SILENT_S
        level = Level("SourceSilent", "", "", severity=Severity.INFO)
        self._condition(("SourceSilent", name, ""), level, (silent, f"{name} says nothing: {problem}", problem), seen)

    def _forget(self, tick: float) -> None:
        for key in [key for key, one in self._open.items() if tick - one.tick > FORGET_S and not one.untold]:
            del self._open[key]
            self._conditions.pop(key, None)
        if len(self._counters) >= MAX_TRACKS:
            for series in [one for one, track in self._counters.items() if tick - track.tick > FORGET_S]:
                del self._counters[series]


HANGING = "NVML does not answer"  # how the source says so
MISSING = "NVML cannot be had"  # the agent's own lack: no module, no library
NO_DRIVER = "NVML finds no driver"
_DRIVERLESS = "the node has NVIDIA GPUs, and their driver is not loaded or not theirs"
_BLIND = "the node has NVIDIA GPUs, and the agent cannot ask them"
_CLOCKS = frozenset(
    {"penstock_node_monotonic_seconds", "penstock_node_time_seconds", "penstock_node_clock_offset_seconds"}
)
_GPU_POINTS = frozenset({"penstock_gpu_up", "penstock_gpu_temperature_celsius", "penstock_gpu_utilization_ratio"})
_BEST: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "penstock_infiniband_rate_bytes_per_second": (
        "LinkRateDegraded",
        "InfiniBand port {device} runs at {value:.3g} B/s, and did at {best:.3g}",
        ("device",),
    ),
    "penstock_node_network_speed_bytes_per_second": (
        "LinkRateDegraded",
        "{device} runs at {value:.3g} B/s, and did at {best:.3g}",
        ("device",),
    ),
    "penstock_gpu_nvlinks_up": (
        "NvlinkDown",
        "GPU {device} has {value:g} NVLinks up, and had {best:g}",
        ("uuid",),
    ),
}
_GROWTHS_OF: dict[str, list[Growth]] = {}
for _growth in GROWTHS:
    _GROWTHS_OF.setdefault(_growth.metric, []).append(_growth)


def _code(rule: Level | Growth, labels: Mapping[str, str]) -> str:
    return rule.code[1:] if rule.code.startswith("=") else labels.get(rule.code, "")


def _written(point: Point) -> str:
    return f"{written(point.name, dict(point.labels))} {_number(point.value)}"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.6g}"
