"""The PCI bus: how many accelerators it has, whatever their driver says, how wide their links are, and errors (AER)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from penstock.telemetry.sources.tree import Tree, counter, gauge
from penstock.telemetry.spec import Point, Reading

_DEVICES = "sys/bus/pci/devices"
_VENDORS = {"0x10de": "nvidia", "0x1002": "amd"}
_GPU = re.compile(r"0x(0300|0302|0380|1200)")  # PCI class codes: VGA, 3D, other display, processing accelerator
_LINKED = re.compile(r"0x(02|0108)")  # network, NVMe
_ERRORS = {
    "corrected": ("aer_dev_correctable", "TOTAL_ERR_COR"),
    "nonfatal": ("aer_dev_nonfatal", "TOTAL_ERR_NONFATAL"),
    "fatal": ("aer_dev_fatal", "TOTAL_ERR_FATAL"),
}
MAX_DEVICES = 128


class Pci:
    name = "pci"

    def __init__(self, root: str = "/", every_s: float = 60.0) -> None:
        self.tree = Tree(root)
        self.every_s = every_s

    def read(self, now: float) -> Reading:
        found = gpus(self.tree)
        points: list[Point] = []
        for address in self.tree.names(_DEVICES):
            kind = self.tree.text(f"{_DEVICES}/{address}/class")
            if (address in found or _LINKED.match(kind)) and len(points) < 8 * MAX_DEVICES:
                word = "gpu" if address in found else _word(kind)
                points += self._link(f"{_DEVICES}/{address}", (("address", address), ("kind", word)))
        for vendor, count in sorted(Counter(found.values()).items()):
            points += gauge("penstock_node_pci_gpus", float(count), ("vendor", vendor))
        return Reading(self.name, now, tuple(points))

    def close(self) -> None:
        return

    def _link(self, base: str, labels: tuple[tuple[str, str], ...]) -> Iterator[Point]:
        for name, file in (("width", "current_link_width"), ("width_max", "max_link_width")):
            lanes = self.tree.number(f"{base}/{file}")
            if lanes is not None and 0 < lanes <= 32:  # 255: the device does not answer
                yield from gauge(f"penstock_pcie_link_{name}", lanes, *labels)
        for name, file in (("speed", "current_link_speed"), ("speed_max", "max_link_speed")):
            transfers = self.tree.number(f"{base}/{file}")  # "32.0 GT/s PCIe"
            if transfers:
                yield from gauge(f"penstock_pcie_link_{name}_transfers_per_second", transfers * 1e9, *labels)
        for kind, (file, total) in _ERRORS.items():
            for line in self.tree.lines(f"{base}/{file}"):
                key, _, value = line.rpartition(" ")
                if key == total and value.isdecimal():
                    yield from counter("penstock_pcie_errors_total", float(value), ("severity", kind), *labels)


def gpus(tree: Tree) -> dict[str, str]:
    """Whose each of the bus' GPUs is, by its address."""
    found: dict[str, str] = {}
    for address in tree.names(_DEVICES):
        vendor = _VENDORS.get(tree.text(f"{_DEVICES}/{address}/vendor"))
        if vendor is not None and _GPU.match(tree.text(f"{_DEVICES}/{address}/class")):
            found[address] = vendor
    return found


def _word(kind: str) -> str:
    return "nvme" if kind.startswith("0x0108") else "network"
