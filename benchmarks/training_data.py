"""A training's data through kills and other numbers of ranks; a resumed training beside an uninterrupted one; the
loader's speed beside a plain read of the same bytes.

Kills: real processes under torchrun, SIGKILL at random moments, in turns of all processes at once and of one rank (torchrun
then ends the others), also while they start. Each rank writes down and syncs which samples it trained on, as the tokens
themselves say. What counts is the lineage of committed state: of each run, the steps up to where the next one began.

    .venv/bin/python -m benchmarks.training_data [--json]
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Bar, alone, say, spread
from benchmarks.training_data_run import BATCH, BLOCK
from penstock.worker.data.loader import Options, TokenLoader
from penstock.worker.data.prepare import Options as PrepareOptions
from penstock.worker.data.prepare import prepare

ROOT = Path(__file__).resolve().parent.parent
KILLS, SAMPLES, STEPS = 20, 2003, 430  # more than five epochs, none of which ends with a batch
LOSSES, RESUMED_AT = 160, 80


@contextmanager
def scratch() -> Iterator[Path]:
    (ROOT / "build").mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="data-", dir=ROOT / "build"))  # on a disk: a temporary folder may be memory
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def torchrun(ranks: int, *words: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*launcher, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


# --------------------------------------------------------------------------------------------------------------- kills


@dataclass
class Told:
    """What came of the kills."""

    kills: int = 0
    resized: int = 0  # runs on another number of ranks than the one before
    rolled_back: int = 0  # steps that were trained on and not committed
    missed: int = 0
    doubled: int = 0
    disordered: int = 0  # steps whose samples are not those of an uninterrupted training
    worlds: list[int] = field(default_factory=list)


def killed_training(kills: int = KILLS, steps: int = STEPS, seed: int | None = None) -> Told:
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    say(f"training_data: {kills} kills, seed {seed}")
    chance = random.Random(seed)
    with scratch() as folder:
        data = numbered(folder)
        records = folder / "records"
        records.mkdir()
        told = Told()
        for life in range(kills + 1):
            world = chance.randint(1, 4)
            told.resized += bool(told.worlds) and told.worlds[-1] != world
            told.worlds.append(world)
            words = (data, str(folder / "checkpoints"), str(records), str(life), str(steps))
            process = torchrun(world, "-m", "benchmarks.training_data_run", *words)
            if life == kills:
                _, errors = process.communicate(timeout=300)
                if process.returncode != 0:
                    raise RuntimeError(errors[-2000:])
                break
            # The n-th kill comes about the n-th part of the way, or while the ranks start.
            due = int((life + chance.random()) * steps / (kills + 3))
            early = chance.random() < 0.2
            reached(process, records, life, due, within=chance.uniform(0.5, 5) if early else None)
            time.sleep(chance.uniform(0, 0.15))
            if process.poll() is not None:
                raise RuntimeError(f"run {life} ended by itself: {process.communicate()[1][-2000:]}")
            kill(process, chance, one=chance.random() < 0.5)
            told.kills += 1
        count(told, records, uninterrupted(data, steps))
        return told


def numbered(folder: Path) -> str:
    """Samples that consist of their number."""
    np.save(folder / "numbers.npy", np.repeat(np.arange(SAMPLES, dtype=np.uint16), BLOCK))
    out = str(folder / "numbers")
    prepare([str(folder / "numbers.npy")], out, PrepareOptions(block_size=BLOCK, chunk_bytes=100 * BLOCK * 2 + 12))
    return out


def reached(process: subprocess.Popen[str], records: Path, life: int, step: int, *, within: float | None) -> None:
    """Until this run is at the step, or a few further than where it began; or so many seconds, whatever it has come to."""
    began = time.monotonic()
    while time.monotonic() < began + 180:
        if within is not None and time.monotonic() > began + within:
            return
        rows = rows_of(records / f"{life}-0.jsonl")
        if len(rows) > 1 and (rows[-1]["step"] >= step or len(rows) > 80):
            return
        if process.poll() is not None:
            raise RuntimeError(f"run {life} ended by itself: {process.communicate()[1][-2000:]}")
        time.sleep(0.01)
    raise RuntimeError(f"run {life} did not reach step {step}")


def kill(process: subprocess.Popen[str], chance: random.Random, *, one: bool) -> None:
    """SIGKILL to one rank, or to torchrun and all it started."""
    below = descendants(process.pid)
    if one and below:
        end(chance.choice(below))
        process.communicate(timeout=120)
        return
    for pid in (process.pid, *below):
        end(pid)
    process.communicate(timeout=60)
    for pid in below:  # none may be left that writes
        while os.path.exists(f"/proc/{pid}") and state(pid) not in "ZX":
            time.sleep(0.005)


def descendants(pid: int) -> list[int]:
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [found for child in children for found in (child, *descendants(child))]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def rows_of(path: Path) -> list[dict[str, Any]]:
    """A last row that a kill cut short does not count."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def count(told: Told, records: Path, order: list[list[int]]) -> None:
    """The committed steps, joined over all ranks of the run that committed each."""
    lives = []
    for life, world in enumerate(told.worlds):
        ranks = [rows_of(records / f"{life}-{rank}.jsonl") for rank in range(world)]
        if ranks[0]:
            lives.append((ranks[0][0]["start"], ranks))
    trained = sum(len(ranks[0]) - 1 for _, ranks in lives)
    told.rolled_back = trained - len(order)
    flat: list[int] = []
    for number, (start, ranks) in enumerate(lives):
        stop = lives[number + 1][0] if number + 1 < len(lives) else len(order)
        by_step = [{row["step"]: row["samples"] for row in rows[1:]} for rows in ranks]
        for step in range(start, stop):
            samples = [sample for rank in by_step for sample in rank.get(step, [])]
            told.disordered += samples != order[step]
            told.missed += max(0, BATCH - len(samples))
            flat += samples
    for begin in range(0, len(flat), SAMPLES):
        epoch = flat[begin : begin + SAMPLES]
        told.doubled += len(epoch) - len(set(epoch))
        told.missed += SAMPLES - len(set(epoch)) if len(epoch) == SAMPLES else 0


