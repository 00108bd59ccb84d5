"""Faults injected for real into a training of two ranks, one after the other: each is seen, and nothing of it is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.diagnosis.injecting import acting, catalogue
from penstock.diagnosis.state import Rank
from tests.diagnosis.live import PATIENCE_S, Training, goes_on, state

pytestmark = pytest.mark.needs("root", "iptables")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    one = Training(tmp_path_factory.mktemp("live"))
    goes_on(one)
    yield one
    one.stop()


Sign = Callable[[dict[int, Rank]], Any]


def _mean(rank: Rank, phase: str) -> float:
    values = [getattr(step, phase) or 0.0 for step in rank.steps]
    return sum(values) / len(values) if len(values) >= 3 else 0.0


def _grew(rank: Rank, counter: str) -> float:
    """By second of wall time."""
    told = rank.counters
    if len(told) < 2:
        return 0.0
    return (told[-1].values[counter] - told[0].values[counter]) / (told[-1].at - told[0].at)


FAULTS: tuple[tuple[str, float, Sign], ...] = (
    ("slow-loader", 0.05, lambda r: _mean(r[1], "data") > 0.04 > _mean(r[0], "data")),
    ("slow-loaders", 0.05, lambda r: min(_mean(r[n], "data") for n in r) > 0.04),
    ("slow-compute", 0.05, lambda r: _mean(r[1], "compute") > _mean(r[0], "compute") + 0.03),
    ("imbalance", 4, lambda r: _mean(r[1], "tokens") > 2 * _mean(r[0], "tokens") > 0),
    ("garbage", 1, lambda r: _mean(r[1], "gc") > 0.01 > _mean(r[0], "gc")),
    ("leak", 8, lambda r: _grew(r[1], "rss_bytes") > 10e6 + _grew(r[0], "rss_bytes")),
    ("anomaly", 1, lambda r: len(r[0].steps) > 3),
    ("cpu-contention", 4, lambda r: _grew(r[1], "run_delay_s") > 0.15),
    ("cpu-quota", 0.05, lambda r: _grew(r[1], "throttled_s") > 0.05),
    ("freeze", 0.6, lambda r: max((step.total for step in r[0].steps), default=0) > 0.4),
    ("bandwidth", 80, lambda r: min(_mean(r[n], "comm") for n in r) > 0.06),
    ("packet-loss", 0.05, lambda r: _grew(r[0], "retransmits") > 30),
    ("latency", 0.02, lambda r: min(_mean(r[n], "comm") for n in r) > 0.03),
    ("congestion", 150, lambda r: min(_mean(r[n], "comm") for n in r) > 0.03),
    ("slow-reads", 0.5, lambda r: max(_mean(r[n], "data") for n in r) > 0.02),
)


@pytest.mark.parametrize(("name", "strength", "sign"), FAULTS, ids=[name for name, _, _ in FAULTS])
def test_it_is_felt_and_goes_again(training: Training, tmp_path: Path, name: str, strength: float, sign: Sign) -> None:
    before = state(training)
    order = acting.order(
        catalogue.named(name), training.targets[1:], training.targets, strength=strength, place=str(training.folder)
    )
    began = time.time()
    with acting.injected(order, "job", tmp_path / "notes"):
        deadline = time.monotonic() + PATIENCE_S
        while not sign(told := training.since(began)):
            assert time.monotonic() < deadline, {n: (rank.steps[-3:], rank.counters[-2:]) for n, rank in told.items()}
            time.sleep(0.05)
    assert state(training) == before
    assert not list((tmp_path / "notes").iterdir())
    goes_on(training)
