"""The agent of a node with eight GPUs against a real server: its CPU and memory, its child's with it, and how soon a Xid is told.

    .venv/bin/python -m benchmarks.telemetry_agent

Twice: once it reads everything itself (a recorded tree of /proc and /sys, NVML's answers of a recorded GPU eight times over), once it scrapes
the pages of node_exporter and dcgm-exporter that stand for them. NVML itself is not here: its child prints what was recorded, so what a
driver's calls cost is not in the figure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.harness import Bar, alone, percentile, say, spread
from benchmarks.measure import descendants, process_cpu, resident_mb
from benchmarks.ours import Server, server
from penstock.client.client import Client
from tests.telemetry.sources.planted import nvml_child, page, recorded, tree

GPUS = 8
WARM_S, WINDOW_S = 12.0, 40.0
LINES = 20
CPU_LIMIT, MEMORY_LIMIT_MB, TOLD_LIMIT_S = 1.0, 60.0, 1.0


def eight_gpus() -> str:
    answer = json.loads(recorded("nvml_busy.json"))
    one = answer["devices"][0]
    links = [
        {"link": n, "up": 1, "NVML_FI_DEV_NVLINK_ERROR_DL_CRC": 0, "NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY": 0}
        for n in range(18)
    ]
    devices = [
        {**one, "index": n, "uuid": f"GPU-{n}", "pci": f"00000000:{n + 16:02X}:00.0", "links": links}
        for n in range(GPUS)
    ]
    return json.dumps({**answer, "count": GPUS, "devices": devices})


def pages() -> tuple[str, str]:
    """Of a node_exporter on 64 CPUs, of a dcgm-exporter with eight GPUs."""
    node, dcgm = recorded("node_exporter.txt"), recorded("dcgm.txt")
    cpus = [line for line in node.split("\n") if line.startswith('node_cpu_seconds_total{cpu="0"')]
    more = "\n".join(line.replace('cpu="0"', f'cpu="{n}"') for n in range(2, 64) for line in cpus)
    gpus = [line for line in dcgm.split("\n") if 'gpu="1"' in line]
    others = "\n".join(
        line.replace('gpu="1"', f'gpu="{n}"').replace("GPU-00000001", f"GPU-{n:08}")
        for n in range(2, GPUS)
        for line in gpus
    )
    return f"{node}{more}\n", f"{dcgm}{others}\n"


@contextmanager
def running(where: Server, folder: Path, **flags: str) -> Iterator[int]:
    with where.client() as client:
        node = next(iter(client.nodes.list()))["name"]
        token = client.tokens.create(node=node, name="agent")["token"]
        url = client.url
    os.mkfifo(folder / "kmsg")
    task = {
        "node": node,
        "url": url,
        "token": token,
        "folder": str(folder),
        "root": tree(folder / "node", "node.tree"),
        "nvml": nvml_child(folder, eight_gpus()),
    }
    with subprocess.Popen([sys.executable, "-m", "benchmarks.telemetry_agent_run"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(task | flags).encode() + b"\n")
        process.stdin.flush()
        try:
            yield process.pid
        finally:
            process.kill()


def used(pid: int) -> float:
    return sum(process_cpu(one) for one in descendants(pid))


def findings(client: Client) -> float:
    """How many the server has counted."""
    text = client.transport.request("GET", "/metrics").body.decode()
    (line,) = [line for line in text.splitlines() if line.startswith("penstock_telemetry_findings_total")]
    return float(line.split()[-1])


def told(where: Server, folder: Path) -> list[float]:
    """Seconds from a line of the kernel's log until the server has counted the finding."""
    waits = []
    with (folder / "kmsg").open("w") as log, where.client() as client:
        for number in range(LINES):
            before, began = findings(client), time.perf_counter()
            log.write(f"3,{number + 1},{number},-;NVRM: Xid (PCI:0000:1b:00): {100 + number}, pid=1, made up\n")
            log.flush()
            while findings(client) == before:
                if time.perf_counter() - began > 30:
                    raise RuntimeError("a Xid was not told in 30 s")
                time.sleep(0.002)
            waits.append(time.perf_counter() - began)
            time.sleep(0.1)
    return waits


def look(where: Server, name: str, *, lines: bool, **flags: str) -> list[Bar]:
    with tempfile.TemporaryDirectory() as folder, running(where, Path(folder), **flags) as pid:
        time.sleep(WARM_S)
        before, began = used(pid), time.perf_counter()
        time.sleep(WINDOW_S)
        share = 100 * (used(pid) - before) / (time.perf_counter() - began)
        memory = {one: resident_mb(one) for one in descendants(pid)}
        say(f"   {name}: {share:.2f}% of a core, {sum(memory.values()):.1f} MB in {len(memory)} processes")
        bars = [
            Bar(f"agent, {GPUS} GPUs, {name}: CPU", share, CPU_LIMIT, "%", note=f"of one core, over {WINDOW_S:g} s"),
            Bar(
                f"agent, {GPUS} GPUs, {name}: RSS",
                sum(memory.values()),
                MEMORY_LIMIT_MB,
                "MB",
                note=f"{len(memory)} processes",
            ),
        ]
        if lines:
            waits = told(where, Path(folder))
            bars.append(
                Bar(
                    "agent: Xid line -> server, P99",
                    percentile(waits, 0.99),
                    TOLD_LIMIT_S,
                    "s",
                    note=spread(waits, " s"),
                )
            )
        return bars


def measure() -> list[Bar]:
    with ExitStack() as stack:
        where = stack.enter_context(server("agent", "--simulate", f"1x{GPUS}"))
        node, dcgm = (stack.enter_context(page(text.encode())) for text in pages())
        return [
            *look(where, "reads all itself", lines=True, node_exporter="off", dcgm="off"),
            *look(where, "scrapes two exporters", lines=False, node_exporter=node, dcgm=dcgm),
        ]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
