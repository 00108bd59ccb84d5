"""Replays: traces as they are read, machines against times worked out by hand, and policies against their rules."""

from __future__ import annotations

import io
from itertools import pairwise

import pytest

from penstock.base.errors import InvalidInput
from penstock.serving.autoscaling import Seen
from penstock.serving.profile import Curve, Point
from penstock.serving.replays.machine import CurveMachine, Engine, Job, TokenMachine, engine_of
from penstock.serving.replays.measure import measured
from penstock.serving.replays.policies import Fixed, Hpa, Kpa
from penstock.serving.replays.run import Outcome, Run, World
from penstock.serving.replays.traces import Request, Trace, parse
from penstock.serving.spec import Autoscaling, Objective

ONE = Curve((Point(1, 1.0, 1.0),), 30.0, "measured")  # one request a second, one at a time


def test_azures_columns_with_their_seven_decimals() -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.9799600,31,8\n"
    trace = parse(io.StringIO(text))
    assert trace.tokens
    assert [value for one in trace.requests for value in one] == pytest.approx([0, 4808, 10, 1, 1, 31, 8, 1])


def test_mooncakes_lines_and_a_csv_of_ones_own() -> None:
    lines = '{"timestamp": 3000, "input_length": 5, "output_length": 7, "hash_ids": [1]}\n\n{"timestamp": 0, "input_length": 1, "output_length": 2}\n'
    assert parse(io.StringIO(lines)).requests == (Request(0, 1, 2, 1), Request(3, 5, 7, 1))
    own = parse(io.StringIO("name,at,work\na,2026-01-01T00:00:05Z,2\nb,2026-01-01T00:00:00Z,1\n"))
    assert not own.tokens
    assert own.requests == (Request(0, 0, 0, 1), Request(5, 0, 0, 2))


def test_bad_lines_are_told_with_their_numbers_and_left_out() -> None:
    rows = ["at,prompt,output", "1,2,3", "x,2,3", "1,2", "2,-1,3", "3,nan,1", "4,1e30,1", "5,1,1", *["y,1,1"] * 20]
    trace = parse(io.StringIO("\n".join(rows)))
    assert (len(trace.requests), trace.bad, trace.lines) == (2, 25, 27)
    assert [problem.line for problem in trace.problems] == [3, 4, 5, 6, 7, 9, 10, 11, 12, 13]
    assert trace.problems[1].message == "has 2 fields instead of 3"
    broken = parse(
        io.StringIO('{"timestamp": 1, "input_length": 5, "output_length": 7}\n{"timest\n[1]\n{"timestamp": 1}\n')
    )
    assert [problem.line for problem in broken.problems] == [2, 3, 4]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "at\nx\n", '{"x": 1}\n', "\x00\x01\x02"])
def test_a_file_without_a_request_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse(io.StringIO(text))


def test_a_machine_with_tokens_takes_the_times_that_its_numbers_say() -> None:
    engine = Engine(prefill=1000, attention=1e12, chunk=100, step=0.01, sequence=1e-9, context=1e-12)
    one = TokenMachine(engine)
    one.add(Job(0, Request(0, 500, 101, 1), 0.0), 0.0)
    assert one.due() == pytest.approx(0.5)
    assert one.advance(one.due()) == []
    assert one.due() == pytest.approx(1.5)  # 100 more tokens at 10 ms
    second = Job(1, Request(0, 200, 1, 1), 1.0)
    one.add(second, 1.0)  # its prompt takes 0.2 s, in which the first gets a token each 100 ms
    assert one.advance(one.due()) == [second]
    assert second.end == pytest.approx(1.2)
    assert one.due() == pytest.approx(1.2 + 0.48)
    assert [job.number for job in one.advance(one.due())] == [0]
    assert one.load == 0


def test_a_cache_without_room_makes_the_next_wait() -> None:
    one = TokenMachine(Engine(prefill=1000, attention=1e12, chunk=100, step=0.01, cache=1000))
    for number in range(2):
        one.add(Job(number, Request(0, 700, 11, 1), 0.0), 0.0)
    first = None
    while first is None:
        done = one.advance(one.due())
        first = done[0] if done else None
    assert one.due() == pytest.approx(first.end + 0.7, rel=1e-3)


def test_a_machine_with_a_curve_shares_its_throughput() -> None:
    one = CurveMachine(Curve((Point(1, 1, 1), Point(2, 1.5, 1.3)), 1.0))
    for number in range(3):
        one.add(Job(number, Request(0, 0, 0, 1), 0.0), 0.0)
    ends = []
    while one.load:
        ends += [job.end for job in one.advance(one.due())]
    assert ends == pytest.approx([4 / 3, 4 / 3, 4 / 3 + 1])


