"""Preemption and reclaim over the whole scheduler: few victims, only for one that then starts, in-quota work left in
peace, and an end to it in cohort trees of any shape (Kueue's proof leaves hierarchies out)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from penstock.base.reasons import Reason
from penstock.scheduling import patience
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.lines import Entry
from penstock.scheduling.preemption import search
from penstock.scheduling.spec import Cohort, Queue, Quota, Setup
from penstock.scheduling.state import Admit, Ask, Evict, Gpu, Held, NodeState, Part, Policy, Share, Topology, Workload

GPUS = 4
MOST_CYCLES = 400


def node(number: int) -> NodeState:
    gpus = tuple(Gpu(f"g{at}") for at in range(GPUS))
    return NodeState(f"n{number}", gpus=gpus, topology=(f"block-{number // 4}", f"rack-{number // 2 % 2}"))


@st.composite
def setups(draw: st.DrawFn, *, evictions: int = 3) -> Setup:
    names = [f"c{i}" for i in range(draw(st.integers(1, 4)))]
    cohorts = {
        name: Cohort(
            name,
            draw(st.none() | st.sampled_from(names[:at])) if at else None,
            {"default": {"gpus": Quota(0.0, draw(st.none() | st.integers(0, 8).map(float)))}}
            if draw(st.booleans())
            else {},
            draw(st.sampled_from([1.0, 1.0, 2.0])),
        )
        for at, name in enumerate(names)
    }
    limits = st.none() | st.integers(0, 8).map(float)
    queues = {}
    for number in range(draw(st.integers(2, 5))):
        quotas = {"default": {"gpus": Quota(float(draw(st.integers(0, 8))), draw(limits), draw(limits))}}
        queues[f"q{number}"] = Queue(
            f"q{number}",
            draw(st.sampled_from(names)),
            quotas if draw(st.integers(0, 9)) else {},
            draw(st.sampled_from([1.0, 2.0])),
            reclaim_within_cohort=draw(st.sampled_from(["any", "any", "lower_priority", "never"])),
            preempt_within_queue=draw(st.sampled_from(["never", "lower_priority"])),
            reclaim_after_s=draw(st.none() | st.just(5.0)),
        )
    policy = Policy(
        order=draw(st.sampled_from(["fifo", "fairshare"])),
        blocking=draw(st.sampled_from(["strict", "skip"])),
        preemption=draw(st.booleans()),
        max_evictions=evictions,
    )
    return Setup(policy=policy, queues=queues, cohorts=cohorts)


jobs = st.lists(
    st.tuples(
        st.integers(0, 4),  # queue
        st.integers(1, 2),  # groups
        st.integers(1, GPUS),  # GPUs a group
        st.integers(0, 2),  # priority
        st.sampled_from([None, None, None, Topology("rack", required=True)]),
        st.sampled_from([0.0, 0.0, 2.0]),  # grace
        st.booleans(),  # then let a cycle pass
    ),
    min_size=1,
    max_size=16,
)
Job = tuple[int, int, int, int, Topology | None, float, bool]


class Run:
    """Workloads that never end by themselves; the evicted leave after their grace and stand in line again."""

    def __init__(self, setup: Setup, nodes: int) -> None:
        self.setup, self.now = setup, 0.0
        self.view = Scheduler(setup)
        for number in range(nodes):
            self.view.put_node(node(number))
        self.held: dict[str, tuple[Workload, tuple[Share, ...]]] = {}
        self.leaving: dict[str, float] = {}
        self.evicted: Counter[str] = Counter()
        self.cleared: dict[str, str] = {}  # for whom -> one of its victims
        self.waiting: dict[str, Workload] = {}
        self.count = 0

    def submit(self, job: Job) -> None:
        queue, groups, gpus, priority, topology, grace, _ = job
        self.count += 1
        w = Workload(
            f"w{self.count}", f"w{self.count}", self.now, (Part(groups, Ask(gpus=gpus)),),
            queue=f"q{queue % len(self.setup.queues)}", priority=priority, topology=topology, seq=self.count, grace_s=grace,
        )  # fmt: skip
        self.waiting[w.id] = w
        self.view.submit(w)

    def cycle(self) -> bool:
        """One instant; whether anything happened."""
        for id_, at in list(self.leaving.items()):
            if at <= self.now:
                del self.leaving[id_]
                w, _ = self.held.pop(id_)
                self.view.end(id_, self.now)
                again = self.waiting[id_] = replace(w, evictions=w.evictions + 1)
                self.view.submit(again)
        decision = self.view.plan(self.now)
        for evict in decision.evict:
            self.evict(evict)
        for admit in decision.admit:
            self.admit(admit)
        self.sums()
        self.now += 1.0
        return bool(decision.evict or decision.admit or self.leaving)

    def evict(self, evict: Evict) -> None:
        w, _ = self.held[evict.id]
        assert evict.id not in self.leaving
        assert w.evictions < self.setup.policy.max_evictions
        assert evict.for_id in self.waiting
        self.evicted[evict.id] += 1
        self.leaving[evict.id] = self.now + w.grace_s
        self.cleared[evict.for_id] = evict.id

    def admit(self, admit: Admit) -> None:
        w = self.waiting.pop(admit.id)
        assert sum(part.count for part in w.parts) == len(admit.shares)
        self.held[admit.id] = (w, admit.shares)
        self.cleared.pop(admit.id, None)

    def sums(self) -> None:
        """Quotas of every queue and cohort, by what is held and what is kept for preemptors."""
        quotas = self.view.quotas
        cell = ("default", "gpus")
        for name, tree in quotas.queues.items():
            if not tree.limited:
                continue
            ids = [id_ for id_, (w, _) in self.held.items() if w.queue == name and id_ not in self.leaving]
            used = sum(self.gpus(self.held[id_][0]) for id_ in ids)
            used += sum(self.gpus(one.entry.w) for one in self.view.awaiting.values() if one.entry.w.queue == name)
            assert tree.usage.get(cell, 0.0) == used
        for tree in (*quotas.queues.values(), *quotas.cohorts.values()):
            limit = tree.quotas[cell].borrowing_limit if cell in tree.quotas else None
            if tree.limited or tree.name in quotas.cohorts:
                use, own = tree.usage.get(cell, 0.0), tree.subtree.get(cell, 0.0)
                assert tree.parent is not None or use <= own
                assert limit is None or tree.parent is None or use <= own + limit
        taken = Counter((share.node, gpu) for _, shares in self.held.values() for share in shares for gpu in share.gpus)
        assert max(taken.values(), default=1) == 1

    @staticmethod
    def gpus(w: Workload) -> int:
        return sum(part.count * part.ask.gpus for part in w.parts)

    def quiet(self) -> None:
        """Until nothing happens any more; and for whomever others were evicted has started."""
        for _ in range(MOST_CYCLES):
            if not self.cycle():
                break
        else:
            raise AssertionError(f"no end after {MOST_CYCLES} cycles: {self.evicted}")
        assert not self.cleared


@given(setups(), jobs, st.integers(1, 6))
def test_it_ends_and_whoever_others_were_evicted_for_starts(setup: Setup, todo: list[Job], nodes: int) -> None:
    run = Run(setup, nodes)
    for job in todo:
        run.submit(job)
        if job[-1]:
            run.cycle()
    run.quiet()
    assert max(run.evicted.values(), default=0) <= setup.policy.max_evictions
    evicted = sum(run.evicted.values())
    assert evicted <= setup.policy.max_evictions * len(todo)


@given(setups(evictions=1000), jobs, st.integers(1, 6))
def test_it_ends_without_counting_evictions(setup: Setup, todo: list[Job], nodes: int) -> None:
    """The rules alone leave no loop, in cohorts within cohorts too."""
    run = Run(setup, nodes)
    for job in todo:
        run.submit(job)
        if job[-1]:
            run.cycle()
    run.quiet()


@given(setups(), jobs, st.integers(1, 6))
def test_few_victims_and_none_within_quota(setup: Setup, todo: list[Job], nodes: int) -> None:
    """Every victim is needed, and borrowed where it is reclaimed; the GPUs taken are bounded by the GPUs asked for."""
    run = Run(setup, nodes)
    for job in todo:
        run.submit(job)
        run.cycle()
        if run.view.awaiting or run.leaving:
            continue  # what is kept for others would have to be told apart
        before = run.view.snapshot()
        for entry in _unlike(run.view.lines.entries.values()):
            _check(run, entry)
        assert run.view.snapshot() == before  # a search changes nothing


def _unlike(entries: Iterable[Entry]) -> list[Entry]:
    """One of each: of those that ask the same of the same queue at the same priority, all searches find the same."""
    return list({(one.kind, one.w.queue, one.w.priority): one for one in entries}.values())


def _check(run: Run, entry: Entry) -> None:
    view = run.view
    found = search(view, entry, run.now)
    if found is None:
        return
    assert not _fits(run, entry.w, [])
    victims = [view.held[evict.id] for evict in found.evict]
    for evict, holding in zip(found.evict, victims, strict=True):
        w = holding.held.workload
        if evict.reason is Reason.Reclaimed:
            assert view.quotas.above_nominal(w.queue, "default", ["gpus"])
            assert w.queue != entry.w.queue
        elif evict.reason is Reason.Preempted:
            assert w.priority < entry.w.priority
    # A victim is needed for a GPU of quota or for a GPU's place, and each gives one at least; a gang leaves whole.
    asked = run.gpus(entry.w)
    assert len(victims) <= 2 * asked
    largest = max(run.gpus(holding.held.workload) for holding in victims)
    assert sum(run.gpus(holding.held.workload) for holding in victims) <= 2 * asked * largest
    for spared in range(-1, len(victims)):
        assert _fits(run, entry.w, [h.held.workload.id for at, h in enumerate(victims) if at != spared]) == (spared < 0)


def _fits(run: Run, w: Workload, without: list[str]) -> bool:
    """Whether quota and nodes let it start on a scheduler that never knew these."""
    fresh = Scheduler(run.setup)
    for state in run.view.pool.states():
        fresh.put_node(state)
    for holding in run.view.held.values():
        if holding.held.workload.id not in without:
            fresh.begin(holding.held)
    return fresh.refused(w) is None and fresh.pool.find(w) is not None


def node_with(gpus: int) -> NodeState:
    return NodeState("n0", gpus=tuple(Gpu(f"g{at}") for at in range(gpus)))


def job(name: str, queue: str, gpus: int, seq: int, priority: int = 0) -> Workload:
    return Workload(name, name, 0.0, (Part(1, Ask(gpus=gpus)),), queue=queue, seq=seq, priority=priority)


def lab(policy: Policy, **more: float | None) -> Scheduler:
    quota = {"default": {"gpus": Quota(4.0)}}
    queues = {name: Queue(name, "lab", quota, **more) for name in ("a", "b")}  # type: ignore[arg-type]  # of one kind
    view = Scheduler(Setup(policy=policy, queues=queues, cohorts={"lab": Cohort("lab")}))
    view.put_node(node_with(8))
    return view


def test_a_queue_takes_back_its_own_and_no_more() -> None:
    view = lab(Policy())
    for seq in range(4):
        view.submit(job(f"a{seq}", "a", 2, seq))
    assert [admit.borrowed for admit in view.plan(0.0).admit] == [0.0, 0.0, 2.0, 2.0]
    view.submit(job("b0", "b", 2, 9))
    decision = view.plan(1.0)
    (evict,) = decision.evict
    assert (evict.id, evict.reason, evict.for_id) == ("a3", Reason.Reclaimed, "b0")
    assert evict.message == "queue a had borrowed it; b0 of queue b takes back its own quota"
    view.submit(job("a9", "a", 1, 10))
    assert view.plan(1.5).admit == ()  # what was freed is kept for b0
    view.end("a3", 2.0)
    assert [admit.id for admit in view.plan(2.0).admit] == ["b0"]


def test_a_higher_priority_evicts_the_lowest_that_started_last() -> None:
    view = Scheduler(Setup(policy=Policy(preemption=True)))
    view.put_node(node_with(4))
    for seq, priority in enumerate([1, 0, 0, 2]):
        view.submit(job(f"w{seq}", "default", 1, seq, priority))
        view.plan(float(seq))
    view.submit(job("high", "default", 2, 9, 2))
    assert [evict.id for evict in view.plan(9.0).evict] == ["w2", "w1"]
    view.submit(job("equal", "default", 1, 10, 1))
    assert view.plan(9.0).evict == ()


def test_idle_ones_go_first() -> None:
    view = lab(Policy(), reclaim_after_s=10.0)
    ask = Ask(gpus=4)
    for at, name in enumerate(("a", "b")):
        shares = (Share("n0", ask, tuple(f"g{at * 4 + n}" for n in range(4))),)
        view.begin(Held(job(f"{name}0", name, 4, at), shares, 0.0, idle_since=5.0 if name == "b" else None))
    view.submit(job("b1", "b", 4, 2))
    assert view.plan(14.0).evict == ()
    view.submit(job("b2", "b", 4, 3, 1))
    (evict,) = view.plan(15.0).evict
    assert (evict.id, evict.reason, evict.for_id) == ("b0", Reason.IdleReclaimed, "b2")


def test_patience_ends_while_somebody_waits() -> None:
    """Nothing else happens: the scheduler says when to look again, and evicts then; in queues without any quota too."""
    view = Scheduler(Setup(Policy(), {"default": Queue("default", reclaim_after_s=10.0)}))
    view.put_node(node_with(8))
    view.submit(job("lazy", "default", 8, 0))
    view.plan(0.0)
    view.submit(job("next", "default", 8, 1))
    assert view.plan(1.0).evict == ()
    patience.set_idle(view, "lazy", 2.0)
    assert view.wake_at() == 12.0
    assert view.plan(11.0).evict == ()
    (evict,) = view.plan(12.0).evict
    assert (evict.id, evict.reason, evict.for_id) == ("lazy", Reason.IdleReclaimed, "next")
    view.end("lazy", 13.0)
    assert [admit.id for admit in view.plan(13.0).admit] == ["next"]
    assert view.wake_at() == math.inf


def test_who_works_again_is_left_alone() -> None:
    view = Scheduler(Setup(Policy(), {"default": Queue("default", reclaim_after_s=10.0)}))
    view.put_node(node_with(8))
    view.submit(job("lazy", "default", 8, 0))
    view.plan(0.0)
    view.submit(job("next", "default", 8, 1))
    patience.set_idle(view, "lazy", 2.0)
    patience.set_idle(view, "lazy", None)
    assert view.plan(50.0).evict == ()
    assert view.wake_at() == math.inf


def test_who_borrows_less_takes_from_who_borrows_more() -> None:
    """Kueue's fair sharing: b may borrow too, until both borrow alike."""
    quota = {"default": {"gpus": Quota(0.0)}}
    pot = Cohort("lab", None, {"default": {"gpus": Quota(8.0)}})
    queues = {name: Queue(name, "lab", quota) for name in ("a", "b")}
    view = Scheduler(Setup(Policy(order="fairshare", preemption=True), queues, {"lab": pot}))
    view.put_node(node_with(8))
    for seq in range(4):
        view.submit(job(f"a{seq}", "a", 2, seq))
    view.plan(0.0)
    for seq in range(3):
        view.submit(job(f"b{seq}", "b", 2, 10 + seq))
    taken = []
    for at in range(1, 6):
        for evict in view.plan(float(at)).evict:
            taken.append(evict.id)
            assert evict.message.startswith("queue a borrows more than its fair share")
            view.end(evict.id, float(at))
    assert taken == ["a3", "a2"]


