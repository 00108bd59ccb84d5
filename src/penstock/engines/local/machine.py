"""What this machine has: CPUs that we may use, memory, GPUs; and how it is split into several nodes."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from penstock.engines.spec import Gpu, MigInstance, NodeOffer

_PROFILE = re.compile(r"\bMIG ((?:\d+c\.)?\d+g\.\d+gb\S*)")


@dataclass(frozen=True, slots=True)
class Machine:
    """CPUs in cores, memory in bytes."""

    cpus: float
    memory: int
    gpus: tuple[Gpu, ...] = ()


def probe() -> Machine:
    """Affinity and control-group limits are respected; GPUs are those that NVML names, when it is there."""
    return Machine(_cpus(), _memory(), _gpus())


def split(machine: Machine, count: int) -> list[NodeOffer]:
    """``count`` nodes named node-0 and so on, which together are the machine; GPUs go round in contiguous runs."""
    offers = []
    for index in range(count):
        begin, end = index * len(machine.gpus) // count, (index + 1) * len(machine.gpus) // count
        cpus = int(machine.cpus * 1000 / count) / 1000
        offers.append(NodeOffer(f"node-{index}", cpus, machine.memory // count, machine.gpus[begin:end]))
    return offers


def _cpus() -> float:
    cpus = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = _read("/sys/fs/cgroup/cpu.max").split()
        if quota != "max":
            cpus = min(cpus, int(quota) / int(period))
    return cpus


def _memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(_read(path)))
    return total


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def _gpus() -> tuple[Gpu, ...]:
    """Every GPU that NVML shows, by UUID. Empty without the ``pynvml`` module, a driver or a device."""
    try:
        import pynvml
    except ImportError:
        return ()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        found = [gpu_of(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(gpu for gpu in found if gpu is not None)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def gpu_utilization() -> dict[str, float]:
    """How busy each GPU was over NVML's last period, in percent by UUID; without those that do not tell (MIG instances)."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    found: dict[str, float] = {}
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            with contextlib.suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                found[_text(pynvml.nvmlDeviceGetUUID(handle))] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except pynvml.NVMLError:
        return found
    finally:
        pynvml.nvmlShutdown()
    return found


def gpu_of(nvml: Any, index: int) -> Gpu | None:
    """None: in MIG mode and not cut, so that nothing can run on it."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    name, uuid = (_text(value) for value in (nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetUUID(handle)))
    memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    try:
        cut = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:  # of a model that knows no MIG
        cut = False
    if not cut:
        return Gpu(uuid, name, memory)
    instances = tuple(_instances(nvml, handle))
    return Gpu(uuid, name, memory, instances) if instances else None


def _instances(nvml: Any, handle: Any) -> Iterator[MigInstance]:
    """Its MIG devices, in NVML's order. NVML tells a profile in a device's name (``... MIG 3g.40gb``)."""
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            device = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
        except nvml.NVMLError:  # there may be holes
            continue
        named = _PROFILE.search(_text(nvml.nvmlDeviceGetName(device)))
        if named is not None:
            profile = named[1]
        else:
            has = nvml.nvmlDeviceGetAttributes(device)
            profile = f"{has.gpuInstanceSliceCount}g.{round(has.memorySizeMB / 1024)}gb"
        yield MigInstance(_text(nvml.nvmlDeviceGetUUID(device)), profile)


def _text(value: bytes | str) -> str:
    """Older bindings answer with bytes."""
    return value.decode() if isinstance(value, bytes) else value
