"""Who holds the others up."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.training import culprit, flight, probe
from penstock.training.state import NO_FRAMES, Clue, Culprit, Evidence, Flight, Frame, Group, Look

_C10D = "/v/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"
IN_REDUCE = (Frame("all_reduce", _C10D, 3000), Frame("train", "/w/train.py", 20), Frame("<module>", "/w/train.py", 40))
IN_BARRIER = (Frame("barrier", _C10D, 5000), Frame("train", "/w/train.py", 31), Frame("<module>", "/w/train.py", 40))
IN_BACKWARD = (
    Frame("_engine_run_backward", "/v/lib/python3.11/site-packages/torch/autograd/graph.py", 800),
    Frame("train", "/w/train.py", 22),
)
ASLEEP = (Frame("fetch", "/w/data.py", 7), Frame("train", "/w/train.py", 18), Frame("<module>", "/w/train.py", 40))


def look(rank: int, frames: tuple[Frame, ...] = IN_REDUCE, state: str = "S", **more: Any) -> Look:
    return Look(rank, f"n{rank // 2}", 100 + rank, 1, state, frames=frames, **more)


def find(*looks: Look, world: int | None = None, **more: Any) -> Culprit:
    return culprit.find(Evidence(looks, world or len(looks), more.pop("steps", {}), **more))


def test_a_stopped_rank() -> None:
    found = find(look(0), look(1, state="T"))
    assert (found.ranks, found.clue) == ((1,), Clue.STOPPED)
    assert found.words == "rank 1 on n0 is stopped by a signal (state T)"


def test_a_rank_in_the_kernel_puts_blame_on_its_node() -> None:
    found = find(look(0), look(1), look(2, state="D", wait="nfs_wait_bit_killable"), look(3))
    assert (found.ranks, found.nodes) == ((2,), ("n1",))
    assert "nfs_wait_bit_killable" in found.words


def test_a_rank_that_is_elsewhere_while_the_others_wait() -> None:
    found = find(look(0), look(1, ASLEEP), look(2, IN_BACKWARD), look(3))
    assert (found.ranks, found.clue) == ((1,), Clue.APART)
    assert found.words == (
        "rank 1 on n0 is in fetch (data.py:7) while 3 others wait in all_reduce, called by train (train.py:20)"
    )


def test_of_two_the_one_that_waits_is_not_the_culprit() -> None:
    assert find(look(0, ASLEEP), look(1)).ranks == (0,)


def test_all_in_one_collective_is_unknown() -> None:
    found = find(look(0), look(1), look(2))
    assert (found.ranks, found.clue) == ((), Clue.NONE)


def test_few_in_another_collective() -> None:
    found = find(look(0), look(1), look(2, IN_BARRIER))
    assert found.ranks == (2,)
    assert find(look(0), look(1, IN_BARRIER)).ranks == ()  # of two nobody can say who is wrong


def test_one_in_another_collective_than_the_most_of_several() -> None:
    other = (Frame("broadcast", _C10D, 4000), *IN_BARRIER[1:])
    found = culprit.find(Evidence((look(0), look(1), look(2, IN_BARRIER), look(3, other)), 4, {}))
    assert (found.ranks, found.clue) == ((2, 3), Clue.ANOTHER)


def test_two_ranks_in_two_collectives_are_told_and_neither_is_named() -> None:
    found = culprit.find(Evidence((look(0), look(1, IN_BARRIER)), 2, {0: 5, 1: 5}))
    assert (found.ranks, found.clue) == ((), Clue.ANOTHER)
    assert found.words == (
        "its ranks are in different collectives: rank 0 is in all_reduce, called by train (train.py:20); "
        "rank 1 is in barrier, called by train (train.py:31)"
    )
    assert culprit.find(Evidence((look(0), look(1, IN_BARRIER)), 2, {0: 6, 1: 5})).ranks == (1,)


def test_another_collective_under_the_same_number_by_the_flight_recorder() -> None:
    called = {0: "nccl:all_reduce", 1: "nccl:all_reduce", 2: "nccl:broadcast"}
    group = Group("0/default", dict.fromkeys(called, 40), dict.fromkeys(called, 1.0), called)
    flight_ = Flight(frozenset(called), (group,))
    found = culprit.find(Evidence(tuple(look(rank) for rank in range(3)), 3, {}, flight_))
    assert (found.ranks, found.clue) == ((2,), Clue.ANOTHER)
    assert "rank 2 is in nccl:broadcast, the others in nccl:all_reduce" in found.words


def test_fewest_steps_where_nothing_else_tells() -> None:
    found = find(look(0), look(1), look(2), steps={0: 20, 1: 20, 2: 19})
    assert (found.ranks, found.clue) == ((2,), Clue.STEPS)


def test_without_stacks_by_where_the_kernel_has_them() -> None:
    found = find(look(0, (), wait="futex_wait_queue"), look(1, (), wait="hrtimer_nanosleep"))
    assert found.ranks == (1,)


def test_a_rank_that_is_gone_but_not_where_a_node_was_silent() -> None:
    assert find(look(0), look(1), world=3).ranks == (2,)
    assert find(look(0), look(1), world=3, silent={"n1": "no answer"}).ranks == ()


def test_a_whole_node_apart_is_to_blame() -> None:
    found = find(look(0), look(1), look(2, ASLEEP), look(3, ASLEEP))
    assert found.ranks == (2, 3)
    assert found.nodes == ("n1",)


def test_working() -> None:
    assert not culprit.working(look(0))
    assert not culprit.working(look(0, cpu=1.0))  # NCCL's wait spins
    assert culprit.working(look(0, ASLEEP, cpu=1.0))
    assert culprit.working(look(0, io=1 << 20))
    assert culprit.working(look(0, moved=True, cpu=0.1))
    assert not culprit.working(look(0, ASLEEP, state="T", cpu=1.0))


_FRAMES = st.sampled_from([IN_REDUCE, IN_BARRIER, IN_BACKWARD, ASLEEP, ()])


@given(
    st.lists(
        st.tuples(_FRAMES, st.sampled_from("SRDTtZ"), st.sampled_from(["", "futex", "hrtimer_nanosleep"])), max_size=9
    ),
    st.integers(1, 9),
    st.dictionaries(st.integers(0, 8), st.integers(0, 3)),
)
def test_never_all_of_them_and_nobody_else(
    seen: list[tuple[tuple[Frame, ...], str, str]], world: int, steps: Mapping[int, int]
) -> None:
    looks = [look(rank, frames, state, wait=wait) for rank, (frames, state, wait) in enumerate(seen[:world])]
    found = culprit.find(Evidence(tuple(looks), world, {r: s for r, s in steps.items() if r < world}))
    assert set(found.ranks) <= set(range(world))
    assert len(found.ranks) < world or world == 1
    assert found.words


# -- Flight Recorder


def dump(**last: int) -> bytes:
    """As PyTorch writes it, of as much as is read."""
    entries = [
        {"process_group": (name, "default"), "collective_seq_id": n, "time_created_ns": n * 10**9, "is_p2p": False}
        for name, newest in last.items()
        for n in range(max(newest - 3, 0), newest + 1)
    ]
    return pickle.dumps({"version": "2.9", "pg_config": {}, "entries": entries})


def gathered(*dumps: bytes) -> Flight:
    return flight.gather((rank, flight.reduce(flight.load(data))) for rank, data in enumerate(dumps))


def test_the_rank_that_has_done_fewer_collectives() -> None:
    found = find(look(0), look(1), look(2), flight=gathered(dump(world=20), dump(world=18), dump(world=20)))
    assert (found.ranks, found.clue) == ((1,), Clue.FLIGHT)


def test_ranks_that_begun_nothing() -> None:
    assert culprit.behind(gathered(dump(world=20), dump(world=20), dump(), dump(world=20), dump())) == (2, 4)


def test_who_waits_for_another_is_not_the_root() -> None:
    """Rank 1 is behind in "a" because it waits, ahead of rank 2, in "b"."""
    found = gathered(dump(a=9, c=5), dump(a=8, b=7, c=5), dump(b=6, c=5), dump(c=5))
    assert culprit.behind(found) == (2,)


def test_even_ranks_have_no_root() -> None:
    assert culprit.behind(gathered(dump(a=9), dump(a=9))) == ()
    assert culprit.behind(Flight()) == ()


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


@pytest.mark.parametrize("data", [b"", b"\x80", b"{}", pickle.dumps([1]), pickle.dumps({"entries": [_Trap()]})])
def test_what_is_no_dump_is_refused_and_never_run(data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="Flight Recorder"):
        flight.load(data)
    assert capsys.readouterr().out == ""


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 4)), max_size=6))
def test_behind_is_never_everybody(last: list[dict[str, int]]) -> None:
    groups = tuple(Group(name, {r: one[name] for r, one in enumerate(last) if name in one}, {}) for name in "abc")
    found = culprit.behind(Flight(frozenset(range(len(last))), groups))
    assert set(found) <= set(range(len(last)))
    assert not found or len(found) < len(last)


def test_an_interpreter_that_is_leaving_is_no_hang() -> None:
    gone = look(0, (), why_no_stack=NO_FRAMES)
    assert culprit.working(gone)
    assert not culprit.working(look(0, (), state="T", why_no_stack=NO_FRAMES))
    assert f'"{NO_FRAMES}"' in Path(probe.__file__).read_text()


def test_a_dump_of_an_earlier_life_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    dump = tmp_path / "1-0"
    assert not probe._newer(str(dump), os.getpid())
    dump.write_bytes(b"x")
    assert probe._newer(str(dump), os.getpid())
    os.utime(dump, (1.0, 1.0))
    assert not probe._newer(str(dump), os.getpid())
