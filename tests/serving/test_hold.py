"""Who waits and who goes: in order, never more in one replica than it may have, nobody lost, nobody counted twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.gateway.spec import Backend
from penstock.serving.hold import Line, Ticket

BACKENDS = tuple(Backend(f"r{number}", "127.0.0.1", 1000 + number) for number in range(3))

actions = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(1, 2)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("back"), st.integers(0, 30)),
        st.tuples(st.just("ready"), st.integers(0, 7)),
        st.tuples(st.just("wait"), st.integers(0, 5)),
    ),
    max_size=60,
)


@given(actions, st.integers(1, 3), st.integers(1, 6))
def test_a_line(story: list[tuple[str, int]], concurrency: int, most: int) -> None:
    line = Line(requests=most, time=10.0, concurrency=concurrency, ready={1: (), 2: ()})
    now = 0.0
    mine: list[Ticket] = []  # not ended: waiting or going
    order: list[Ticket] = []
    for what, number in story:
        if what == "arrive":
            held = line.held
            ticket = line.arrive(number, now)
            assert (ticket is None) <= (held >= most)
            if ticket is not None:
                mine.append(ticket)
                order.append(ticket)
        elif what == "ready":
            line.ready = {1: tuple(one for bit, one in enumerate(BACKENDS) if number >> bit & 1), 2: BACKENDS[2:]}
        elif what == "wait":
            now += number
        elif mine:
            ticket = mine[number % len(mine)]
            if what == "leave":
                line.leave(ticket)
                line.leave(ticket)
                mine.remove(ticket)
            elif ticket.backend is not None:
                line.back(ticket, now)
        for ticket in line.step(now):
            assert (ticket.backend is not None) != ticket.late
            if ticket.late:
                assert ticket.until <= now
                mine.remove(ticket)
        going = [ticket for ticket in mine if ticket.backend is not None]
        assert line.held + len(going) == len(mine)
        assert sum(line.busy.values()) == len(going)
        assert all(count <= concurrency for count in line.busy.values())
    for ticket in mine:
        line.leave(ticket)
    assert line.idle


@given(st.integers(1, 50), st.integers(1, 4), st.integers(1, 3))
def test_they_go_in_the_order_they_came(count: int, concurrency: int, replicas: int) -> None:
    line = Line(concurrency=concurrency, ready={1: ()})
    came = [line.arrive(1, 0.0) for _ in range(count)]
    line.ready = {1: BACKENDS[:replicas]}
    went: list[Ticket] = []
    while len(went) < count:
        now_go = line.step(1.0)
        assert 0 < len(now_go) <= concurrency * replicas
        went += now_go
        line.leave(now_go[0])
        for ticket in now_go[1:]:
            line.leave(ticket)
    assert went == came


def test_one_that_comes_does_not_pass_those_who_wait() -> None:
    line = Line(concurrency=1, ready={1: ()})
    first = line.arrive(1, 0.0)
    line.ready = {1: BACKENDS[:1]}
    second = line.arrive(1, 0.0)
    assert second is not None
    assert second.backend is None
    assert line.step(0.0) == [first]


def test_who_was_refused_by_a_replica_goes_first_and_elsewhere() -> None:
    line = Line(concurrency=1, ready={1: BACKENDS[:1]})
    first = line.arrive(1, 0.0)
    second = line.arrive(1, 0.0)
    assert first is not None
    line.back(first, 0.0)
    assert line.step(0.5) == []  # the only one is suspect
    line.ready = {1: BACKENDS[:2]}
    assert line.step(0.5) == [first]
    assert first.backend == BACKENDS[1]
    assert line.step(1.5) == [second]  # and not for ever


def test_a_version_that_is_no_more_goes_to_the_newest() -> None:
    line = Line(ready={2: (), 3: BACKENDS[:1]})
    ticket = line.arrive(1, 0.0)
    assert ticket is not None
    assert ticket.backend == BACKENDS[0]


def test_a_service_that_is_no_more_lets_all_go() -> None:
    line = Line(ready={1: ()})
    tickets = [line.arrive(1, 0.0) for _ in range(3)]
    line.give_up()
    assert line.step(0.0) == tickets
    assert all(ticket is not None and ticket.late for ticket in tickets)
    assert line.idle
