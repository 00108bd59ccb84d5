"""Quotas in a tree of cohorts against a recomputation by definition, after every commit."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduling.quota import Quotas, TreeNode, totals
from penstock.scheduling.spec import Cohort, Queue, Quota, Setup
from penstock.scheduling.state import Ask, Part

CELLS = [("h100", "gpus"), ("h100", "cpus"), ("a100", "gpus")]
MOST = 8
cells = st.integers(0, (1 << len(CELLS)) - 1)
numbers = st.integers(0, (MOST + 1) * 18 * 18 - 1)  # one draw for three figures: drawing costs more than checking


def quota_of(number: int) -> Quota:
    """A nominal quota, and each limit in half of the cases."""
    number, nominal = divmod(number, MOST + 1)
    borrowing, lending = (float(one) if one <= MOST else None for one in divmod(number, 18))
    return Quota(float(nominal), borrowing, lending)


@st.composite
def quota_maps(draw: st.DrawFn) -> dict[str, dict[str, Quota]]:
    found: dict[str, dict[str, Quota]] = defaultdict(dict)
    chosen = draw(cells)
    for at, (flavor, resource) in enumerate(CELLS):
        if chosen >> at & 1:
            found[flavor][resource] = quota_of(draw(numbers))
    return dict(found)


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    """A forest of cohorts, up to four deep, and queues anywhere in it or outside."""
    names = [f"c{i}" for i in range(draw(st.integers(0, 4)))]
    cohorts = {
        name: Cohort(name, draw(st.none() | st.sampled_from(names[:at])) if at else None, draw(quota_maps()))
        for at, name in enumerate(names)
    }
    parents = st.none() | st.sampled_from(names) if names else st.none()
    queues = {f"q{i}": Queue(f"q{i}", draw(parents), draw(quota_maps())) for i in range(draw(st.integers(1, 5)))}
    return Setup(queues=queues, cohorts=cohorts)


asks = st.dictionaries(st.sampled_from(["gpus", "cpus"]), st.integers(1, 9).map(float), min_size=1)
steps = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["h100", "a100"]), asks, st.booleans()), max_size=30)


class Plain:
    """By definition, from the list of what is held: no state between questions but what the setup alone says."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        for static in ("covered", "children", "subtree", "kept"):
            setattr(self, static, cache(getattr(self, static)))
        self.held: list[tuple[str, str, dict[str, float]]] = []

    def parent(self, name: str) -> str | None:
        queue = self.setup.queues.get(name)
        return queue.cohort if queue is not None else self.setup.cohorts[name].parent

    def quota(self, name: str, cell: tuple[str, str]) -> Quota:
        spec = self.setup.queues.get(name) or self.setup.cohorts[name]
        return spec.quotas.get(cell[0], {}).get(cell[1], Quota(0.0))

    def above(self, name: str) -> list[str]:
        parent = self.parent(name)
        return [name] if parent is None else [name, *self.above(parent)]

    def covered(self, name: str, cell: tuple[str, str]) -> bool:
        specs = [self.setup.queues.get(one) or self.setup.cohorts[one] for one in self.above(name)]
        return any(cell[1] in spec.quotas.get(cell[0], {}) for spec in specs)

    def children(self, name: str) -> list[str]:
        return [one for one in (*self.setup.cohorts, *self.setup.queues) if self.parent(one) == name]

    def subtree(self, name: str, cell: tuple[str, str]) -> float:
        lent = sum(self.subtree(child, cell) - self.kept(child, cell) for child in self.children(name))
        return self.quota(name, cell).nominal + lent

    def kept(self, name: str, cell: tuple[str, str]) -> float:
        limit = self.quota(name, cell).lending_limit
        return 0.0 if limit is None or self.parent(name) is None else max(0.0, self.subtree(name, cell) - limit)

    def used(self, name: str, cell: tuple[str, str]) -> float:
        """By a queue: what it holds. By a cohort: what its children use beyond what is theirs alone."""
        if name in self.setup.queues:
            return sum(
                asked.get(cell[1], 0.0) for queue, flavor, asked in self.held if (queue, flavor) == (name, cell[0])
            )
        return sum(
            max(0.0, self.used(child, cell) - self.kept(child, cell))
            for child in self.children(name)
            if child in self.setup.cohorts or self.covered(child, cell)
        )

    def holds(self) -> bool:
        """Every sum of every node of the tree."""
        for name in (*self.setup.cohorts, *self.setup.queues):
            for cell in CELLS:
                if name in self.setup.queues and not self.covered(name, cell):
                    continue
                used, most = self.used(name, cell), self.subtree(name, cell)
                limit = self.quota(name, cell).borrowing_limit
                if self.parent(name) is not None:
                    most = most + limit if limit is not None else float("inf")
                if used > most + 1e-6:
                    return False
        return True