def test_nobody_is_evicted_where_somebody_is_leaving_anyway() -> None:
    view = lab(Policy())
    ask = Ask(gpus=2)
    for at in range(4):
        shares = (Share("n0", ask, (f"g{2 * at}", f"g{2 * at + 1}")),)
        view.begin(Held(job(f"a{at}", "a", 2, at), shares, float(at), leaving=at == 1))
    view.submit(job("b0", "b", 2, 9))
    assert view.plan(9.0).evict == ()
    view.end("a1", 10.0)
    assert [admit.id for admit in view.plan(10.0).admit] == ["b0"]


def test_an_eviction_and_an_admission_of_one_cycle_are_never_of_the_same() -> None:
    """Who came first is served first, beyond its quota; b takes its own back a moment later, not at once."""
    quota = {"default": {"gpus": Quota(1.0)}}
    queues = {"a": Queue("a", "lab", quota), "b": Queue("b", "lab", {"default": {"gpus": Quota(3.0)}})}
    view = Scheduler(Setup(queues=queues, cohorts={"lab": Cohort("lab")}))
    view.put_node(node_with(4))
    for seq in range(4):
        view.submit(job(f"a{seq}", "a", 1, seq))
    view.submit(job("b0", "b", 2, 9))
    first = view.plan(0.0)
    assert [admit.id for admit in first.admit] == ["a0", "a1", "a2", "a3"]
    assert first.evict == ()
    assert view.wake_at() == 1.0
    assert [evict.id for evict in view.plan(1.0).evict] == ["a3", "a2"]


def test_a_refusal_names_who_borrows() -> None:
    quota = {"default": {"gpus": Quota(4.0)}}
    never = {"reclaim_within_cohort": "never"}
    queues = {name: Queue(name, "lab", quota, **never) for name in ("a", "b")}  # type: ignore[arg-type]  # of one kind
    view = Scheduler(Setup(queues=queues, cohorts={"lab": Cohort("lab")}))
    view.put_node(node_with(8))
    for seq in range(3):
        view.submit(job(f"a{seq}", "a", 2, seq))
    view.plan(0.0)
    view.submit(job("b0", "b", 3, 9))
    view.plan(1.0)
    assert view.why("b0", 1.0).message == (
        "needs 3 GPUs of default; queue b may have 2 more now (it uses 0, its nominal quota is 4); "
        "borrowed by others: 2 by a"
    )