def uninterrupted(data: str, steps: int) -> list[list[int]]:
    with TokenLoader(data, block_size=BLOCK, batch=BATCH, seed=3, ranks=(0, 1)) as loader:
        return [[int(sample) for sample in next(loader)[:, 0]] for _ in range(steps)]


# -------------------------------------------------------------------------------------------------------------- losses


def example(data: str, ranks: int, steps: int, folder: Path) -> dict[int, float]:
    process = torchrun(ranks, "examples/data/train.py", "--data", data, "--steps", str(steps), "--dir", str(folder))
    said, errors = process.communicate(timeout=600)
    if process.returncode != 0:
        raise RuntimeError(errors[-2000:])
    return {int(at): float(loss) for at, loss in re.findall(r"^step (\d+) loss ([\d.]+)$", said, re.MULTILINE)}


def weights(folder: Path) -> bytes:
    """Of the newest checkpoint, as one file."""
    out = folder / "model.safetensors"
    command = [sys.executable, "-m", "penstock.app", "checkpoint", "export", str(folder), str(out)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return out.read_bytes()


def resumed() -> list[Bar]:
    """The example of data, stopped in the middle and resumed, against one that was not."""
    bars = []
    with scratch() as folder:
        data = str(folder / "tokens")
        prepare([str(ROOT / "LICENSE")], data, PrepareOptions(as_bytes=True, block_size=64, chunk_bytes=2000))
        for ranks in (1, 2):
            whole = example(data, ranks, LOSSES, folder / f"whole-{ranks}")
            example(data, ranks, RESUMED_AT, folder / f"parts-{ranks}")
            if ranks == 2:
                shutil.copytree(folder / "parts-2", folder / "fewer")
            rest = example(data, ranks, LOSSES, folder / f"parts-{ranks}")
            differ = sum(whole[step] != loss for step, loss in rest.items())
            same = weights(folder / f"whole-{ranks}") == weights(folder / f"parts-{ranks}")
            note = (
                f"{len(rest)} steps after the resume; the last checkpoint's weights are {'' if same else 'not '}equal"
            )
            bars.append(Bar(f"data: losses that differ, {ranks} -> {ranks}", differ + (not same), 0, "", note=note))
        fewer = example(data, 1, LOSSES, folder / "fewer")
        gaps = [abs(whole[step] - loss) for step, loss in fewer.items()]
        note = f"over {len(gaps)} steps, losses of {min(fewer.values()):.2g} to {max(fewer.values()):.2g}; plain float32 DDP"
        bars.append(Bar("data: largest difference of losses, 2 -> 1", max(gaps), 1e-6, "", note=note))
    return bars


# --------------------------------------------------------------------------------------------------------------- speed


def speed(rounds: int = 3, mib: int = 128) -> list[Bar]:
    """Batches of 32 x 1024 tokens, from the page cache, widened to int64 on both sides."""
    with scratch() as folder:
        rng = np.random.default_rng(0)
        np.save(folder / "a.npy", rng.integers(0, 50000, mib << 19, dtype=np.uint16))
        data = str(folder / "tokens")
        done = prepare([str(folder / "a.npy")], data, PrepareOptions(block_size=1024, chunk_bytes=16 << 20))
        ratios, rates = [], []
        for _ in range(rounds):
            plain, ours = timed(lambda: read_plainly(data)), timed(lambda: read_all(data))
            ratios.append(ours / plain)
            rates.append(done.tokens / ours / 1e6)
        begin, middle = zip(*(first_batch(data) for _ in range(rounds)), strict=True)
    starts = [late / early for early, late in zip(begin, middle, strict=True)]
    note = f"time {spread(ratios)} x a plain read of the same bytes; shuffled, by one thread, page cache"
    return [
        Bar("data: tokens of the loader", statistics.median(rates), 10, "M/s", "at least", note),
        Bar(
            "data: first batch in mid-epoch / at its start",
            statistics.median(starts),
            1.5,
            "x",
            note=spread(middle, " s"),
        ),
    ]


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def read_plainly(data: str) -> None:
    for path in sorted(Path(data).glob("*.bin")):
        torch.from_numpy(np.fromfile(path, dtype=np.uint16, offset=12).astype(np.int64))


def loader_of(data: str) -> TokenLoader:
    return TokenLoader(data, block_size=1024, batch=32, ranks=(0, 1), options=Options(window=4))


def read_all(data: str) -> None:
    with loader_of(data) as loader:
        for _ in range(loader.steps()):
            next(loader)


def first_batch(data: str) -> tuple[float, float]:
    with loader_of(data) as early, loader_of(data) as late:
        late.load_state_dict({**late.state_dict(), "sample": late.samples * 3 // 5})
        return timed(lambda: next(early)), timed(lambda: next(late))


# ---------------------------------------------------------------------------------------------------------------- bars


def measure() -> list[Bar]:
    told = killed_training()
    note = (
        f"{told.resized} changes of world size among {sorted(set(told.worlds))}; {told.rolled_back} steps rolled back"
    )
    return [
        Bar("data: random kills of a training", told.kills, KILLS, "", "at least", note),
        Bar("data: samples missed", told.missed, 0, "", note=f"{STEPS} steps of {BATCH}, epochs of {SAMPLES}"),
        Bar("data: samples doubled", told.doubled, 0, ""),
        Bar("data: steps with other samples than uninterrupted", told.disordered, 0, ""),
        *resumed(),
        *speed(),
    ]


if __name__ == "__main__":
    sys.exit(alone(measure, __doc__))