@given(setups(), steps)
def test_every_sum_after_every_commit(setup: Setup, todo: list[tuple[int, str, dict[str, float], bool]]) -> None:
    """What ``check`` lets in keeps all sums, what it refuses would break one, and the books are those of the definition."""
    quotas, plain = Quotas(setup), Plain(setup)
    names = list(setup.queues)
    for number, flavor, asked, give in todo:
        if give and plain.held:
            one = plain.held.pop(number % len(plain.held))
            quotas.give(*one)
        else:
            queue = names[number % len(names)]
            refusal = quotas.check(queue, flavor, asked)
            plain.held.append((queue, flavor, asked))
            assert (refusal is None) == plain.holds()
            if refusal is None:
                quotas.take(queue, flavor, asked)
            else:
                plain.held.pop()
                assert refusal.available < refusal.asked
                if refusal.never:
                    empty = Plain(setup)
                    empty.held.append((queue, flavor, {refusal.resource: refusal.asked}))
                    assert not empty.holds()
        assert plain.holds()
        _same_books(quotas, plain)


def _same_books(quotas: Quotas, plain: Plain) -> None:
    nodes: list[TreeNode] = [*quotas.queues.values(), *quotas.cohorts.values()]
    for node in nodes:
        for cell in CELLS:
            if cell in node.quotas or node.name in quotas.cohorts:
                assert abs(node.usage.get(cell, 0.0) - plain.used(node.name, cell)) < 1e-6
                assert abs(node.subtree.get(cell, 0.0) - plain.subtree(node.name, cell)) < 1e-6


@given(setups(), st.sampled_from(["h100", "a100"]), st.integers(1, 40).map(float))
def test_never_is_told_exactly(setup: Setup, flavor: str, amount: float) -> None:
    """A refusal says "never" where an empty tree would refuse it too, and nowhere else."""
    empty = Quotas(setup)
    for queue in setup.queues:
        refusal = empty.check(queue, flavor, {"gpus": amount})
        assert refusal is None or refusal.never


def _lab() -> Quotas:
    gpus = {"h100": {"gpus": Quota(8.0)}}
    return Quotas(
        Setup(
            cohorts={"company": Cohort("company"), "lab": Cohort("lab", "company"), "shop": Cohort("shop", "company")},
            queues={
                "research": Queue("research", "lab", gpus),
                "vision": Queue("vision", "lab", gpus),
                "production": Queue("production", "shop", {"h100": {"gpus": Quota(8.0, lending_limit=2.0)}}),
            },
        )
    )


def test_borrowing_in_words_and_figures() -> None:
    quotas = _lab()
    assert quotas.take("research", "h100", {"gpus": 6.0}) == 0.0
    assert quotas.take("research", "h100", {"gpus": 6.0}) == 4.0  # four above its nominal eight
    refusal = quotas.check("research", "h100", {"gpus": 7.0})
    assert refusal is not None
    assert (refusal.available, refusal.used, refusal.nominal, refusal.never) == (6.0, 12.0, 8.0, False)
    never = quotas.check("research", "h100", {"gpus": 19.0})
    assert never is not None
    assert never.never  # 8 + 8 + the 2 that production lends


def test_who_borrows_inside_its_cohort_takes_nothing_from_outside() -> None:
    quotas = _lab()
    quotas.take("research", "h100", {"gpus": 12.0})
    assert quotas.reclaimable("research", "vision", "h100", ["gpus"])
    assert not quotas.reclaimable("research", "production", "h100", ["gpus"])
    quotas.take("vision", "h100", {"gpus": 6.0})
    assert quotas.reclaimable("research", "production", "h100", ["gpus"])
    assert not quotas.reclaimable("vision", "production", "h100", ["gpus"])


def test_what_nobody_limits_is_not_booked_at_the_cohort() -> None:
    queues = {
        "a": Queue("a", "c", {"h100": {"cpus": Quota(10.0)}}),
        "b": Queue("b", "c", {"h100": {"gpus": Quota(4.0)}}),
    }
    quotas = Quotas(Setup(cohorts={"c": Cohort("c")}, queues=queues))
    quotas.take("b", "h100", {"gpus": 1.0, "cpus": 100.0})
    assert quotas.check("a", "h100", {"cpus": 10.0}) is None


def test_a_cohort_alone_may_have_the_quota() -> None:
    setup = Setup(cohorts={"c": Cohort("c", None, {"h100": {"gpus": Quota(4.0)}})}, queues={"a": Queue("a", "c")})
    quotas = Quotas(setup)
    assert quotas.limited("a")
    assert quotas.flavors("a") == ("h100",)
    assert quotas.check("a", "h100", {"gpus": 4.0}) is None
    assert quotas.check("a", "h100", {"gpus": 5.0}) is not None


def test_shares_count_as_shares() -> None:
    assert totals([Part(2, Ask(cpus=1.5, gpu_milli=500)), Part(1, Ask(gpus=4))]) == {"gpus": 5.0, "cpus": 3.0}
