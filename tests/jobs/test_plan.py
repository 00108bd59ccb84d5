"""What follows the end of an attempt."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.reasons import Reason
from penstock.jobs.plan import Ended, after_end, backoff_s
from penstock.jobs.progression import array_phase
from penstock.jobs.state import ACTIVE, BLAMELESS, FINAL, TRANSITIONS, Phase, may_follow

ENDS = [
    Reason.Completed, Reason.Failed, Reason.OutOfMemory, Reason.TimeLimit, Reason.Cancelled, Reason.Preempted,
    Reason.NodeLost, Reason.NodeDrained, Reason.IdleTimeout, Reason.CommandNotFound, Reason.LaunchFailed,
    Reason.SupervisorLost, Reason.RestartsExhausted,
]  # fmt: skip
ended = st.builds(
    Ended, st.sampled_from(ENDS), st.just("said"), st.integers(0, 8), st.integers(0, 8), cancel_requested=st.booleans()
)


@given(ended)
def test_restarts_never_pass_their_bound(end: Ended) -> None:
    after = after_end(end)
    if after.phase is Phase.PENDING and end.reason not in BLAMELESS:
        assert after.restarts == end.restarts + 1 <= end.max_restarts
    else:
        assert after.restarts == end.restarts


@given(ended)
def test_final_unless_a_restart_is_due(end: Ended) -> None:
    after = after_end(end)
    assert after.phase in FINAL | {Phase.PENDING}
    assert all(may_follow(active, after.phase) for active in ACTIVE)
    if end.reason == Reason.Completed:
        assert after.phase is Phase.SUCCEEDED
    elif end.cancel_requested:
        assert after.phase is Phase.CANCELLED
    if after.phase is Phase.SUCCEEDED:
        assert end.reason == Reason.Completed


@pytest.mark.parametrize("reason", sorted(BLAMELESS))
def test_a_drain_costs_no_restart(reason: str) -> None:
    after = after_end(Ended(reason, "moved", 0, 0))
    assert (after.phase, after.restarts, after.delay_s) == (Phase.PENDING, 0, 0.0)


def test_a_failure_says_how_often_it_may_still_try() -> None:
    after = after_end(Ended(Reason.Failed, "rank 1 exited with 3", 1, 3))
    assert after.message == "rank 1 exited with 3; restart 2 of 3 in 1s"
    assert after_end(Ended(Reason.Failed, "x", 3, 3)).message == "x; all 3 restarts are spent"


@given(st.integers(0, 100))
def test_backoff_grows_to_its_limit(restarts: int) -> None:
    assert 0 <= backoff_s(restarts) <= backoff_s(restarts + 1) <= 60


def test_every_phase_has_its_row() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert all(TRANSITIONS[final] == {Phase.PENDING} for final in FINAL)


@given(st.lists(st.sampled_from(list(Phase)), min_size=1))
def test_an_array_is_final_when_all_its_tasks_are(phases: list[str]) -> None:
    phase, reason, message = array_phase(Counter(phases))
    assert (phase in FINAL) == all(p in FINAL for p in phases)
    assert (phase is Phase.SUCCEEDED) == all(p == Phase.SUCCEEDED for p in phases)
    assert message
    assert reason
