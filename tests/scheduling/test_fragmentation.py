"""FGD's measure: against its definition, additive, and the same from memory as worked out anew."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.fragmentation import Fragmentation, Free, Scorer, Shape, Spread, outcomes, popularity, shape_of
from penstock.scheduling.pool import Pool
from penstock.scheduling.spec import Setup
from penstock.scheduling.state import Ask, Gpu, NodeState, Part, Policy, Workload

MODELS = ("A", "B")
shapes = st.builds(
    lambda cpus, gpus, milli, models: Shape(
        cpus, gpus, (milli if gpus == 1 else 1000) if gpus else 0, models if gpus else ()
    ),
    st.integers(0, 16),
    st.integers(0, 4),
    st.sampled_from([100, 250, 500, 810, 1000]),
    st.sampled_from([(), ("A",), ("A", "B")]),
)
weights = st.dictionaries(shapes, st.integers(1, 20), min_size=1, max_size=8)
frees = st.lists(st.sampled_from([0, 100, 190, 500, 750, 1000]), max_size=8).map(lambda left: tuple(sorted(left)))
cores = st.integers(0, 20)


def defined(shares: dict[Shape, float], model: str, cpus: float, free: Free) -> float:
    """The paper's definition, word by word."""
    total = 0.0
    for shape, share in shares.items():
        fitting = [left for left in free if left >= shape.milli and (not shape.models or model in shape.models)]
        fits = shape.gpus > 0 and shape.cpus <= cpus and len(fitting) >= shape.gpus
        total += share * (sum(free) - (sum(fitting) if fits else 0))
    return total


def test_the_papers_cases() -> None:
    measure = Fragmentation({Shape(4, 1, 500): 0.5, Shape(4, 2, 1000): 0.25, Shape(8): 0.25})
    # Of 400 + 1000: the share cannot use the 400, the pair nothing, nor can who wants no GPU.
    assert measure.of(("A",), 16, (400, 1000)) == 0.5 * 400 + 0.25 * 1400 + 0.25 * 1400
    assert measure.of(("A",), 3, (400, 1000)) == 1400  # cores are lacking for all
    assert measure.of(("A",), 16, ()) == 0


@given(weights, st.sampled_from(MODELS), cores, frees)
def test_it_is_the_definition_and_within_what_is_free(
    counts: dict[Shape, int], model: str, cpus: int, free: Free
) -> None:
    shares = popularity(counts)
    found = Fragmentation(shares).of((model,), cpus, free)
    assert abs(found - defined(shares, model, cpus, free)) < 1e-6
    assert -1e-6 <= found <= sum(free) + 1e-6
    mixed = Fragmentation(shares).of((model,) * len(free), cpus, free)
    assert abs(mixed - found) < 1e-6 or len(free) == 0


@given(weights, st.floats(0.1, 1.0))
def test_popularity_sums_to_one_and_leaves_out_only_the_rare(counts: dict[Shape, int], covered: float) -> None:
    shares = popularity(counts, covered)
    assert abs(sum(shares.values()) - 1) < 1e-9
    left_out = [counts[shape] for shape in counts if shape not in shares]
    assert not left_out or max(left_out) <= min(counts[shape] for shape in shares)
    assert sum(left_out) <= (1 - covered) * sum(counts.values()) + 1e-6


@given(
    weights,
    st.lists(st.tuples(st.sampled_from(MODELS), cores, frees), min_size=1, max_size=4),
    st.lists(shapes, max_size=12),
)
def test_it_is_additive_and_memory_agrees_with_a_fresh_count(
    counts: dict[Shape, int], nodes: list[tuple[str, int, Free]], wanted: list[Shape]
) -> None:
    """Shapes placed by least increase: each increase is what the sum over all nodes grew by, and no GPU leaves 0..1000."""
    shares = popularity(counts)
    measure = Fragmentation(shares)
    state = list(nodes)
    total = sum(measure.of((model,), cpus, free) for model, cpus, free in state)
    for shape in wanted:
        for at, (model, cpus, free) in enumerate(state):
            found = measure.least_increase(shape, (model,), cpus, free)
            assert (found is None) is (not outcomes(shape, (model,), cpus, free))
            if found is None:
                continue
            grows, left = found
            assert sum(left) == sum(free) - shape.gpus * shape.milli
            assert all(0 <= milli <= 1000 for milli in left)
            state[at] = (model, int(cpus - shape.cpus), left)
            total += grows
            break
    fresh = Fragmentation(shares)
    assert abs(total - sum(fresh.of((model,), cpus, free) for model, cpus, free in state)) < 1e-6


