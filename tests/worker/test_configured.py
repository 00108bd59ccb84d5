"""What a training tells of its own configuration: the parts that need no training."""

from __future__ import annotations

from pathlib import Path

import torch

from penstock.worker import configured


def test_cores_near_a_device_are_as_linux_writes_them(tmp_path: Path) -> None:
    place = tmp_path / "bus/pci/devices/0000:3b:00.0"
    place.mkdir(parents=True)
    (place / "local_cpulist").write_text("32-63\n")
    assert configured.near_cores(0, 0x3B, 0, str(tmp_path)) == {"gpu_affinity": "32-63"}
    assert configured.near_cores(0, 0x4B, 0, str(tmp_path)) == {}
    assert configured.near_cores(None, 0x3B, 0, str(tmp_path)) == {}


def test_graphs_of_the_compiler_are_counted() -> None:
    @torch.compile(backend="eager", dynamic=False)
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    twice(torch.ones(2))
    before = configured.counted()["recompiles"]
    for size in (3, 4, 5):
        twice(torch.ones(size))
    assert configured.counted()["recompiles"] == before + 3
