"""A scheduler that is built anew, at any cycle, decides as the one before would have."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.plan import build
from penstock.scheduling.spec import Cohort, Queue, Quota, Setup
from penstock.scheduling.state import Ask, Decision, Gpu, NodeState, Part, Policy, Reservation, Workload

policies = st.builds(
    Policy,
    order=st.sampled_from(["fifo", "sjf", "fairshare"]),
    blocking=st.sampled_from(["strict", "skip"]),
    backfill=st.sampled_from(["none", "easy", "conservative"]),
    preemption=st.booleans(),
    depth=st.sampled_from([2, 100]),
    decay_half_life_s=st.just(1024.0),
)
quotas = st.sampled_from([None, 2.0, 4.0])
works = st.builds(
    Workload,
    st.just(""),
    st.just(""),
    st.just(0.0),
    st.builds(lambda count, gpus: (Part(count, Ask(gpus=gpus)),), st.integers(1, 2), st.integers(1, 4)),
    queue=st.sampled_from(["a", "b"]),
    user=st.sampled_from(["ann", "bob"]),
    priority=st.integers(0, 2),
    limit_s=st.sampled_from([None, 10.0, 30.0, 100.0]),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), works),
        st.tuples(st.just("submit"), works),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("withdraw"), st.integers(0, 9)),
        st.tuples(st.just("close"), st.integers(0, 2)),
        st.tuples(st.just("window"), st.integers(0, 2)),
        st.tuples(st.just("wait"), st.sampled_from([1.0, 5.0, 20.0])),
    ),
    max_size=30,
)


def setup_of(policy: Policy, a: float | None, b: float | None) -> Setup:
    def queue(name: str, nominal: float | None) -> Queue:
        own = {"default": {"gpus": Quota(nominal)}} if nominal is not None else {}
        return Queue(name, "all", own, preempt_within_queue="lower_priority")

    return Setup(policy, {"a": queue("a", a), "b": queue("b", b)}, {"all": Cohort("all")})


@dataclass
class World:
    """What happens around a scheduler: work ends by its limit at the latest, and victims when their grace is over."""

    scheduler: Scheduler
    now: float = 0.0
    count: int = 0
    closed: dict[str, bool] = field(default_factory=dict)
    again: list[Workload] = field(default_factory=list)

    def __post_init__(self) -> None:
        for n in range(3):
            self.scheduler.put_node(node(f"n{n}"))

    def do(self, what: str, value: object) -> None:
        scheduler = self.scheduler
        if what == "submit":
            assert isinstance(value, Workload)
            self.count += 1
            id_ = f"j{self.count}"
            scheduler.submit(replace(value, id=id_, name=id_, queued_at=self.now, seq=self.count))
        elif what == "wait":
            assert isinstance(value, float)
            self.now += value
            for id_, holding in list(scheduler.held.items()):
                if holding.end <= self.now or (holding.held.leaving and value > 1):
                    self.end(id_)
        elif what == "window":
            one = Reservation(f"w{value}", self.now + 15, self.now + 40, frozenset({f"n{value}"}), maintenance=True)
            scheduler.put_reservation(one)
        elif what == "close":
            name = f"n{value}"
            self.closed[name] = not self.closed.get(name, False)
            scheduler.put_node(replace(node(name), open=not self.closed[name]))
        else:
            assert isinstance(value, int)
            ids = sorted(scheduler.held if what == "end" else scheduler.lines.entries)
            if value < len(ids):
                if what == "end":
                    self.end(ids[value])
                else:
                    scheduler.withdraw(ids[value])

    def end(self, id_: str) -> None:
        holding = self.scheduler.held[id_]
        evicted, w = not holding.held.counted, holding.held.workload
        self.scheduler.end(id_, self.now)
        if evicted:
            self.scheduler.submit(replace(w, queued_at=self.now, evictions=w.evictions + 1))

    def cycle(self) -> Decision:
        return self.scheduler.plan(self.now)

    def restart(self) -> None:
        self.scheduler = build(self.scheduler.setup, self.scheduler.snapshot(), self.now)


def node(name: str) -> NodeState:
    return NodeState(name, gpus=tuple(Gpu(f"{name}-{n}") for n in range(4)))


@given(policies, quotas, quotas, steps, st.sets(st.integers(0, 29)))
def test_a_restart_changes_no_decision(
    policy: Policy, a: float | None, b: float | None, todo: list[tuple[str, object]], restarts: set[int]
) -> None:
    setup = setup_of(policy, a, b)
    steady, often = World(Scheduler(setup)), World(Scheduler(setup))
    for number, (what, value) in enumerate(todo):
        if number in restarts:
            often.restart()
            steady.scheduler.wake()
        steady.do(what, value)
        often.do(what, value)
        expected, found = steady.cycle(), often.cycle()
        assert found.admit == expected.admit
        assert found.evict == expected.evict
        assert told(often) == told(steady)


def told(world: World) -> dict[str, float]:
    return {id_: window.promise.start for id_, window in world.scheduler.windows.items()}
