"""Every source under one contract, with what was recorded; and then with nothing there, with nonsense, and with too much."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from penstock.telemetry.sources.amd_smi import AmdSmi
from penstock.telemetry.sources.clock import Clock
from penstock.telemetry.sources.disk import Disk
from penstock.telemetry.sources.exporters import dcgm, envoy, node_exporter
from penstock.telemetry.sources.host import Host
from penstock.telemetry.sources.infiniband import Infiniband, Perfquery
from penstock.telemetry.sources.kmsg import Kmsg
from penstock.telemetry.sources.nvml import Nvml
from penstock.telemetry.sources.pci import Pci
from penstock.telemetry.sources.slurm import Slurm
from penstock.telemetry.spec import Source
from tests.telemetry.sources.contract import CONTRACT, NOW, sound
from tests.telemetry.sources.planted import RECORDED, nvml_child, page, prints, recorded, statvfs, tree

SCONTROL = (RECORDED.parents[2] / "engines/slurm/recorded/scontrol-show-node-22.05.txt").read_text()
Make = Callable[[Path, ExitStack], Source]


def served(stack: ExitStack, name: str) -> str:
    return stack.enter_context(page(recorded(name).encode()))


SOURCES: dict[str, Make] = {
    "host": lambda folder, _: Host(tree(folder, "node.tree")),
    "host of a virtual machine": lambda folder, _: Host(tree(folder, "vm.tree")),
    "disk": lambda folder, _: Disk(tree(folder, "node.tree"), statvfs=statvfs()),
    "pci": lambda folder, _: Pci(tree(folder, "node.tree")),
    "clock": lambda _, __: Clock(ask=lambda: (True, 0.0001, 0.01)),
    "clock of this machine": lambda _, __: Clock(),
    "infiniband": lambda folder, _: Infiniband(tree(folder, "node.tree")),
    "perfquery": lambda folder, _: Perfquery("mlx5_0/1", prints(folder, recorded("perfquery.txt"))),
    "kmsg": lambda folder, _: Kmsg(str(folder / "cursor"), str(RECORDED / "kmsg.txt"), "b0"),
    "nvml": lambda folder, _: Nvml(words=nvml_child(folder, recorded("nvml_busy.json"))),
    "nvml of an idle GPU": lambda folder, _: Nvml(words=nvml_child(folder, recorded("nvml_idle.json"))),
    "amd-smi": lambda folder, _: AmdSmi(
        prints(folder, recorded("amd_smi_metric.json")), prints(folder, recorded("amd_smi_list.json"))
    ),
    "slurm": lambda folder, _: Slurm(prints(folder, SCONTROL.splitlines()[0])),
    "dcgm": lambda _, stack: dcgm(served(stack, "dcgm.txt")),
    "node_exporter": lambda _, stack: node_exporter(served(stack, "node_exporter.txt")),
    "envoy": lambda _, stack: envoy(served(stack, "envoy.txt")),
}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


@pytest.mark.parametrize("holds", CONTRACT, ids=lambda holds: holds.__name__)
@pytest.mark.parametrize("name", SOURCES)
def test_contract(name: str, holds: Callable[[Source], None], tmp_path: Path, stack: ExitStack) -> None:
    source = SOURCES[name](tmp_path, stack)
    try:
        holds(source)
    finally:
        source.close()


def test_every_file_of_sources_is_under_the_contract() -> None:
    made = {make(Path("/nonexistent"), ExitStack()).name for make in ABSENT.values()}
    assert made >= {
        "host",
        "disk",
        "pci",
        "infiniband",
        "perfquery-mlx5_0-1",
        "kmsg",
        "nvml",
        "amd-smi",
        "slurm",
        "dcgm",
    }


NOWHERE = ("/nonexistent/program",)
ABSENT: dict[str, Make] = {
    "host": lambda folder, _: Host(str(folder)),
    "disk": lambda folder, _: Disk(str(folder)),
    "pci": lambda folder, _: Pci(str(folder)),
    "infiniband": lambda folder, _: Infiniband(str(folder)),
    "perfquery": lambda _, __: Perfquery("mlx5_0/1", NOWHERE),
    "kmsg": lambda folder, _: Kmsg(path=str(folder / "kmsg")),
    "nvml": lambda _, __: Nvml(words=NOWHERE),
    "amd-smi": lambda _, __: AmdSmi(NOWHERE, NOWHERE),
    "slurm": lambda _, __: Slurm(NOWHERE),
    "dcgm": lambda _, __: dcgm("http://127.0.0.1:1/metrics"),
}


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_not_there_is_told_of(name: str, tmp_path: Path, stack: ExitStack) -> None:
    source = ABSENT[name](tmp_path, stack)
    reading = source.read(NOW)
    assert reading.points == () and reading.lines == ()
    assert reading.problem or name in {"disk", "pci", "infiniband"}  # a node without them has nothing wrong
    source.close()


NONSENSE = (
    "",
    "\n\n",
    "}{",
    "[1,2,{}]",
    '{"gpu_data": 7}',
    '{"error": 1, "devices": [{}]}',
    "NodeName=",
    "\x00\xff" * 500,
    "x" * 200_000,
)
PRINTING: dict[str, Callable[[tuple[str, ...]], Source]] = {
    "perfquery": lambda words: Perfquery("mlx5_0/1", words),
    "amd-smi": lambda words: AmdSmi(words, words),
    "slurm": Slurm,
    "nvml": lambda words: Nvml(words=words, patience_s=5.0),
}


@pytest.mark.parametrize("text", NONSENSE, ids=range(len(NONSENSE)))
@pytest.mark.parametrize("name", PRINTING)
def test_a_program_that_prints_nonsense_gives_no_points(name: str, text: str, tmp_path: Path) -> None:
    source = PRINTING[name](prints(tmp_path, text))
    reading = source.read(NOW)
    sound(reading)
    assert not reading.points
    source.close()


def test_files_of_nonsense_give_what_can_be_read(tmp_path: Path) -> None:
    root = tree(tmp_path, "node.tree")
    for file in sorted(tmp_path.rglob("*")):
        if file.is_file():
            file.write_bytes(b"\xff\x00 nonsense: -1 NaN 1e999\n")
    for source in (Host(root), Disk(root, statvfs=statvfs()), Pci(root), Infiniband(root)):
        sound(source.read(NOW))


def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    reading = Slurm(prints(tmp_path, "slurm_load_node error: Unable to contact slurm controller", 1)).read(NOW)
    assert "ended with 1" in reading.problem and "Unable to contact" in reading.problem


def test_a_program_that_hangs_is_given_up() -> None:
    source = Perfquery("mlx5_0/1", (sys.executable, "-c", "import time; print('x', flush=True); time.sleep(60)"))
    source._command.timeout_s = 0.5
    assert "has not answered in 0.5 s" in source.read(NOW).problem
    source.close()
