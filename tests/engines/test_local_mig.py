"""What the local engine offers of GPUs in MIG mode; NVML's answers are played, in the words of its documentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from penstock.engines.local.machine import gpu_of
from penstock.engines.spec import MigInstance


class NVMLError(Exception):
    """As the module's own."""


@dataclass
class Nvml:
    """One GPU. ``devices``: (uuid, name) by MIG index, None for a hole; ``mode`` None: a model that knows no MIG."""

    mode: int | None
    devices: list[tuple[str, str] | None] = field(default_factory=list)
    NVMLError: type[Exception] = NVMLError
    NVML_DEVICE_MIG_ENABLE: int = 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802 - NVML's own names, here and below
        return index

    def nvmlDeviceGetName(self, handle: Any) -> str:  # noqa: N802
        return handle[1] if isinstance(handle, tuple) else "NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetUUID(self, handle: Any) -> bytes:  # noqa: N802
        return handle[0].encode() if isinstance(handle, tuple) else b"GPU-1"

    def nvmlDeviceGetMemoryInfo(self, _handle: Any) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(total=80 << 30)

    def nvmlDeviceGetMigMode(self, _handle: Any) -> list[int]:  # noqa: N802
        if self.mode is None:
            raise NVMLError("Not Supported")
        return [self.mode, 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, _handle: Any) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _handle: Any, index: int) -> tuple[str, str]:  # noqa: N802
        found = self.devices[index] if index < len(self.devices) else None
        if found is None:
            raise NVMLError("Not Found")
        return found

    def nvmlDeviceGetAttributes(self, _handle: Any) -> SimpleNamespace:  # noqa: N802
        return SimpleNamespace(gpuInstanceSliceCount=2, memorySizeMB=19968)


def test_whole_gpus() -> None:
    for mode in (None, 0):
        found = gpu_of(Nvml(mode), 0)
        assert found is not None
        assert (found.id, found.mig) == ("GPU-1", ())


def test_instances_by_their_own_ids() -> None:
    devices = [("MIG-a", "NVIDIA H100 80GB HBM3 MIG 3g.40gb"), None, ("MIG-b", "NVIDIA H100 80GB HBM3 MIG 1g.10gb+me")]
    found = gpu_of(Nvml(1, devices), 0)
    assert found is not None
    assert found.mig == (MigInstance("MIG-a", "3g.40gb"), MigInstance("MIG-b", "1g.10gb+me"))


def test_a_name_that_tells_no_profile() -> None:
    found = gpu_of(Nvml(1, [("MIG-a", "NVIDIA H100 80GB HBM3")]), 0)
    assert found is not None
    assert found.mig == (MigInstance("MIG-a", "2g.20gb"),)


def test_in_mig_mode_and_not_cut_nothing_can_run_there() -> None:
    assert gpu_of(Nvml(1), 0) is None
