"""GPUs, by what they say of themselves: clocks and why they are low, the slot, how they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.readings import by_device, device, readings, rose
from penstock.diagnosis.causes.rule import Found, Proof, by_lost, job, nodes, pct, said
from penstock.diagnosis.features import Features, middle

Gpu = tuple[str, str]  # node, device
_LOCKED, _POWER, _THERMAL, _BRAKE = 0x2, 0x4, 0x60, 0x80
_BUSY = 0.3  # utilization below which a low clock is rest
_LOW = 0.93  # of the peers' clock
_HOT = 83.0  # degrees, where a limit is not told; throttling begins at 83 to 90 by model
_NEAR = 4.0  # degrees to the limit


def clocks(features: Features) -> Iterator[Found]:
    """A clock below the others': heat, power, or a setting."""
    clock = {key: r.value for key, r in by_device(features, "clock").items() if _busy(features, key)}
    for key, value in sorted(clock.items()):
        others = middle(other for name, other in clock.items() if name != key) or _most(features, key)
        if others is None or value >= _LOW * others:
            continue
        slower = 1 - value / others
        words = f"the clock of GPU {key[1]} on {key[0]} is {_mhz(value)} MHz, its peers' {_mhz(others)} MHz"
        yield from _why(features, key, slower, words)


def _busy(features: Features, key: Gpu) -> bool:
    used = by_device(features, "utilization").get(key)
    return used is None or used.value > (_BUSY * 100 if used.series.name.startswith("DCGM") else _BUSY)


def _most(features: Features, key: Gpu) -> float | None:
    most = by_device(features, "clock_max").get(key)
    return most.value if most is not None else None


def _mhz(value: float) -> str:
    return f"{value / 1e6 if value > 1e5 else value:.0f}"


def _why(features: Features, key: Gpu, slower: float, words: str) -> Iterator[Found]:
    bits = _bits(features, key)
    hot = _heat(features, key)
    limit = _power(features, key)
    at = device(features, *key)
    strength = by_lost(slower)
    if bits & _THERMAL or (hot and not bits):
        flag = "it gives heat as the reason (thermal slowdown)" if bits & _THERMAL else ""
        yield Found("gpu_thermal_throttle", Proof.COUNTER, strength + 0.2, at, said(words, flag, hot))
    if bits & (_POWER | _BRAKE) or (limit and not bits):
        brake = "an external power brake is on: mostly a whole rack's power" if bits & _BRAKE else ""
        cap = "it gives its power cap as the reason" if bits & _POWER else ""
        yield Found(
            "gpu_power_brake",
            Proof.COUNTER,
            strength + 0.1,
            at,
            said(words, brake, cap, limit),
            said(hot if not bits else ""),
        )
    if bits & _LOCKED or (not bits and not hot and not limit and _constant(features, key)):
        flag = (
            "it gives a clock setting as the reason"
            if bits & _LOCKED
            else "it does not move at all, and nothing holds it down"
        )
        yield Found("gpu_clocks_locked", Proof.COUNTER, strength, at, said(words, flag))


def _bits(features: Features, key: Gpu) -> int:
    """Why the clock is low, as NVML's bits: by the mask, or by the one series for each reason."""
    mask = by_device(features, "reasons").get(key)
    bits = int(mask.value) if mask is not None else 0
    names = {"thermal": _THERMAL, "power_brake": _BRAKE, "power_cap": _POWER, "applications_clocks": _LOCKED}
    for node in features.evidence.nodes:
        for series in node.series:
            if node.name == key[0] and series.name.startswith("penstock_gpu_clock_reason") and series.samples:
                held = f"{series.name} {series.device}"
                if key[1] in held and series.samples[-1][1] > 0:
                    bits |= sum(bit for word, bit in names.items() if word in held)
    return bits


def _heat(features: Features, key: Gpu) -> str:
    own = by_device(features, "temperature").get(key)
    limit = by_device(features, "temperature_limit").get(key)
    if own is None:
        return ""
    most = limit.value - _NEAR if limit is not None else _HOT
    return f"it is {own.value:.0f} degrees hot" if own.value >= most else ""


def _power(features: Features, key: Gpu) -> str:
    own, most = by_device(features, "power").get(key), by_device(features, "power_limit").get(key)
    if own is None or most is None or own.value < 0.97 * most.value:
        return ""
    return f"it draws {own.value:.0f} W, its limit is {most.value:.0f} W"


def _constant(features: Features, key: Gpu) -> bool:
    values = [value for _, value in by_device(features, "clock")[key].series.samples]
    return len(values) >= 5 and max(values) == min(values)


