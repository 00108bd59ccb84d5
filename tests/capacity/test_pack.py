"""Filling a fleet: the published figures, what must hold for any fleet and pods, and files that are wrong."""

from __future__ import annotations

import gzip
import json
import lzma
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.app import main
from penstock.base.errors import InvalidInput
from penstock.capacity.pack import (
    POLICIES,
    Fleet,
    Node,
    Pod,
    holds,
    inflated,
    picture,
    read_nodes,
    read_pods,
    run_files,
)
from penstock.capacity.pack import run as fill
from penstock.scheduling.fragmentation import Shape

TRACES = Path(__file__).resolve().parents[2] / "data/traces"
NODES = str(TRACES / "openb_node_list_gpu_node.csv.xz")
PODS = str(TRACES / "openb_pod_list_default.csv.xz")


def still() -> float:
    return 0.0


def test_openb_bestfit_and_fgd_reach_the_published_means() -> None:
    """One seed of each; benchmarks/pack.py has the four workloads and several seeds."""
    best = run_files(PODS, NODES, policy="bestfit", tune=1.3, seed=42, clock=still)
    assert abs(best["allocated_pct"] - 93.08) <= 1
    assert abs(best["fragmented_pct_at_90"] - 7.41) <= 1
    found = run_files(PODS, NODES, policy="fgd", tune=1.3, seed=42, clock=still)
    assert found["gpus"] == 6212
    assert found["allocated_pct"] >= 95.39 - 0.3
    assert found["fragmented_pct_at_90"] <= 5.1


nodes = st.lists(
    st.builds(
        Node, st.just("n"), st.integers(0, 16_000), st.integers(0, 4096), st.integers(0, 3), st.sampled_from("AB")
    ),
    min_size=1,
    max_size=3,
).filter(lambda found: any(node.gpus for node in found))
pods = st.lists(
    st.builds(
        lambda cpus, gpus, milli, models, memory: Pod(
            Shape(cpus, gpus, milli if gpus == 1 else 1000, models) if gpus else Shape(cpus), memory
        ),
        st.sampled_from([0, 500, 4000]),
        st.integers(0, 3),
        st.sampled_from([200, 500, 810, 1000]),
        st.sampled_from([(), ("A",)]),
        st.sampled_from([0, 1024]),
    ),
    min_size=1,
    max_size=6,
).filter(lambda found: any(pod.milli for pod in found))


@given(nodes, pods, st.sampled_from(POLICIES), st.integers(0, 99))
def test_nothing_is_over_committed_and_what_is_kept_is_what_a_recount_gives(
    fleet: list[Node], kinds: list[Pod], policy: str, seed: int
) -> None:
    rng = random.Random(seed)
    packed = Fleet(fleet, kinds, policy, rng)
    for pod in inflated(kinds, 1.2 * packed.capacity, rng):
        room = [i for i in range(len(fleet)) if holds_now(packed, pod, i)]
        at = packed.place(pod)
        assert (at in room) if room else at is None
    for i, node in enumerate(fleet):
        assert packed.cpus[i] >= 0
        assert packed.memory[i] >= 0
        assert len(packed.free[i]) == node.gpus
        assert all(0 <= left <= 1000 for left in packed.free[i])
    free = sum(sum(left) for left in packed.free)
    assert packed.allocated == packed.capacity - free
    states = zip(packed.models, packed.cpus, packed.free, strict=True)
    assert abs(packed.fragmented - sum(packed.measure.of(*state) for state in states)) < 1e-3
    for pod in set(kinds):  # scores kept from before are those that would be worked out now
        kept = packed._current(pod)
        fresh = [packed._score(pod, i) for i in range(len(fleet))]
        assert kept == fresh


def holds_now(packed: Fleet, pod: Pod, i: int) -> bool:
    usable = [f for f in packed.free[i] if f >= pod.shape.milli]
    model = not pod.shape.models or packed.models[i][0] in pod.shape.models
    gpus = not pod.shape.gpus or (model and len(usable) >= pod.shape.gpus)
    return gpus and packed.cpus[i] >= pod.shape.cpus and packed.memory[i] >= pod.memory


