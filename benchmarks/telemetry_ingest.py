"""2,000 agents with eight GPUs each push every ten seconds to a real server: its CPU and memory alone.

    .venv/bin/python -m benchmarks.telemetry_ingest

The agents are one process, which is not counted, with a connection and a token of its node for each, as real ones have. A push is
a row of 374 numbers, 166 of which the server keeps (a real agent sends no others), and of every fiftieth node a finding. The first
round brings the names of the series and is not measured, nor is one after it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from benchmarks.harness import Bar, alone, percentile, say
from benchmarks.measure import process_cpu, resident_mb
from benchmarks.ours import server
from penstock.telemetry import push
from penstock.telemetry.kept import KEPT
from penstock.telemetry.push import Push, Row, Series
from penstock.telemetry.spec import Finding, Labels, Severity

AGENTS, GPUS, EVERY_S = 2000, 8, 10.0
ROUNDS = 3  # that are measured
OTHERS = 26  # of a GPU's series, not kept
CPU_LIMIT, MEMORY_LIMIT_MB = 30.0, 300.0


def series_of(node: int) -> tuple[Series, ...]:
    """Everything that is kept, of eight GPUs, two network devices and four InfiniBand ports, and what is not."""
    found = []
    for one in KEPT:
        name, _, rest = one.name.partition("{")
        labels = [tuple(each.split("=")) for each in rest.rstrip("}").replace('"', "").split(",") if each]
        found += [_series(name, [*labels, *device]) for device in _devices(name, node)]
    for gpu in _devices("penstock_gpu_", node):
        found += [_series(f"penstock_gpu_other_{number}_total", gpu) for number in range(OTHERS)]
    return tuple(found)


def _series(name: str, labels: list[Any]) -> Series:
    said: Labels = tuple(sorted(labels))
    return Series(name, said, "counter" if name.endswith("_total") else "gauge")


def _devices(name: str, node: int) -> list[list[tuple[str, str]]]:
    if name.startswith("penstock_gpu_"):
        return [
            [("gpu", str(gpu)), ("uuid", f"GPU-{node:08x}-{gpu:04x}-4000-8000-000000000000")] for gpu in range(GPUS)
        ]
    if "_network_" in name or "_disk_" in name:
        return [[("device", f"{name[14]}{number}")] for number in range(2)]
    if name.startswith("penstock_infiniband_"):
        return [[("device", f"mlx5_{number}/1")] for number in range(4)]
    return [[]]


@dataclass(slots=True)
class Agent:
    number: int
    node: str
    token: str
    series: tuple[Series, ...] = ()
    sequence: int = 0
    reader: asyncio.StreamReader | None = None
    writer: asyncio.StreamWriter | None = None
    reconnects: int = 0

    def body(self, named: bool) -> bytes:
        self.sequence += 1
        now = time.time()
        values = tuple(
            40.0 + self.number % 30 + i % 7 + self.sequence * (one.type == "counter")
            for i, one in enumerate(self.series)
        )
        sent = Push(self.node, "boot", "run", self.sequence, now, push.digest(self.series), rows=(Row(now, values),))
        if self.number % 50 == 0:
            sent = replace(sent, findings=(_finding(self.node, now),))
        return push.encode(replace(sent, series=self.series) if named else sent)

    async def send(self, host: str, port: int, named: bool) -> float:
        """Seconds until it was answered."""
        body = self.body(named)
        began = time.perf_counter()
        try:
            found = await self._asked(host, port, body)
        except (OSError, asyncio.IncompleteReadError):  # the server has closed what was idle: once more, as agents do
            if self.writer is None:
                raise
            self.writer.close()
            self.reader = self.writer = None
            self.reconnects += 1
            found = await self._asked(host, port, body)
        if found.get("sequence") != self.sequence:
            raise RuntimeError(f"{self.node}: {found}")
        return time.perf_counter() - began

    async def _asked(self, host: str, port: int, body: bytes) -> dict[str, Any]:
        if self.reader is None or self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(host, port)
        head = f"POST /api/v1/telemetry/push HTTP/1.1\r\nhost: {host}:{port}\r\nauthorization: Bearer {self.token}\r\n"
        self.writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found: dict[str, Any] = json.loads(await self.reader.readexactly(length))
        return found


def _finding(node: str, now: float) -> Finding:
    return Finding("GpuThermalThrottle", node, now, now, "a GPU is too hot", Severity.WARNING, "GPU-0", source="nvml")


@dataclass(slots=True)
class Fleet:
    host: str
    port: int
    agents: list[Agent]
    waits: list[float] = field(default_factory=list)

    async def round(self, named: bool = False) -> None:
        """Everybody once, spread over the ten seconds as agents that began at any time are."""
        begin = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as group:
            for number, agent in enumerate(self.agents):
                due = begin + EVERY_S * number / len(self.agents)
                await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
                group.create_task(self._one(agent, named))
        await asyncio.sleep(max(0.0, begin + EVERY_S - asyncio.get_running_loop().time()))

    async def _one(self, agent: Agent, named: bool) -> None:
        self.waits.append(await agent.send(self.host, self.port, named))


async def play(url: str, tokens: dict[str, str], pid: int) -> dict[str, float]:
    where = urlsplit(url)
    agents = [Agent(number, node, token) for number, (node, token) in enumerate(tokens.items())]
    for agent in agents:
        agent.series = series_of(agent.number)
    fleet = Fleet(where.hostname or "", where.port or 0, agents)
    await fleet.round(named=True)
    await fleet.round()
    fleet.waits.clear()
    before, began = process_cpu(pid), time.perf_counter()
    for _ in range(ROUNDS):
        await fleet.round()
    spent, took = process_cpu(pid) - before, time.perf_counter() - began
    return {
        "cpu": 100 * spent / took,
        "p99_ms": 1e3 * percentile(fleet.waits, 0.99),
        "pushes": len(fleet.waits) / took,
        "reconnects": sum(agent.reconnects for agent in agents),
    }


def measure() -> list[Bar]:
    with server("ingest", "--simulate", f"{AGENTS}x{GPUS}") as running, running.client() as client:
        pid = running.process.pid
        began = time.perf_counter()
        names = [node["name"] for node in client.nodes.list()]
        tokens = {name: client.tokens.create(node=name, name="agent")["token"] for name in names[:AGENTS]}
        say(f"   {len(tokens)} tokens after {time.perf_counter() - began:.0f} s, {resident_mb(pid):.0f} MB")
        task = json.dumps(
            {"url": json.loads((running.folder / "server.json").read_text())["url"], "tokens": tokens, "pid": pid}
        )
        words = [sys.executable, "-m", "benchmarks.telemetry_ingest", "--agents"]
        done = subprocess.run(words, input=task, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            raise RuntimeError(
                f"the agents ended with {done.returncode}: {done.stderr[-500:]}; server: {running.log()}"
            )
        found = json.loads(done.stdout)
        memory = resident_mb(pid)
    note = f"{found['pushes']:.0f} pushes a second, P99 {found['p99_ms']:.0f} ms; {len(series_of(0))} numbers each; {found['reconnects']:.0f} reconnects"
    what = f"{AGENTS} agents x {GPUS} GPUs each {EVERY_S:g} s"
    return [
        Bar(f"{what}: CPU", found["cpu"], CPU_LIMIT, "%", note=note),
        Bar(f"{what}: RSS", memory, MEMORY_LIMIT_MB, "MB"),
    ]


def _agents() -> int:
    task = json.loads(sys.stdin.read())
    print(json.dumps(asyncio.run(play(task["url"], task["tokens"], task["pid"]))))
    return 0


if __name__ == "__main__":
    sys.exit(_agents() if "--agents" in sys.argv else alone(measure, __doc__))
