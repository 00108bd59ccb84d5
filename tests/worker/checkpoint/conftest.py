"""For every test of checkpoints: what one did with SIGTERM, the next does not see."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from penstock.worker.contract import StopSignal


@pytest.fixture(autouse=True)
def own_signal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGTERM as it was before, after each test."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("penstock.worker.contract.should_stop", StopSignal())
    yield
    signal.signal(signal.SIGTERM, before)
