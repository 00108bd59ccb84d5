"""``python -m penstock.capacity.child FOLDER``: runs one replay in a process of its own, apart from the server.

Reads ``task.json`` there, says how far it is in lines of JSON on standard output, writes ``result.json``. It is nice, has
a bound on memory and CPU time, and is killed with the server.
"""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from penstock.base.errors import InvalidInput, PenstockError
from penstock.capacity.asked import MOST_JOBS
from penstock.capacity.scenario import Scenario, Source, replayed
from penstock.capacity.synth import CLUSTERS, FIELDS, synthesize
from penstock.capacity.traces import NothingToReplay, Selection, opened
from penstock.engines.local.kernel import die_with, name_process

NICE = 10
MEMORY_BYTES = 2 << 30
CPU_S = 900
SAMPLES = 240  # a series has up to twice as many points
HISTORY = "history.csv"


def main(folder: str) -> int:
    task = json.loads(Path(folder, "task.json").read_text())
    _confine(int(task["parent"]))
    try:
        result = run(Path(folder), task, _say)
    except PenstockError as error:
        _say({"error": error.to_dict()})
        return 1
    except MemoryError:
        too_much = f"it needs more than {MEMORY_BYTES >> 30} GiB: ask for fewer jobs"
        _say({"error": InvalidInput(too_much).to_dict()})
        return 1
    staged = Path(folder, "result.json.new")
    staged.write_text(json.dumps(result))
    staged.replace(Path(folder, "result.json"))
    return 0


def run(folder: Path, task: Mapping[str, Any], say: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """Each scenario's answer, with its series."""
    source, total = _source(folder, task)
    found = []
    for number, values in enumerate(task["scenarios"]):
        said = time.monotonic()
        say({"scenario": number, "ended": 0, "of": total})

        def progress(ended: int, number: int = number) -> None:
            nonlocal said
            if time.monotonic() - said >= 0.25:
                said = time.monotonic()
                say({"scenario": number, "ended": ended, "of": total})

        try:
            answer = replayed(Scenario(**values), source, time.perf_counter, progress=progress, samples=SAMPLES)
        except NothingToReplay as nothing:
            raise InvalidInput(f"{_where(task)}: {nothing}", details=nothing.details, hint=nothing.hint) from nothing
        if not answer["jobs"]:
            raise InvalidInput(f"{_where(task)}: {answer['unplaced']} could never start")
        found.append(answer)
    return {"scenarios": found}


def _where(task: Mapping[str, Any]) -> str:
    what = {"own": "this server's history", "synth": "that cluster"}.get(task["source"]["kind"], "that trace")
    return f"there is no job to replay in {what}"


def _source(folder: Path, task: Mapping[str, Any]) -> tuple[Source, int]:
    """Where the jobs are, and how many at the most."""
    asked = task["source"]
    if asked["kind"] == "own":
        return Source(str(folder / HISTORY)), int(task["rows"])
    if asked["kind"] == "trace":
        with opened(task["trace"]) as text:
            rows = sum(1 for _ in islice(text, MOST_JOBS + 1)) - 1
        select = Selection(cluster=asked["cluster"], first=asked["jobs"])
        return Source(task["trace"], asked["preset"], select), min(rows, asked["jobs"])
    if asked["cluster"] not in CLUSTERS:
        raise InvalidInput(f"source.cluster: {asked['cluster']!r} is none of {', '.join(CLUSTERS)}")
    path = folder / "synth.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(synthesize(asked["cluster"], asked["jobs"], random.Random(asked["seed"])))
    return Source(str(path)), asked["jobs"]


def _confine(parent: int) -> None:
    os.nice(NICE)
    name_process("penstock-replay")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    die_with(parent)


def _say(what: Mapping[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
