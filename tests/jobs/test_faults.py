"""What is made of an end of which an engine tells no more than how its ranks ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from penstock.engines.spec import Observation, RankExit, Stage
from penstock.jobs.faults import _unexplained


def end(*ranks: RankExit) -> Observation:
    return Observation(
        "j.1", Stage.EXITED, 9.0, reason="Failed", exit_code=1, ranks=ranks, progress={"step": 7}, restarts=2
    )


ATTEMPT: Any = SimpleNamespace(started_at=1.0, groups='[{"node": "a"}, {"node": "b"}]')


def test_the_first_rank_that_was_not_told_to_end_is_the_root() -> None:
    ranks = (
        RankExit(0, "a", None, 15, 2, 3.0),
        RankExit(1, "b", 3, None, 2, 4.0),
        RankExit(2, "b", 1, None, 2, 5.0),
        RankExit(3, "b", 9, None, 1, 2.0),  # of a start before
    )
    found = _unexplained(ATTEMPT, end(*ranks), 2, 9.0)
    assert (found.rank, found.node, found.exit_code, found.step, found.ran_s) == (1, "b", 3, 7, 8.0)


def test_of_an_end_without_ranks_no_node_of_several_is_blamed() -> None:
    found = _unexplained(ATTEMPT, end(), 2, 9.0)
    assert (found.rank, found.node, found.exit_code) == (None, "", 1)
