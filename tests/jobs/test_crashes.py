"""Whose fault failures are, as a pure decision."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.spec import Failure
from penstock.jobs.crashes import KEPT, SILENT_S, BadNode, Crash, Loop, dump, load, row_of, taken_in, verdict

STEPS = st.none() | st.integers(0, 20)


def crash(
    step: int | None = None, node: str = "node-1", *, attempt: int = 1, restart: int = 0, ran_s: float = 1.0,
    signal: int | None = None, lines: tuple[str, ...] = (),
) -> Crash:  # fmt: skip
    return Crash(attempt, restart, 1, node, None if signal else 1, signal, step, 0.0, ran_s, lines)


crashes = st.lists(
    st.builds(
        crash, STEPS, st.sampled_from(["node-1", "node-2", ""]), attempt=st.integers(1, 3), restart=st.integers(0, 3),
        ran_s=st.sampled_from([1.0, SILENT_S + 1]), signal=st.sampled_from([None, 6, 7, 9]),
    ),
    max_size=12,
)  # fmt: skip


def test_three_failures_at_one_step_are_the_scripts_fault() -> None:
    boom = ("  File train.py, line 7", "ValueError: boom")
    found = verdict([crash(40, "node-1"), crash(40, "node-2"), crash(40, "node-1", lines=boom)], 3)
    assert found == Loop(
        "it failed 3 times in a row at step 40: rank 1 on node-1 exited with code 1:\n"
        "    File train.py, line 7\n  ValueError: boom"
    )


def test_before_the_first_step_is_a_step() -> None:
    found = verdict([crash(), crash(), crash()], 3)
    assert isinstance(found, Loop)
    assert "3 times in a row before the first step" in found.message


def test_progress_breaks_the_row() -> None:
    assert verdict([crash(40, "node-1"), crash(40, "node-2"), crash(41, "node-1")], 3) is None


def test_a_step_before_the_last_is_no_progress() -> None:
    found = verdict([crash(40, "node-1"), crash(40, "node-2"), crash(39, "node-3")], 3)
    assert isinstance(found, Loop)
    assert "at step 39, never past step 40" in found.message


def test_nothing_is_known_of_a_long_silent_start() -> None:
    assert verdict([crash(ran_s=SILENT_S + 1)] * 5, 3) is None


def test_one_node_with_different_steps_is_at_fault() -> None:
    found = verdict([crash(40), crash(39), crash(12)], 3)
    assert found == BadNode("node-1", "the job failed there twice in a row, at step 39 and at step 12")


def test_a_bus_error_is_the_nodes_at_once() -> None:
    assert isinstance(verdict([crash(3, signal=7)], 3), BadNode)
    assert isinstance(verdict([crash(3, lines=("NVRM: Xid (PCI:0000:3b:00): 79",))], 3), BadNode)


@given(crashes, st.integers(1, 5))
def test_a_loop_is_a_row_without_progress(known: list[Crash], most: int) -> None:
    found = verdict(known, most)
    if isinstance(found, Loop):
        row = row_of(known)
        assert len(row) >= most
        assert all(b.reached <= a.reached for a, b in pairwise(row))
        steps, nodes = {c.step for c in row}, {c.node for c in row}
        assert not (len(nodes) == 1 and "" not in nodes and len(steps) > 1)
    if isinstance(found, BadNode):
        assert found.node == known[-1].node != ""


@given(crashes)
def test_it_can_be_turned_off(known: list[Crash]) -> None:
    assert not isinstance(verdict(known, 0), Loop)


@given(crashes, st.integers(1, 5), st.integers(0, 20))
def test_who_goes_on_is_never_in_a_loop(known: list[Crash], most: int, step: int) -> None:
    """A failure past all others is no loop, unless one is enough."""
    past = max((c.reached for c in known), default=-1) + 1 + step
    found = verdict([*known, crash(past, "node-9")], most)
    assert not isinstance(found, Loop) or most == 1


@given(crashes, st.lists(st.tuples(st.integers(0, 5), STEPS), max_size=6))
def test_what_is_told_twice_is_known_once(known: list[Crash], told: list[tuple[int, int | None]]) -> None:
    failures = [Failure(restart, 0, "node-1", 1, None, step, 0.0, 1.0) for restart, step in told]
    once = taken_in(known, 9, failures)
    assert taken_in(once, 9, failures) == once or len({r for r, _ in told}) < len(told)
    assert len(once) <= KEPT
    assert load(dump(once)) == tuple(once)


def test_a_rank_that_somebody_killed_puts_no_blame_on_its_node() -> None:
    assert isinstance(verdict([crash(3), crash(5)], 3), BadNode)
    assert verdict([crash(3), crash(5, signal=9)], 3) is None


def test_hangs_at_one_step_are_told_as_hangs() -> None:
    words = "no step for 6s: rank 1 on node-0 is in fetch (data.py:7)"
    known: tuple[Crash, ...] = ()
    for restart, at in enumerate((100.0, 200.0, 300.0)):
        killed = Failure(restart, 1, "node-0", None, 9, 19, at, 1.0)
        known = taken_in(known, 1, [killed], {at - 1.5: words, 1000.0: "another"})
    assert load(dump(known)) == known
    assert verdict(known, 3) == Loop(f"it hung 3 times in a row at step 19: {words}")
    mixed = (*known[:2], crash(19, "node-0", restart=2))
    assert verdict(mixed, 3) == Loop(f"it failed 3 times (2 of them hangs) in a row at step 19: {words}")


def test_a_rank_that_died_of_itself_did_not_hang() -> None:
    [died] = taken_in((), 1, [Failure(0, 1, "node-0", 1, None, 19, 100.0, 1.0)], {99.0: "no step"})
    [late] = taken_in((), 1, [Failure(0, 1, "node-0", None, 9, 19, 100.0, 1.0)], {50.0: "no step"})
    assert died.hung == late.hung == ""
