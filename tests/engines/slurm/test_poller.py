"""When one that waits is told of anew, where many wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.engines.slurm.attempts import Attempt, Stop
from penstock.engines.slurm.poller import told_lately
from penstock.engines.slurm.spec import SlurmJob
from penstock.engines.slurm.states import Asked
from penstock.engines.spec import Observation, Stage

NOW = 1000.0
QUEUED = Observation("01A.1", Stage.QUEUED, NOW - 5)
WAITS = SlurmJob(7, "a.01A.1", "PENDING", "Priority")


def attempt(told: Observation | None, stop: Stop | None = None) -> Attempt:
    asked = Asked("01A.1", ())
    return Attempt("01A.1", "/runs/1", "/there/1", None, "a.01A.1", ".01A.1", asked, key="7", told=told, stop=stop)


def test_why_it_waits_is_no_news_so_soon() -> None:
    assert told_lately(attempt(QUEUED), WAITS, NOW)
    assert not told_lately(attempt(replace(QUEUED, at=NOW - 11)), WAITS, NOW)


@pytest.mark.parametrize(("told", "job", "stop"), [
    (None, WAITS, None),
    (QUEUED, replace(WAITS, state="RUNNING"), None),
    (replace(QUEUED, stage=Stage.RUNNING), WAITS, None),
    (replace(QUEUED, unknown_since=NOW - 60), WAITS, None),
    (QUEUED, WAITS, Stop("Cancelled", 1.0, NOW)),
])  # fmt: skip
def test_anything_else_is(told: Observation | None, job: SlurmJob, stop: Stop | None) -> None:
    assert not told_lately(attempt(told, stop), job, NOW)
