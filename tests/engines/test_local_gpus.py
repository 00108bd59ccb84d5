"""What NVML says, where there is an NVIDIA GPU."""

from __future__ import annotations

import pytest

from penstock.engines.local.machine import gpu_utilization, probe


@pytest.mark.gpu
def test_every_gpu_says_how_busy_it_is() -> None:
    found = gpu_utilization()
    assert found.keys() == {gpu.id for gpu in probe().gpus}
    assert all(0 <= level <= 100 for level in found.values())


def test_a_machine_without_gpus_is_not_asked_in_vain() -> None:
    assert gpu_utilization().keys() <= {gpu.id for gpu in probe().gpus}
