"""Latencies of API calls, measured from a process of its own so that nothing else in it delays them.

``python -m benchmarks.probe --data-dir D --calls N`` prints JSON: seconds of each list, get and describe.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.harness import percentile
from penstock.client.client import Client


def probe(client: Client, *, calls: int, seed: int = 7) -> dict[str, list[float]]:
    """``calls`` of each kind, mixed, over one kept connection. Describe is what the CLI's `describe` asks for."""
    chance = random.Random(seed)
    names = [job.name for job in itertools.islice(client.jobs.list(), 2000)]
    lists: list[Mapping[str, str]] = [{}, {"phase": "active"}, {"phase": "finished"}, {"q": "r1"}]

    def describe() -> None:
        name = chance.choice(names)
        client.jobs.get(name)
        client.jobs.attempts(name)
        client.jobs.why(name)
        client.jobs.events(name)

    kinds: dict[str, Callable[[], object]] = {
        "list": lambda: client.jobs.page(limit=100, **chance.choice(lists)),
        "get": lambda: client.jobs.get(chance.choice(names)),
        "describe": describe,
    }
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(calls):
        for kind, call in kinds.items():
            began = time.perf_counter()
            call()
            found[kind].append(time.perf_counter() - began)
    return found


def apart(folder: Path, *, calls: int) -> dict[str, list[float]]:
    """The same, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.probe", "--data-dir", str(folder), "--calls", str(calls)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"probe: {done.stderr.strip()[-300:]}")
    return {kind: [float(value) for value in values] for kind, values in json.loads(done.stdout).items()}


def p99_ms(values: list[float]) -> float:
    return percentile(values, 0.99) * 1000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--calls", type=int, default=300)
    arguments = parser.parse_args()
    with Client(data_dir=arguments.data_dir) as client:
        print(json.dumps(probe(client, calls=arguments.calls)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
