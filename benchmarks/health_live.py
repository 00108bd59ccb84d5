"""From a line of the kernel's log to a job that runs elsewhere: a server of three nodes, a real agent, a real /dev/kmsg."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import Bar, spread
from benchmarks.measure import until
from benchmarks.ours import PENSTOCK, Server, server
from penstock.base.quantities import parse_time
from penstock.client.client import Client

LIMIT_S = 5.0
ROUNDS = 6
KMSG = "/dev/kmsg"
LINE = "NVRM: Xid (PCI:0000:fe:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"
# As the driver's own line it ends: one that does not may be gone on with, and no reader is shown it before the next one comes.
NAME = "from kernel's line to a job that runs elsewhere"
SCRIPT = "import time, penstock\nfor step in range(1, 10_000):\n    time.sleep(0.1)\n    penstock.report(step=step)\n"


def line_to_restart() -> Bar:
    """The slowest of a few rounds; each drains the node that the job then runs on, and lets it back."""
    if not os.access(KMSG, os.W_OK):
        return Bar(NAME, None, LIMIT_S, "s", note=f"{KMSG} cannot be written: run it as root")
    with server("health", "--local-nodes", "3") as house:
        client = house.client()
        client.jobs.create({"command": [sys.executable, "-c", SCRIPT], "resources": {"cpus": 0.5}}, name="train")
        until(lambda: _node(client) is not None, "the job to run", timeout=60, every=0.2)
        _read_up(house)
        waits = [_round(house, client) for _ in range(ROUNDS)]
    drained, running = [one for one, _ in waits], [two for _, two in waits]
    note = f"a real agent; drained {spread(drained, ' s')}; running again {spread(running, ' s')}"
    return Bar(NAME, max(running), LIMIT_S, "s", note=note)


def _round(house: Server, client: Client) -> tuple[float, float]:
    node = _node(client) or ""
    with _agent(house, client, node):
        before = len(list(client.jobs.attempts("train")))
        began = time.time()
        with open(KMSG, "w", encoding="ascii") as log:
            log.write(LINE)
        until(lambda: _moved(client, node, before), "the restart", timeout=30, every=0.2)
    drained = _at(client, "Node", "Drained", began)
    running = _at(client, "Job", "Started", began)
    client.health_say("clear", {"node": node})
    client.nodes.uncordon(node)
    return drained - began, running - began


def _read_up(house: Server) -> None:
    """Past what the kernel's log holds of earlier rounds: what an agent finds at its start is acted on too."""
    folder = house.folder / "agent"
    words = [PENSTOCK, "agent", "--dry-run", "--node", "nobody", "--state-dir", str(folder), "--listen", "off"]
    process = subprocess.Popen(words, env=house.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(
            lambda: folder.is_dir() and any(one.is_file() and "kmsg" in one.name for one in folder.iterdir()),
            "the cursor",
            timeout=30,
        )
        time.sleep(1.0)
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def _agent(house: Server, client: Client, node: str) -> Iterator[None]:
    """``penstock agent`` as that node, heard by the server."""
    token = house.folder / f"{node}.token"
    token.write_text(client.tokens.create(name="agent", node=node)["token"])
    words = [
        PENSTOCK,
        "agent",
        "--node",
        node,
        "--token-file",
        str(token),
        "--state-dir",
        str(house.folder / "agent"),
    ]
    with Path(house.folder, "agent.log").open("ab") as log:
        process = subprocess.Popen([*words, "--listen", "127.0.0.1:0"], env=house.environment, stdout=log, stderr=log)
        try:
            until(lambda: client.nodes.telemetry(node, 1.0)["agent"] is not None, "the agent", timeout=30, every=0.2)
            time.sleep(3.0)  # it is no part of the way that it starts
            yield
        finally:
            process.terminate()
            process.wait(20)


def _moved(client: Client, node: str, before: int) -> bool:
    return len(client.jobs.attempts("train")) > before and _node(client) not in {None, node}


def _node(client: Client) -> str | None:
    """Where the job runs."""
    job = client.jobs.get("train")
    nodes = job["status"]["nodes"] if job.phase == "Running" else []
    return str(nodes[0]) if nodes else None


def _at(client: Client, kind: str, reason: str, since: float) -> float:
    times = [parse_time(one["at"]) for one in client.events.newest(50, kind=kind, reason=reason)]
    return min(at for at in times if at >= since)


if __name__ == "__main__":
    bar = line_to_restart()
    print(bar.line(), bar.note)