def slots(features: Features) -> Iterator[Found]:
    """PCIe: fewer lanes than it could have, and errors on them."""
    most = by_device(features, "pcie_width_max")
    width = by_device(features, "pcie_width")
    for key, reading in sorted(width.items()):
        full = most[key].value if key in most else max(other.value for other in width.values())
        if 0 < reading.value < full and _busy(features, key):
            words = f"GPU {key[1]} on {key[0]} has {reading.value:.0f} of {full:.0f} PCIe lanes, under load"
            yield Found("pcie_downgrade", Proof.COUNTER, 0.6, device(features, *key), (words,))
    replays = by_device(features, "pcie_replays")
    rates = {key: rose(reading) for key, reading in replays.items()}
    for key, rate in sorted(rates.items()):
        others = middle(other for name, other in rates.items() if name != key) or 0.0
        if rate >= 10 and rate > 10 * others:
            words = f"GPU {key[1]} on {key[0]} sent {rate:.0f} PCIe packets again, its peers {others:.0f}"
            yield Found("pcie_aer", Proof.COUNTER, 0.4, device(features, *key), (words,))


def missing(features: Features) -> Iterator[Found]:
    """Fewer GPUs than are plugged in."""
    plugged = {reading.node: reading.value for reading in readings(features, "gpus_plugged")}
    for reading in readings(features, "gpus"):
        wanted = plugged.get(reading.node, max((v for _, v in reading.series.samples), default=0.0))
        last = reading.series.samples[-1][1]
        if last < wanted:
            words = f"{reading.node} has {last:.0f} GPUs that answer, {wanted:.0f} are there"
            yield Found("gpu_count_short", Proof.COUNTER, 0.9, nodes([reading.node]), (words,))


def used(features: Features) -> Iterator[Found]:
    """Busy all the time with little done: many small kernels, or no tensor cores."""
    active, tensor = by_device(features, "sm_active"), by_device(features, "tensor_active")
    busy = {key: r for key, r in active.items() if _busy(features, key) and key in by_device(features, "utilization")}
    if busy and all(reading.value < 0.25 for reading in busy.values()):
        words = f"the GPUs are called busy, and {pct(max(r.value for r in busy.values()))} of their processors work: kernels are too small"
        waits = said(
            ""
            if all(v.now.share("data") < t.DATA for v in features.ranks)
            else "ranks wait for data, which looks alike"
        )
        yield Found("gpu_low_util_launch_bound", Proof.COUNTER, 0.3, job(features), (words,), waits)
    computing = bool(active) and min(reading.value for reading in active.values()) > 0.4
    if computing and tensor and all(reading.value < 0.01 for reading in tensor.values()):
        words = "the GPUs compute, and none of it on tensor cores: full precision"
        yield Found("tf32_amp_off", Proof.COUNTER, 0.3, job(features), (words,))


def racks(features: Features) -> Iterator[Found]:
    """Several nodes of one rack hot or braked, others not: the rack's, not theirs."""
    rack = {
        node.name: str(node.labels.get("topology/rack") or node.labels.get("rack") or "")
        for node in features.evidence.nodes
    }
    hot = {
        key[0]
        for key in by_device(features, "clock")
        if _bits(features, key) & (_THERMAL | _BRAKE) or _heat(features, key)
    }
    yield from _whole(rack, hot)


def _whole(rack: Mapping[str, str], hot: set[str]) -> Iterator[Found]:
    for name in sorted(set(rack.values()) - {""}):
        inside = {node for node, where in rack.items() if where == name}
        if len(inside) >= 2 and len(inside & hot) * 4 >= 3 * len(inside) and not hot - inside:
            words = f"{len(inside & hot)} of {len(inside)} nodes of rack {name} are hot or short of power, none elsewhere is"
            yield Found("rack_power_cooling", Proof.COUNTER, 1.0, nodes(inside & hot), (words,))


def host_clock(features: Features) -> Iterator[Found]:
    """A processor far below its peers' clock."""
    clocks = {reading.node: reading.value for reading in readings(features, "cpu_clock")}
    for node, value in sorted(clocks.items()):
        others = middle(other for name, other in clocks.items() if name != node)
        if others and value < 0.8 * others:
            words = f"the processors of {node} run at {_mhz(value)} MHz, the other nodes' at {_mhz(others)} MHz"
            yield Found("cpu_freq_low", Proof.COUNTER, by_lost(1 - value / others), nodes([node]), (words,))


RULES = (clocks, slots, missing, used, racks, host_clock)
