"""Every other fault of the catalogue, injected for real: those that end a job, or need one of their own, too. Its report counts causes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.diagnosis_evidence import kernel_since
from penstock.diagnosis.injecting import acting, catalogue, kernel, network, programs
from penstock.diagnosis.injecting.notes import Note
from penstock.diagnosis.injecting.spec import Fault, Target
from penstock.diagnosis.state import Rank
from tests.diagnosis.live import PATIENCE_S, Training, goes_on
from tests.diagnosis.test_injecting_live import FAULTS

pytestmark = [pytest.mark.soak, pytest.mark.needs("root", "iptables")]
Sign = Callable[[Training, float], Any]


@contextmanager
def _training(folder: Path, ranks: int = 2, workers: int = 0) -> Iterator[Training]:
    one = Training(folder, ranks, workers)
    try:
        goes_on(one)
        yield one
    finally:
        one.stop()


def _inject(training: Training, root: Path, name: str, strength: float | None, sign: Sign, place: str = "") -> None:
    chosen = training.targets[:1] if name == "slow-writes" else training.targets[1:2]  # rank 0 saves
    order = acting.order(catalogue.named(name), chosen, training.targets, strength=strength, place=place)
    began = time.time()
    with acting.injected(order, "job", root):
        _until(training, began, sign)
    assert not list(root.iterdir())


def _until(training: Training, began: float, sign: Sign) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not sign(training, began):
        assert time.monotonic() < deadline, [training.log(n)[-500:] for n in range(len(training.targets))]
        time.sleep(0.05)


def _told(training: Training, began: float) -> dict[int, Rank]:
    return training.since(began)


def _losses(training: Training, began: float) -> list[float]:
    return [step.loss for step in _told(training, began)[0].steps if step.loss is not None]


def _still(training: Training, began: float) -> bool:
    """No step for a while."""
    return time.time() - began > 2 and not _told(training, time.time() - 1)[0].steps


def _steps(training: Training, began: float) -> bool:
    return all(len(rank.steps) > 5 for rank in _told(training, began).values())


def _slow(training: Training, began: float) -> bool:
    steps = _told(training, began)[0].steps
    return len(steps) > 3 and min(sorted((step.comm or 0) for step in steps)[-3:]) > 0.03


def _moved(training: Training, began: float) -> bool:
    """The rank itself tells, so it is known which one, also of two."""
    told = [
        [
            json.loads(line)
            for line in (training.folder / "trial" / "watch" / str(n)).read_text().splitlines()
            if "moved_step" in line
        ]
        for n in (0, 1)
    ]
    return not told[0] and any(float(event["at"]) > began for event in told[1])


def _says(word: str) -> Sign:
    return lambda training, _began: word in training.log(1) + training.log(0)


def _rank_gone(training: Training, _began: float) -> bool:
    return training.gone(1)


# Those after which a training goes on.
MILD: tuple[tuple[str, float | None, Sign], ...] = (
    ("small-batch", None, lambda t, b: bool(s := _told(t, b)[0].steps) and (s[-1].tokens or 99) < 8),
    ("recompile", None, lambda t, b: len(s := _told(t, b)[1].steps) > 3 and (s[-1].compute or 0) > 0.018),
    ("float64", None, _steps),
    ("bad-cable", 0.03, lambda t, b: sum(_grown(t, b, n) for n in (0, 1)) > 20),
    ("link-rate", 80, _slow),
    ("link-flap", 2, _steps),
    ("mtu", 1000, lambda t, b: _still(t, b) or _slow(t, b)),
    ("link-down", None, _still),
    ("slow-writes", 0.5, lambda t, b: max((step.total for step in _told(t, b)[0].steps), default=0) > 0.3),
    ("rendezvous-blocked", 29_511, lambda t, _b: _unreachable(t.targets[0], t.targets[1])),
    ("desync", 0.01, _moved),  # before what makes weights of NaN, to which nothing can be added
    ("bit-flip", None, _moved),
    ("poisoned-batch", 1, lambda t, b: max(_losses(t, b), default=0) > 20),
    ("infinite-gradient", None, lambda t, b: any(math.isnan(loss) for loss in _losses(t, b))),
)
FATAL: tuple[tuple[str, float | None, Sign], ...] = (
    ("hang", None, _still),
    ("held-lock", None, _still),
    ("wrong-collective", None, lambda t, b: _still(t, b) or t.gone(1)),
    ("crash", None, _says("injected: this step fails each time")),
    ("illegal-access", None, _says("illegal memory access")),
    ("descriptors", 256, _says("Too many open files")),
    ("node-down", None, _rank_gone),
    ("preempt", None, _rank_gone),
    ("memory-limit", 32, _rank_gone),
    ("file-limit", 2, lambda t, b: any(c.values["max_files"] < 900 for c in _told(t, b)[1].counters)),
)


def _grown(training: Training, began: float, rank: int) -> float:
    told = _told(training, began)[rank].counters
    return told[-1].values["retransmits"] - told[0].values["retransmits"] if len(told) > 1 else 0.0


def _unreachable(sender: Target, other: Target) -> bool:
    _, address = network.interface(other)
    text = f"import socket; socket.create_connection(('{address}', 29511), timeout=0.5)"
    words = programs.in_network(sender.pid, *programs.python_words(text))
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return "timed out" in done.stderr


def test_mild_ones_in_one_life(tmp_path: Path) -> None:
    with _training(tmp_path / "live") as training:
        for name, strength, sign in MILD:
            _inject(training, tmp_path / "notes", name, strength, sign)
            assert not network.leftovers(training.targets[1].pid), name
            goes_on(training)


@pytest.mark.parametrize(("name", "strength", "sign"), FATAL, ids=[name for name, _, _ in FATAL])
def test_those_that_end_a_job(tmp_path: Path, name: str, strength: float | None, sign: Sign) -> None:
    with _training(tmp_path / "live") as training:
        _inject(training, tmp_path / "notes", name, strength, sign)


def test_a_loaders_worker_is_killed(tmp_path: Path) -> None:
    with _training(tmp_path / "live", workers=1) as training:
        _inject(training, tmp_path / "notes", "loader-worker-killed", None, _says("DataLoader worker"))


def test_a_pair_of_three_is_slow(tmp_path: Path) -> None:
    with _training(tmp_path / "live", ranks=3) as training:
        _inject(training, tmp_path / "notes", "slow-pair", 80, _slow)
        assert not any(network.leftovers(target.pid) for target in training.targets)


@contextmanager
def _small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    ("name", "word"), [("disk-full", "No space left"), ("disk-read-only", "Read-only file system")]
)
def test_the_disk_of_the_checkpoints(tmp_path: Path, name: str, word: str) -> None:
    saves = tmp_path / "live" / "saves"
    with _small_disk(saves), _training(tmp_path / "live") as training:
        _inject(training, tmp_path / "notes", name, None, _says(word), str(saves))
        (saves / "written").write_text("again")


def test_storage_that_no_rank_notices_at_once(tmp_path: Path) -> None:
    with _training(tmp_path / "live") as training:
        saves = training.folder / "saves"
        _until(training, time.time(), lambda _t, _b: any(saves.glob("step-*")))
        newest = max(saves.glob("step-*"), key=lambda path: path.stat().st_mtime)
        (alone := tmp_path / "checkpoint").mkdir()
        os.link(newest, alone / "weights")
        whole = newest.read_bytes()
        _inject(
            training,
            tmp_path / "notes",
            "corrupt-checkpoint",
            None,
            lambda _t, _b: newest.read_bytes() != whole,
            str(alone),
        )
        assert newest.read_bytes() == whole
        _inject(training, tmp_path / "notes", "cold-cache", None, _steps, str(training.folder / "data"))
        _inject(training, tmp_path / "notes", "stat-storm", 2, _steps, str(training.folder))


@pytest.mark.parametrize("fault", kernel.TEXTS, ids=lambda fault: fault.name)
def test_lines_of_the_kernels_log(tmp_path: Path, fault: Fault) -> None:
    ours = (Target(0, os.getpid(), 0),)
    began = time.time() - 1
    kernel.tell(acting.order(fault, ours, ours), Note.new(fault.name, "job", tmp_path))
    assert any(kernel.TEXTS[fault] in line.text for line in kernel_since(began))


def test_at_least_45_causes_are_injected_for_real(record_property: Callable[[str, Any], None]) -> None:
    others = (
        "loader-worker-killed",
        "slow-pair",
        "disk-full",
        "disk-read-only",
        "corrupt-checkpoint",
        "cold-cache",
        "stat-storm",
    )
    names = {name for name, _, _ in (*FAULTS, *MILD, *FATAL)} | set(others)
    assert names | {fault.name for fault in kernel.TEXTS} == set(catalogue.FAULTS)
    causes = sorted({catalogue.FAULTS[name].cause for name in names})
    record_property("soak:causes_injected", causes)
    assert len(causes) >= 45
