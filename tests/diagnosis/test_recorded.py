"""Causes that cannot be made for real here, by recorded telemetry: each is the verdict, and what looks like it is not."""

from __future__ import annotations

import pytest

from penstock.diagnosis.injecting.catalogue import FAULTS
from penstock.diagnosis.knowledge.catalogue import CAUSES
from penstock.diagnosis.plan import diagnose
from penstock.diagnosis.state import Diagnosis
from tests.diagnosis import recording

RECORDED = [each for path in recording.files() for each in recording.read(path)]


def shown(found: Diagnosis) -> str:
    return "\n".join(
        [found.verdict, *(f"{c.score} {c.cause} {c.culprits} {c.evidence} | {c.against}" for c in found.causes)]
    )


@pytest.mark.parametrize("recorded", RECORDED, ids=[each.name for each in RECORDED])
def test_recorded_telemetry(recorded: recording.Recorded) -> None:
    found = diagnose(recorded.evidence)
    first = found.causes[0] if found.causes else None
    if recorded.hint:
        assert first is not None
        assert first.cause in recorded.verdict, shown(found)
        assert found.verdict in {"healthy", *recorded.verdict}, shown(found)
    elif recorded.verdict:
        assert found.verdict in recorded.verdict, shown(found)
    else:
        assert found.verdict != recorded.never, shown(found)
    if recorded.culprits:
        named = {culprit.name for culprit in (found.culprits or (first.culprits if first else ()))}
        assert recorded.culprits & named, shown(found)


def test_every_file_is_of_a_cause_and_has_sources() -> None:
    assert {path.stem for path in recording.files()} <= set(CAUSES)


TRUTH = {"pp_bubble"}  # of traces of real jobs: test_truth.py


def test_every_cause_is_made_for_real_or_recorded() -> None:
    made = {fault.cause for fault in FAULTS.values()}
    assert set(CAUSES) - made - {path.stem for path in recording.files()} - TRUTH == set()
