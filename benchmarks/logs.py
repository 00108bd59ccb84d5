"""Logs: the server's memory while 50 logs are followed and 1 GB is written; other calls while one job floods its output."""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.harness import Bar, alone, say
from benchmarks.measure import descendants, pss_mb, until
from benchmarks.ours import Server, server
from benchmarks.probe import apart, p99_ms
from penstock.base.errors import PenstockError
from penstock.client.client import Client

FOLLOWED = 50
TOTAL_BYTES = 1_000_000_000
LIMIT_MB = 200.0
LIMIT_MS = 50.0
CALLS = 100
LINE = "x" * 99  # and a newline


@dataclass
class Peak:
    """The largest PSS seen: of the server and its spawner, and of these with all supervisors and jobs."""

    server_mb: float = 0.0
    all_mb: float = 0.0
    stopped: threading.Event = field(default_factory=threading.Event)

    def watch(self, running: Server) -> None:
        while not self.stopped.wait(1.0):
            self.server_mb = max(self.server_mb, pss_mb(running.lean()))
            self.all_mb = max(self.all_mb, pss_mb(descendants(running.process.pid)))


@dataclass
class Followers:
    """Threads that follow a log each and count what comes."""

    received: list[int] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def follow(self, client: Client, name: str) -> None:
        index = len(self.received)
        self.received.append(0)
        thread = threading.Thread(target=self._read, args=(client, name, index), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _read(self, client: Client, name: str, index: int) -> None:
        try:
            with client.jobs.logs(name, follow=True) as stream:
                for chunk in stream:
                    self.received[index] += len(chunk)
        except (OSError, PenstockError) as failure:
            self.failures.append(f"{name}: {failure}")


@contextmanager
def watched(running: Server) -> Iterator[Peak]:
    peak = Peak()
    thread = threading.Thread(target=peak.watch, args=(running,), daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        peak.stopped.set()
        thread.join()


def many_logs(running: Server, client: Client) -> list[Bar]:
    """50 jobs, all running and all followed, then write their shares of 1 GB as fast as they can, all at once."""
    lines = TOTAL_BYTES // FOLLOWED // (len(LINE) + 1)
    go = running.folder.parent / "go"
    command = ["sh", "-c", f"while [ ! -e {go} ]; do sleep 0.3; done; yes {LINE} | head -n {lines}"]
    cpus = (os.cpu_count() or 1) / FOLLOWED
    spec = {"command": command, "resources": {"cpus": cpus, "memory": "16Mi"}}
    followers = Followers()
    with watched(running) as peak:
        for number in range(FOLLOWED):
            client.jobs.create(spec, name=f"log-{number}")
        until(
            lambda: len(client.jobs.page(limit=500, phase="Running").items) == FOLLOWED,
            f"{FOLLOWED} running jobs",
            timeout=120,
            every=0.2,
        )
        for number in range(FOLLOWED):
            followers.follow(client, f"log-{number}")
        go.touch()
        began = time.monotonic()
        until(lambda: not client.jobs.page(limit=1, phase="active").items, "1 GB of log", timeout=900, every=0.5)
        for thread in followers.threads:
            thread.join(120)
    took = time.monotonic() - began
    failed = [job for job in client.jobs.list(phase="finished") if job.phase != "Succeeded"]
    if failed or followers.failures:
        raise RuntimeError(f"{len(failed)} jobs failed; followers: {followers.failures[:3]}")
    note = (
        f"{TOTAL_BYTES / 1e9:.0f} GB written in {took:.0f} s, {sum(followers.received) / 1e9:.2f} GB delivered; "
        f"with all supervisors and jobs {peak.all_mb:.0f} MB; dstack 6,000"
    )
    return [Bar(f"memory with {FOLLOWED} followed logs, 1 GB written", peak.server_mb, LIMIT_MB, "MB PSS", note=note)]


def flood(running: Server, client: Client) -> list[Bar]:
    """One job writes without end as fast as it can, and is followed; what do others' calls take meanwhile?"""
    share = (os.cpu_count() or 1) / 2
    client.jobs.create({"command": ["yes", LINE], "resources": {"cpus": share}, "grace_period": "1s"}, name="flood")
    until(lambda: client.jobs.get("flood").phase == "Running", "the flooding job", timeout=60, every=0.1)
    followers = Followers()
    followers.follow(client, "flood")
    with watched(running) as peak:
        found = apart(running.folder, calls=CALLS)
    client.jobs.cancel("flood")
    client.jobs.wait("flood")
    rate = followers.received[0] / 1e6
    worst = max(found, key=lambda kind: p99_ms(found[kind]))
    medians = ", ".join(f"{kind} {statistics.median(values) * 1000:.1f}" for kind, values in found.items())
    note = f"worst of list, get, describe: {worst}; medians {medians} ms; {rate:.0f} MB followed"
    return [
        Bar("other calls' P99 while a job floods its log", p99_ms(found[worst]), LIMIT_MS, "ms", note=note),
        Bar("memory while a job floods its log", peak.server_mb, LIMIT_MB, "MB PSS"),
    ]


def measure() -> list[Bar]:
    bars: list[Bar] = []
    with server("logs") as running, running.client() as client:
        say("   50 followed logs")
        bars += many_logs(running, client)
        say("   one job that floods")
        bars += flood(running, client)
    return bars


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
