"""Which sources a node has: what runs there already is asked, and not read a second time."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from penstock.telemetry.sources.amd_smi import AmdSmi
from penstock.telemetry.sources.clock import Clock
from penstock.telemetry.sources.disk import Disk, Statvfs
from penstock.telemetry.sources.host import Host
from penstock.telemetry.sources.infiniband import Infiniband, Perfquery
from penstock.telemetry.sources.kmsg import Kmsg
from penstock.telemetry.sources.nvml import Nvml
from penstock.telemetry.sources.pci import Pci, gpus
from penstock.telemetry.sources.slurm import Slurm
from penstock.telemetry.sources.tree import Tree
from penstock.telemetry.spec import Source

AUTO, OFF = "auto", "off"
NODE_EXPORTER, DCGM = "http://127.0.0.1:9100/metrics", "http://127.0.0.1:9400/metrics"
_CONNECT_S = 0.3


@dataclass(frozen=True, slots=True)
class Wanted:
    """``node_exporter`` and ``dcgm``: a page's URL, "auto" (where one listens at its usual port) or "off"."""

    node: str
    state_dir: str  # "": what was read is not remembered
    boot_id: str
    root: str = "/"
    node_exporter: str = AUTO
    dcgm: str = AUTO
    envoy: str = ""
    slurm: bool = False
    perfquery: bool = False


def choose(wanted: Wanted) -> list[Source]:
    tree = Tree(wanted.root)
    found: list[Source] = [
        Kmsg(
            os.path.join(wanted.state_dir, "kmsg.json") if wanted.state_dir else None,
            os.path.join(wanted.root, "dev/kmsg"),
            wanted.boot_id,
        ),
        Clock(),
        Pci(wanted.root),
    ]
    found += _pages(wanted)
    names = {source.name for source in found}
    if "node_exporter" not in names:
        found += [Host(wanted.root), Disk(wanted.root, statvfs=_below(wanted.root))]
        found += [Infiniband(wanted.root)] if tree.names("sys/class/infiniband") else []
    on_bus = set(gpus(tree).values())
    if "dcgm" not in names and (tree.has("proc/driver/nvidia") or tree.has("dev/nvidiactl") or "nvidia" in on_bus):
        found.append(Nvml())
    if "amd" in on_bus and shutil.which("amd-smi"):
        found.append(AmdSmi())
    if wanted.slurm:
        found.append(Slurm.of(wanted.node))
    if wanted.perfquery:
        found += _perfqueries(tree)
    return found


def _pages(wanted: Wanted) -> Sequence[Source]:
    urls = {
        "node_exporter": _url(wanted.node_exporter, NODE_EXPORTER),
        "dcgm": _url(wanted.dcgm, DCGM),
        "envoy": wanted.envoy,
    }
    if not any(urls.values()):
        return ()
    from penstock.telemetry.sources import exporters  # noqa: PLC0415 - see tools/allowed.toml

    makers = {"node_exporter": exporters.node_exporter, "dcgm": exporters.dcgm, "envoy": exporters.envoy}
    return [makers[name](url) for name, url in urls.items() if url]


def _url(wanted: str, usual: str) -> str:
    if wanted == OFF:
        return ""
    if wanted != AUTO:
        return wanted
    where = urlsplit(usual)
    try:
        with socket.create_connection((where.hostname or "", where.port or 80), _CONNECT_S):
            return usual
    except OSError:
        return ""


def _perfqueries(tree: Tree) -> list[Source]:
    """One for each InfiniBand port that sysfs has no counters of."""
    ports = [
        (device, port)
        for device in tree.names("sys/class/infiniband")
        for port in tree.names(f"sys/class/infiniband/{device}/ports")
        if not tree.names(f"sys/class/infiniband/{device}/ports/{port}/counters")
    ]
    return [Perfquery(f"{device}/{port}", ("perfquery", "-x", "-C", device, "-P", port)) for device, port in ports[:16]]


def _below(root: str) -> Statvfs:
    """In a container that has the node's files below a folder."""
    if root == "/":
        return os.statvfs

    def ask(path: str) -> os.statvfs_result:
        return os.statvfs(root.rstrip("/") + path)

    return ask