def test_a_load_test_of_a_curve_finds_that_curve() -> None:
    curve = Curve((Point(1, 10, 0.1), Point(8, 40, 0.2)), 1.0)
    requests = (Request(0, 0, 0, 1),) * 50
    assert measured(requests, CurveMachine(curve), 8).throughput == pytest.approx(40, rel=0.01)
    alone = measured(requests, CurveMachine(curve), 1)
    assert [alone.throughput, alone.p95] == pytest.approx([10, 0.1])


@pytest.mark.parametrize(
    ("body", "words"), [({"speed": 1}, "engine.speed"), ({"step": 0}, "engine.step"), ({"step": "a"}, "above zero")]
)
def test_a_wrong_engine_is_told(body: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        engine_of(body)


def _trace(*times: float) -> Trace:
    return Trace(tuple(Request(at, 0, 0, 1) for at in times), tokens=False, lines=len(times), bad=0, problems=())


def _run(trace: Trace, replicas: int, cold_start: float = 30.0, begin: int = 0) -> Outcome:
    world = World(lambda: CurveMachine(ONE), cold_start, Objective(p95=3.0), begin)
    return Run(trace, Fixed(replicas), world).run()


def test_requests_are_held_until_the_first_replica_is_ready() -> None:
    found = _run(_trace(0, 1, 2), 1)
    assert sorted(found.latency) == pytest.approx([31, 31, 31])  # ready at 30, then one after another
    assert found.misses == 3
    assert found.replica_seconds == pytest.approx(33, abs=1)


def test_the_fewest_requests_get_the_next_one() -> None:
    found = _run(_trace(0.1, 0.2, 0.3, 0.4), 2, begin=2)
    assert sorted(found.latency) == pytest.approx([1.0, 1.0, 1.8, 1.8])
    assert (found.misses, found.reversals, found.unanswered) == (0, 0, 0)


def test_nobody_to_answer_ends_all_the_same() -> None:
    found = _run(_trace(0, 1), 0)
    assert (found.unanswered, found.misses) == (2, 2)


class Scripted:
    name = "scripted"

    def __init__(self, *wanted: int) -> None:
        self._wanted = wanted

    def wanted(self, seen: Seen, now: float) -> int:
        """As the script says from the second 100 on."""
        return self._wanted[max(0, min(int(now) - 100, len(self._wanted) - 1))]


def test_a_replica_that_goes_answers_what_it_has_and_is_paid_until_then() -> None:
    world = World(lambda: CurveMachine(ONE), 2.0, Objective(), 2)
    found = Run(_trace(100.5, 100.5, 100.5, 100.5), Scripted(2, 1, 2), world).run()
    assert len(found.latency) == 4
    assert (found.changes, found.reversals, found.most) == (2, 1, 2)


def test_nobody_goes_below_its_beginning_while_its_windows_fill() -> None:
    world = World(lambda: CurveMachine(ONE), 2.0, Objective(), 3)
    found = Run(_trace(0, 70), Fixed(1), world).run()
    assert found.wanted[59:61] == [3, 1]


CONFIG = Autoscaling(min=1, max=50, concurrency=10.0)  # a target of 7


def _asked(policy: Kpa | Hpa, actives: list[float]) -> list[int]:
    replicas, rows = 1, []
    for second, active in enumerate(actives):
        replicas = policy.wanted(Seen(active, 0, 1.0, replicas, replicas), float(second))
        rows.append(replicas)
    return rows


def test_kpa_panics_at_twice_and_comes_down_only_after_a_minute_of_calm() -> None:
    rows = _asked(Kpa(CONFIG, ONE), [7.0] * 60 + [70.0] * 10 + [7.0] * 120)
    assert set(rows[:60]) == {1}
    assert max(rows) == 10
    peak = rows.index(10)
    assert all(a <= b for a, b in pairwise(rows[60:120]))
    assert rows[peak + 50] == 10
    assert rows[-1] <= 2


def test_hpa_keeps_within_its_tolerance_and_waits_five_minutes() -> None:
    rows = _asked(Hpa(CONFIG, ONE), [7.5] * 60 + [28.0] * 60 + [7.0] * 400)
    assert set(rows[:60]) == {1}
    assert max(rows) == 4
    assert rows[120 + 280] == 4
    assert rows[-1] == 1
