"""Whatever happens to a checkpoint's bytes is found before a training uses them; whenever a saver dies, one loads."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.measure import until
from penstock.worker.checkpoint import folder, saving
from penstock.worker.checkpoint.errors import SaveFailed
from penstock.worker.checkpoint.layout import Box, make_layout
from penstock.worker.checkpoint.manifest import Part
from penstock.worker.checkpoint.reading import verify
from penstock.worker.checkpoint.upkeep import latest
from penstock.worker.checkpoint.writing import Segment, Source, gathered
from tests.worker.checkpoint.faults import inflict

ROOT = Path(__file__).resolve().parents[3]


def two_checkpoints(directory: Path) -> None:
    """Two saves of two ranks each, as two ranks make them."""
    directory.mkdir(exist_ok=True)
    series = folder.new_series([])
    for number in (1, 2):
        parts = []
        for rank in (0, 1):
            ticket = saving.Ticket(str(directory), folder.save_id(series, number), number * 10, rank, 2, chunk=8192)
            box = Box("w", "F32", (8000,), (4000 * rank,), (4000,))
            layout = make_layout(saving.shard_name(rank), [box])
            header = np.frombuffer(layout.header(saving.notes_of(ticket)), np.uint8)
            values = np.arange(4000, dtype=np.float32).view(
                np.uint8
            )  # the same in all: only the header tells them apart
            saving.begin(ticket)
            parts.append(saving.write_part(ticket, gathered([header, values]), layout, {"random": {}}, {}))
        saving.conclude(saving.Ticket(str(directory), folder.save_id(series, number), number * 10, 0, 2), parts[0])


def inflict_often(times: int, tmp_path: Path, seed: int) -> int:
    """How many of so many faults were found."""
    pristine = tmp_path / "pristine"
    pristine.mkdir()
    two_checkpoints(pristine)
    chance = random.Random(seed)
    found = 0
    for _ in range(times):
        copy = tmp_path / "copy"
        shutil.copytree(pristine, copy)
        what = inflict(copy, chance)
        entry = latest(str(copy))
        assert entry is not None, what
        found += entry.step == 10
        assert entry.step == 10, what
        shutil.rmtree(copy)
    return found


def test_a_hundred_faults_are_found(tmp_path: Path) -> None:
    assert inflict_often(100, tmp_path, seed=1) == 100


@pytest.mark.soak
def test_a_thousand_faults_are_found(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    found = inflict_often(1000, tmp_path, seed=int(os.environ.get("PENSTOCK_SOAK_SEED", "7")))
    record_property("soak:checkpoint_faults", 1000)
    record_property("soak:checkpoint_faults_missed", 1000 - found)


def kill_often(times: int, directory: Path, processes: list[subprocess.Popen[str]], seed: int) -> tuple[int, int, int]:
    """Kills savers at random moments. Answers kills, loads that failed, and the most steps that one kill lost."""
    chance = random.Random(seed)
    Path(f"{directory}-tier").mkdir()  # each is promoted as well
    command = [sys.executable, "-m", "tests.worker.checkpoint.rounds", str(directory)]
    source = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    processes.append(source)
    assert source.stdin is not None
    assert source.stdout is not None
    failed = lost = expected = 0
    for number in range(times):
        source.stdin.write("next\n")
        source.stdin.flush()
        said = {word: int(number) for word, number in (source.stdout.readline().split()[:2] for _ in range(2))}
        if "start" not in said:
            failed += 1
        else:
            lost = max(lost, expected - said["start"])
        time.sleep(chance.uniform(0, 0.25))
        if number == times - 1:
            until(lambda: latest(f"{directory}-tier") is not None, "a copy", timeout=60, every=0.01)
        os.kill(said["pid"], signal.SIGKILL)
        while (line := source.stdout.readline().strip()) != "dead":
            expected = max(expected, int(line.split()[1]) + 1)
    source.stdin.close()
    source.stdout.close()
    source.wait(30)
    assert all(verify(entry.path) for entry in folder.entries(f"{directory}-tier"))
    return times, failed, lost


def test_a_few_kills(tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    assert kill_often(5, tmp_path / "c", processes, seed=1) == (5, 0, 0)


@pytest.mark.soak
def test_two_hundred_kills(
    tmp_path: Path, processes: list[subprocess.Popen[str]], record_property: Callable[[str, object], None]
) -> None:
    kills, failed, lost = kill_often(200, tmp_path / "c", processes, int(os.environ.get("PENSTOCK_SOAK_SEED", "7")))
    record_property("soak:checkpoint_kills", kills)
    record_property("soak:checkpoint_kills_failed_loads", failed)
    record_property("soak:checkpoint_kills_committed_lost", lost)
    assert (failed, lost) == (0, 0)


def test_a_rank_that_fails_is_named_and_nothing_is_committed(tmp_path: Path) -> None:
    one, two = (saving.Ticket(str(tmp_path), "1", 5, rank, 2, timeout=5) for rank in (0, 1))
    saving.begin(one)
    saving.begin(two)
    saving.give_up(two, OSError(28, "No space left on device"))
    layout = make_layout(saving.shard_name(0), [])
    header = np.frombuffer(layout.header(saving.notes_of(one)), np.uint8)
    part = saving.write_part(one, gathered([header]), layout, {}, {})
    with pytest.raises(SaveFailed, match=r"rank 1: OSError: .*No space left"):
        saving.conclude(one, part)
    saving.give_up(one, RuntimeError())
    with pytest.raises(SaveFailed, match="rank 0 gave up"):
        saving.await_commit(two)
    assert os.listdir(tmp_path) == []


def test_a_rank_that_died_means_no_commit(tmp_path: Path) -> None:
    ticket = saving.Ticket(str(tmp_path), "1", 5, 0, 2, timeout=0.05)
    saving.begin(ticket)
    with pytest.raises(SaveFailed, match="step 5: rank 1 did not finish within 0 s"):
        saving.conclude(ticket, Part(0))


def test_a_source_that_fails_leaves_no_part(tmp_path: Path) -> None:
    def broken() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        raise ValueError("gone")

    ticket = saving.Ticket(str(tmp_path), "1", 5)
    saving.begin(ticket)
    layout = make_layout(saving.shard_name(0), [])
    with pytest.raises(ValueError, match="gone"):
        saving.write_part(ticket, Source((Segment(10, broken),)), layout, {}, {})
    assert folder.entries(str(tmp_path)) == []
