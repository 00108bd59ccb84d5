"""What must hold after any sequence of operations on the scheduler, whatever the policy."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.plan import plan
from penstock.scheduling.spec import Setup
from penstock.scheduling.state import Admit, Ask, Gpu, NodeState, Part, Policy, Share, Topology, Workload

GIB = 1 << 30
Step = tuple[str, int]
Shape = tuple[tuple[Part, ...], int, float | None, Topology | None, frozenset[str]]


def node(number: int, *, is_open: bool = True) -> NodeState:
    """Two blocks whose racks bear the same names; every third node is of another model, every fifth is cut by MIG."""
    model = "A100" if number % 3 == 0 else "H100"
    mig = ("3g.40gb", "3g.40gb") if number % 5 == 4 else ()
    gpus = tuple(Gpu(f"n{number}-g{at}", model, mig if at == 0 else ()) for at in range(4))
    path = (f"block-{number % 2}", f"rack-{number // 2 % 2}")
    return NodeState(f"n{number}", 8.0, 16 * GIB, gpus, topology=path, open=is_open)


asks = st.one_of(
    st.builds(Ask, cpus=st.sampled_from([0.0, 0.1, 2.0, 5.0]), gpus=st.integers(0, 4)),
    st.builds(Ask, memory=st.sampled_from([0, 6 * GIB]), gpus=st.integers(1, 2), gpu_models=st.just(("A100",))),
    st.builds(Ask, gpu_milli=st.sampled_from([250, 400, 700])),
    st.builds(Ask, gpus=st.integers(1, 2), mig=st.just("3g.40gb")),
)
topologies = st.none() | st.builds(Topology, st.sampled_from(["block", "rack", "host"]), st.booleans())
shapes = st.tuples(
    st.lists(st.builds(Part, st.integers(1, 3), asks), min_size=1, max_size=2).map(tuple),
    st.integers(0, 2),
    st.sampled_from([None, 5.0, 20.0]),
    topologies,
    st.frozensets(st.sampled_from(["n0", "n1", "n2"]), max_size=2),
)
policies = st.builds(
    Policy,
    order=st.sampled_from(["fifo", "sjf"]),
    blocking=st.sampled_from(["strict", "skip"]),
    backfill=st.just("none"),
    placement=st.just("bestfit"),
)
steps = st.lists(
    st.tuples(
        st.sampled_from(["submit"] * 4 + ["end"] * 2 + ["withdraw", "lose", "come_back", "cordon"]), st.integers(0, 40)
    ),
    min_size=1,
    max_size=25,
)


class Run:
    """A scheduler, and a plain account of its own of everything that it was told and answered."""

    def __init__(self, policy: Policy, shapes: list[Shape], nodes: int) -> None:
        self.setup = Setup(policy=policy)
        self.scheduler = Scheduler(self.setup)
        self.shapes, self.now, self.count = shapes, 0.0, 0
        self.fleet = {f"n{i}": node(i) for i in range(nodes)}
        self.away: dict[str, NodeState] = {}
        self.held: dict[str, tuple[Workload, tuple[Share, ...]]] = {}
        self.queued: dict[str, Workload] = {}
        for each in self.fleet.values():
            self.scheduler.put_node(each)

    def do(self, step: Step) -> None:
        self.now += 1.0
        getattr(self, step[0])(step[1])

    def submit(self, number: int) -> None:
        parts, priority, limit, topology, exclude = self.shapes[number % len(self.shapes)]
        self.count += 1
        w = Workload(
            f"w{self.count}", f"w{self.count}", self.now, parts, priority=priority, limit_s=limit,
            topology=topology, exclude=exclude, seq=self.count,
        )  # fmt: skip
        self.queued[w.id] = w
        self.scheduler.submit(w)

    def end(self, number: int) -> None:
        if self.held:
            id_ = list(self.held)[number % len(self.held)]
            del self.held[id_]
            self.scheduler.end(id_, self.now)

    def withdraw(self, number: int) -> None:
        if self.queued:
            id_ = list(self.queued)[number % len(self.queued)]
            del self.queued[id_]
            self.scheduler.withdraw(id_)

    def lose(self, number: int) -> None:
        """The node goes, and with it, whole, every gang that had a group there."""
        if self.fleet:
            name = list(self.fleet)[number % len(self.fleet)]
            self.away[name] = self.fleet.pop(name)
            self.scheduler.drop_node(name)
            for id_, (_, shares) in list(self.held.items()):
                if any(share.node == name for share in shares):
                    del self.held[id_]
                    self.scheduler.end(id_, self.now)

    def cordon(self, number: int) -> None:
        if self.fleet:
            name = list(self.fleet)[number % len(self.fleet)]
            self.fleet[name] = replace(self.fleet[name], open=not self.fleet[name].open)
            self.scheduler.put_node(self.fleet[name])

    def come_back(self, number: int) -> None:
        if self.away:
            name = list(self.away)[number % len(self.away)]
            self.fleet[name] = self.away.pop(name)
            self.scheduler.put_node(self.fleet[name])

    def cycle(self) -> list[Admit]:
        decision = self.scheduler.plan(self.now)
        for admit in decision.admit:
            self.held[admit.id] = (self.queued.pop(admit.id), admit.shares)
        return list(decision.admit)

    def not_over_committed(self) -> None:
        cpus: dict[str, float] = defaultdict(float)
        memory: Counter[str] = Counter()
        milli: Counter[str] = Counter()
        instances: Counter[str] = Counter()
        for _, shares in self.held.values():
            for share in shares:
                ask = share.ask
                assert share.node in self.fleet
                cpus[share.node] += ask.cpus
                memory[share.node] += ask.memory
                for gpu in share.gpus:
                    if ask.mig:
                        instances[gpu] += 1
                    else:
                        milli[gpu] += ask.gpu_milli or 1000
        assert all(cpus[name] <= each.cpus + 1e-6 and memory[name] <= each.memory for name, each in self.fleet.items())
        assert max(milli.values(), default=0) <= 1000
        assert max(instances.values(), default=0) <= 1
        cut = {gpu.id for each in self.fleet.values() for gpu in each.gpus if gpu.mig}
        assert not cut & milli.keys()
        assert {gpu.split(":")[0] for gpu in instances} <= cut


@st.composite
def runs(draw: st.DrawFn) -> tuple[Run, list[Step]]:
    return Run(draw(policies), draw(st.lists(shapes, min_size=1, max_size=5)), draw(st.integers(1, 7))), draw(steps)


@given(runs())
def test_never_over_committed_and_gangs_are_whole(given_: tuple[Run, list[Step]]) -> None:
    run, todo = given_
    for step in todo:
        run.do(step)
        for admit in run.cycle():
            w = run.held[admit.id][0]
            assert Counter(share.ask for share in admit.shares) == sum(
                (Counter({part.ask: part.count}) for part in w.parts), Counter()
            )
            assert len({share.node for share in admit.shares}) == len(admit.shares)
        run.not_over_committed()
        assert set(run.scheduler.held) == set(run.held)
        assert set(run.scheduler.lines.entries) | set(run.scheduler.aside) == set(run.queued)


@given(runs())
def test_only_where_it_may_be(given_: tuple[Run, list[Step]]) -> None:
    """Open nodes, no excluded one, the right model and number of GPUs, and one domain where that is required."""
    run, todo = given_
    for step in todo:
        run.do(step)
        for admit in run.cycle():
            w = run.held[admit.id][0]
            for share in admit.shares:
                there = run.fleet[share.node]
                assert there.open
                assert share.node not in w.exclude
                models = {gpu.id: gpu.model for gpu in there.gpus}
                assert all(models[gpu.split(":")[0]] in (share.ask.gpu_models or models.values()) for gpu in share.gpus)
                assert len(set(share.gpus)) == (1 if share.ask.gpu_milli else share.ask.gpus)
            if w.topology is not None and w.topology.required:
                depth = {"block": 1, "rack": 2, "host": 2}[w.topology.level]
                places = {run.fleet[share.node].topology[:depth] for share in admit.shares}
                assert len(places) == 1
                assert w.topology.level != "host" or len(admit.shares) == 1


@given(runs())
def test_incremental_decides_as_from_scratch(given_: tuple[Run, list[Step]]) -> None:
    run, todo = given_
    for step in todo:
        run.do(step)
        scratch = plan(run.setup, run.scheduler.snapshot(), run.now)
        assert tuple(run.cycle()) == scratch.admit


@given(runs())
def test_the_same_again(given_: tuple[Run, list[Step]]) -> None:
    run, todo = given_
    for step in todo:
        run.do(step)
        snapshot = run.scheduler.snapshot()
        assert plan(run.setup, snapshot, run.now) == plan(run.setup, snapshot, run.now)
        run.cycle()


def test_which_domain_is_first_does_not_depend_on_nodes_that_are_gone() -> None:
    run = Run(Policy(), [((Part(1, Ask(gpus=1)),), 0, None, Topology("block"), frozenset())], 5)
    for step in (("submit", 0), ("lose", 0), ("submit", 0)):
        run.do(step)
        scratch = plan(run.setup, run.scheduler.snapshot(), run.now)
        assert tuple(run.cycle()) == scratch.admit