def pool(scorer: Scorer | Spread | None, nodes: int = 3, gpus: int = 4) -> Pool:
    found = Pool(scorer=scorer)
    for n in range(nodes):
        found.put(NodeState(f"n{n}", 32.0, 1 << 34, tuple(Gpu(str(g), "A") for g in range(gpus))))
    return found


def gang(name: str, *parts: Part) -> Workload:
    return Workload(name, name, 0.0, parts)


def test_live_a_share_fills_the_gap_that_nobody_else_wants() -> None:
    scorer = Scorer()
    view = pool(scorer)
    small, large = Part(1, Ask(gpu_milli=200)), Part(1, Ask(gpu_milli=800))
    scorer.weigh([(small,), (large,), (Part(1, Ask(gpus=1)),)])
    for name, part in (("a", large), ("b", small)):
        found = view.find(gang(name, part))
        assert found is not None
        view.take(name, found)
    assert view.held["b"][0].share.gpus == view.held["a"][0].share.gpus
    assert view.free_milli(0) == (0, 1000, 1000, 1000)


def test_live_spread_takes_the_emptiest() -> None:
    view = pool(Spread())
    for n in range(6):
        found = view.find(gang(str(n), Part(1, Ask(gpu_milli=300))))
        assert found is not None
        view.take(str(n), found)
    assert [view.free_milli(i) for i in range(3)] == [(700, 700, 1000, 1000)] * 3


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=25), st.integers(0, 9))
def test_placement_fgd_places_whatever_fits_somewhere_and_never_over_commits(
    jobs: list[tuple[int, int]], seed: int
) -> None:
    """A cycle with ``placement: fgd`` leaves waiting only what no node has room for."""
    scheduler = Scheduler(Setup(policy=Policy(blocking="skip", placement="fgd")))
    for n in range(3):
        models = ("A", "A", "A", "A") if n else ("A", "A", "B", "B")
        scheduler.put_node(NodeState(f"n{n}", 16.0, 1 << 34, tuple(Gpu(str(g), m) for g, m in enumerate(models))))
    rng = random.Random(seed)
    for n, (kind, cpus) in enumerate(jobs):
        asks = (
            Ask(cpus, gpu_milli=300),
            Ask(cpus, gpu_milli=700, gpu_models=("B",)),
            Ask(cpus, gpus=1),
            Ask(cpus, gpus=2),
        )
        ask = (*asks, Ask(cpus, gpus=1, gpu_models=("A",)), Ask(cpus))[kind]
        scheduler.submit(Workload(str(n), str(n), 0.0, (Part(1, ask),), limit_s=1.0, seq=n))
        scheduler.plan(float(n))
        if scheduler.held and rng.random() < 0.3:
            scheduler.end(rng.choice(sorted(scheduler.held)), float(n))
            scheduler.plan(float(n))
    view = scheduler.pool
    for i in range(3):
        assert all(0 <= milli <= 1000 for milli in view.free_milli(i))
        assert view.free_cpus[i] >= -1e-9
    for entry in scheduler.lines.entries.values():
        assert view.find(entry.w) is None


def test_mig_instances_are_no_gpus_to_the_measure() -> None:
    assert shape_of(Ask(2, gpus=2, mig="1g.5gb")) == Shape(2)
    assert shape_of(Ask(2, gpu_milli=300)) == Shape(2, 1, 300)
    assert shape_of(Ask(2, gpus=2)) == Shape(2, 2, 1000)
