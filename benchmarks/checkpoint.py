"""What a checkpoint costs a training, against what the same bytes cost at least, and against others' ways to save.

Each method saves the same state (1 GiB, 96 equal tensors, as parameters and two moments would be) in turns, round by
round and in another order in each (drawn, the same in every run), so that the machine's noise falls on all. Alone, and sharded over two ranks (gloo, row shards as FSDP2 makes
them). "Durable" is until all files and folders are synced; ours is then verified too: every chunk's hash is in the
manifest. The floor is the faster of a buffered and a direct write of the same bytes with fsync, in the same round.

    .venv/bin/python -m benchmarks.checkpoint [--json]
    .venv/bin/python -m benchmarks.checkpoint --table [--rounds 5] [--gib 1.0]     # every method, for people

The faults and kills come from `make soak`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import soak_report
from benchmarks.harness import Bar, say, show, spread

ROOT = Path(__file__).resolve().parent.parent
ROUNDS, GIB = 7, 1.0
DIRECT, BUFFERED, OURS = "direct write", "buffered write", "penstock"
Samples = dict[str, list[dict[str, float]]]


def ratios(samples: Samples, method: str, what: str, floor: Callable[[Samples, int], float]) -> list[float]:
    """One ratio a round: a slow moment of the machine weighs on both of its sides."""
    return [row[what] / floor(samples, index) for index, row in enumerate(samples[method])]


def copy_floor(samples: Samples, index: int) -> float:
    return samples["memcpy"][index]["stall"]


def write_floor(samples: Samples, index: int) -> float:
    return min(samples[DIRECT][index]["durable"], samples[BUFFERED][index]["durable"])


def read_floor(samples: Samples, index: int) -> float:
    return min(samples["direct read"][index]["stall"], samples["buffered read"][index]["stall"])


def measured(ranks: int, rounds: int, gib: float) -> dict[str, Any]:
    """Runs the rounds in processes of their own."""
    folder = tempfile.mkdtemp(prefix="checkpoint-", dir=_build())
    out = os.path.join(folder, "out.json")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*launcher, "-m", "benchmarks.checkpoint_rounds", folder, out, str(rounds), str(gib)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=1800
        )
        if done.returncode != 0:
            raise RuntimeError(done.stderr[-2000:])
        found: dict[str, Any] = json.loads(Path(out).read_text())
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _build() -> str:
    """On the disk of this clone: a temporary folder may be memory."""
    os.makedirs(ROOT / "build", exist_ok=True)
    return str(ROOT / "build")


def measure(rounds: int = ROUNDS, gib: float = GIB) -> list[Bar]:
    bars = []
    for ranks, word, most in ((1, "alone", 1.3), (2, "2 ranks", 1.5)):
        found = measured(ranks, rounds, gib)
        samples: Samples = found["samples"]
        stall = ratios(samples, OURS, "stall", copy_floor)
        durable = ratios(samples, OURS, "durable", write_floor)
        load = ratios(samples, "penstock load", "stall", read_floor)
        bars += [
            _bar(f"checkpoint: stall / memcpy, {word}", stall, most, _peers(samples, "stall", copy_floor)),
            _bar(
                f"checkpoint: durable and verified / write, {word}",
                durable,
                1.3,
                _peers(samples, "durable", write_floor),
            ),
            _bar(f"checkpoint: load and verify / read, {word}", load, 1.5, ""),
        ]
        if ranks == 1:
            bars.append(_bar("checkpoint: step time while a save drains", found["slow_down"], 1.15, found["steps"]))
    return [*bars, *_soak()]


def _bar(name: str, values: Sequence[float], limit: float, note: str) -> Bar:
    return Bar(name, statistics.median(values), limit, "x", note=f"{spread(values)}; {note}".rstrip("; "))


def _peers(samples: Samples, what: str, floor: Callable[[Samples, int], float]) -> str:
    known = {"memcpy", DIRECT, BUFFERED, OURS, "penstock load", "direct read", "buffered read"}
    medians = [(name, statistics.median(ratios(samples, name, what, floor))) for name in samples if name not in known]
    return ", ".join(f"{name} {value:.1f}" for name, value in medians)


def _soak() -> list[Bar]:
    report, why = soak_report.read(ROOT)
    found = report.measured if report is not None and not why else {}

    def one(name: str, key: str, limit: float, least: bool = False) -> Bar:
        value = float(found[key]) if key in found else None
        note = why or ("" if value is not None else f"the soak recorded no {key}")
        return Bar(name, value, limit, "", "at least" if least else "at most", note)

    return [
        one("checkpoint: faults inflicted", "checkpoint_faults", 1000, least=True),
        one("checkpoint: faults not found", "checkpoint_faults_missed", 0),
        one("checkpoint: kills of saver and pruner", "checkpoint_kills", 200, least=True),
        one("checkpoint: loads that failed after a kill", "checkpoint_kills_failed_loads", 0),
        one("checkpoint: committed ones lost by a kill", "checkpoint_kills_committed_lost", 0),
    ]


def table(rounds: int, gib: float) -> None:
    """Every method's medians."""
    for ranks in (1, 2):
        found = measured(ranks, rounds, gib)
        samples: Samples = found["samples"]
        sys.stdout.write(f"{ranks} rank(s), {gib:g} GiB in all, {rounds} rounds: medians of seconds and of ratios\n")
        for name, rows in samples.items():
            stall = statistics.median(row["stall"] for row in rows)
            durable = statistics.median(row["durable"] for row in rows)
            copies = statistics.median(ratios(samples, name, "stall", copy_floor))
            writes = statistics.median(ratios(samples, name, "durable", write_floor))
            sys.stdout.write(
                f"  {name:20s} stall {stall:.3f} s = {copies:.2f} x memcpy; durable {durable:.3f} s = {writes:.2f} x\n"
            )
        sys.stdout.write(f"  step time while a save drains: {spread(found['slow_down'], ' x')}; {found['steps']}\n")


def main() -> int:
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument("--table", action="store_true", help="every method's medians, for people")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--gib", type=float, default=GIB)
    arguments = parser.parse_args()
    if arguments.table:
        table(arguments.rounds, arguments.gib)
        return 0
    say("checkpoint: two runs of some minutes")
    return show(measure(arguments.rounds, arguments.gib), as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