@given(nodes, pods, st.sampled_from(POLICIES), st.floats(0.1, 1.5), st.integers(0, 9))
def test_a_run_is_deterministic_and_its_figures_are_percentages(
    fleet: list[Node], kinds: list[Pod], policy: str, tune: float, seed: int
) -> None:
    found = fill(fleet, kinds, policy=policy, tune=tune, seed=seed, clock=still)
    assert found == fill(fleet, kinds, policy=policy, tune=tune, seed=seed, clock=still)
    assert 0 <= found["allocated_pct"] <= 100
    assert found["placed"] + found["never_fit"] <= found["pods"]
    assert picture(found)
    assert all(0 <= a <= 100.0001 and -1e-6 <= f <= 100 - a + 0.01 for _, a, f in found["curve"])


def test_a_pod_larger_than_any_node_is_counted() -> None:
    found = fill(
        [Node("a", 1000, 10, 1)],
        [Pod(Shape(500, 2, 1000)), Pod(Shape(100, 1, 500))],
        policy="fgd",
        tune=2.5,
        seed=0,
        clock=still,
    )
    assert found["never_fit"] >= 1
    assert not holds(Node("a", 1000, 10, 1), Pod(Shape(500, 2, 1000)))


def write(path: Path, text: str) -> str:
    data = text.encode()
    if path.suffix == ".xz":
        data = lzma.compress(data)
    elif path.suffix == ".gz":
        data = gzip.compress(data)
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("name", ["pods.csv", "pods.csv.xz", "pods.csv.gz"])
def test_files_are_read_as_they_lie(tmp_path: Path, name: str) -> None:
    path = write(
        tmp_path / name, "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np,500,10,1,300,B|A\nq,1,,0,0,\n"
    )
    assert read_pods(path) == [Pod(Shape(500, 1, 300, ("A", "B")), 10), Pod(Shape(1), 0)]


def test_every_bad_row_is_told_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "pods.csv", "cpu_milli,num_gpu,gpu_milli\n-1,1,500\nx,2,500\n1,1,1001\n1,1,\n1,1,0\n5,1,1000\n"
    )
    with pytest.raises(InvalidInput) as told:
        read_pods(path)
    assert [(p.line, p.path) for p in told.value.details] == [
        (2, "cpu_milli"), (3, "cpu_milli"), (3, "gpu_milli"), (4, "gpu_milli"), (4, "gpu_milli"), (5, "gpu_milli"),
        (5, "gpu_milli"), (6, "gpu_milli"),
    ]  # fmt: skip
    path = write(tmp_path / "nodes.csv", "sn,cpu_milli,memory_mib,gpu\na,1,1,1\na,1,1,1\n,1,1,999\n")
    with pytest.raises(InvalidInput) as told:
        read_nodes(path)
    assert [(p.line, p.path) for p in told.value.details] == [(3, "sn"), (4, "sn"), (4, "gpu")]


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("a.csv", b"x,y\n1,2\n", "column"),
        ("a.csv", b"", "column"),
        ("a.csv.xz", b"not xz", "cannot be read"),
        ("a.csv.gz", b"not gzip", "cannot be read"),
        ("a.csv", b"cpu_milli,num_gpu,gpu_milli\n1,0,0\n", "no pod that asks for a GPU"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, data: bytes, word: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidInput, match=word):
        read_pods(str(tmp_path / name))


def test_the_command_prints_json_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pods_csv = write(tmp_path / "p.csv", "cpu_milli,num_gpu,gpu_milli\n1000,1,500\n1000,2,1000\n")
    nodes_csv = write(tmp_path / "n.csv", "sn,cpu_milli,memory_mib,gpu,model\na,64000,1000,8,A\nb,64000,1000,8,A\n")
    command = ["capacity", "pack", "--pods", pods_csv, "--nodes", nodes_csv, "--policy", "fgd"]
    assert main([*command, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"allocated_pct", "fragmented_pct_at_90", "fragmented_pct_end", "wall_s"} <= found.keys()
    assert main([*command, "-o", "table"]) == 0
    assert "ALLOCATED %" in capsys.readouterr().out
    assert main(["capacity", "pack", "--pods", pods_csv, "--nodes", nodes_csv, "--policy", "best", "--tune", "0"]) == 2
    told = capsys.readouterr().err
    assert "--policy" in told
    assert "--tune" in told
