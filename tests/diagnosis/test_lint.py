"""The configuration's lint: each setting that costs time is named, and what is right or not known is left alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.diagnosis.knowledge.catalogue import CAUSES
from penstock.diagnosis.lint import Advice, lint
from penstock.diagnosis.lint_nccl import data, matching
from penstock.diagnosis.state import Evidence, NodeEvidence, Rank, Series

H100 = {
    "device": "cuda:0 NVIDIA H100 80GB HBM3",
    "dtype": "float32",
    "autocast": "bfloat16",
    "tf32": True,
    "backend": "nccl",
    "cpus": 64,
    "loader_workers": 6,
    "loader_pin": True,
    "loader_persistent": True,
    "batch_size": 16,
    "gpu_memory_free": 0.12,
    "wrapper": "ddp",
    "find_unused": False,
    "bucket_mb": 25.0,
    "parameters": 124_000_000,
    "anomaly": False,
    "profiled": False,
    "env": ["NCCL_SOCKET_IFNAME=eth0", "NCCL_IB_HCA=mlx5", "OMP_NUM_THREADS=8"],
}
CPU = {"device": "cpu", "dtype": "float32", "backend": "gloo", "cpus": 2, "threads": 1, "batch_size": 32}
NETS = (
    Series("node_network_up", "lo", ()),
    Series("node_network_up", "eth0", ()),
    Series("node_infiniband_state_id", "mlx5_0/1", ()),
)


def evidence(
    config: dict[str, Any], *, ranks: int = 8, nodes: int = 2, series: tuple[Series, ...] = NETS, **env: str
) -> Evidence:
    told = tuple(Rank(rank, f"node-{rank * nodes // ranks}", config=config) for rank in range(ranks))
    return Evidence(
        "job", "p", "Running", 0.0, told, tuple(NodeEvidence(f"node-{n}", series) for n in range(nodes)), env=env
    )


def first(found: tuple[Advice, ...]) -> tuple[str, str]:
    return (found[0].cause, found[0].setting) if found else ("", "")


def test_a_good_configuration_has_no_advice() -> None:
    assert lint(evidence(H100)) == ()
    assert lint(evidence(CPU, ranks=2, nodes=1)) == ()


def test_nothing_known_is_nothing_wrong() -> None:
    assert lint(Evidence("job", "p", "Pending", 0.0)) == ()


@pytest.mark.parametrize(
    ("changed", "cause", "setting"),
    [
        ({"dtype": "float64"}, "tf32_amp_off", "dtype"),
        ({"autocast": "", "tf32": False}, "tf32_amp_off", "matmul_precision"),
        ({"autocast": "", "device": "cuda:0 Tesla V100-SXM2-16GB"}, "tf32_amp_off", "autocast"),
        ({"autocast": "", "env": ["NVIDIA_TF32_OVERRIDE=0"]}, "tf32_amp_off", "NVIDIA_TF32_OVERRIDE"),
        ({"anomaly": True}, "debug_flags_on", "anomaly"),
        ({"profiled": True}, "debug_flags_on", "profiled"),
        ({"find_unused": True}, "debug_flags_on", "find_unused"),
        ({"deterministic": True}, "debug_flags_on", "deterministic"),
        ({"loader_workers": 0}, "data_loader_bound", "loader_workers"),
        ({"loader_workers": 1}, "data_loader_bound", "loader_workers"),
        ({"loader_workers": 40}, "cpu_contention", "loader_workers"),
        ({"loader_pin": False}, "data_loader_bound", "loader_pin"),
        ({"loader_persistent": False}, "data_loader_bound", "loader_persistent"),
        ({"batch_size": 1}, "gpu_low_util_launch_bound", "batch_size"),
        ({"gradient_checkpointing": True, "gpu_memory_free": 0.6}, "", "gradient_checkpointing"),
        ({"gpu_memory_free": 0.7}, "gpu_low_util_launch_bound", "gpu_memory_free"),
        ({"wrapper": "dp"}, "gpu_low_util_launch_bound", "wrapper"),
        ({"recompiles": 30}, "recompile", "recompiles"),
        ({"bucket_mb": 0.5}, "net_latency", "bucket_mb"),
        ({"backend": "gloo"}, "nccl_socket_fallback", "backend"),
        ({"optimizer": "AdamW", "fused": False}, "gpu_low_util_launch_bound", "fused"),
    ],
)
def test_a_setting_of_torch(changed: dict[str, Any], cause: str, setting: str) -> None:
    assert first(lint(evidence(H100 | changed))) == (cause, setting)


@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("CUDA_LAUNCH_BLOCKING", "1", "debug_flags_on"),
        ("TORCH_DISTRIBUTED_DEBUG", "DETAIL", "debug_flags_on"),
        ("NCCL_DEBUG", "TRACE", "debug_flags_on"),
        ("PYTORCH_NO_CUDA_MEMORY_CACHING", "1", "debug_flags_on"),
        ("NCCL_P2P_DISABLE", "1", "nccl_wrong_env"),
        ("NCCL_SHM_DISABLE", "1", "nccl_wrong_env"),
        ("NCCL_IB_DISABLE", "1", "nccl_wrong_env"),
        ("NCCL_NET", "socket", "nccl_wrong_env"),
        ("NCCL_ALGO", "Ring", "nccl_wrong_env"),
        ("NCCL_PROTO", "simple", "nccl_wrong_env"),
        ("NCCL_MAX_NCHANNELS", "1", "nccl_wrong_env"),
        ("NCCL_P2P_DISABEL", "1", "nccl_wrong_env"),
        ("NCCL_SOKET_IFNAME", "eth0", "nccl_wrong_env"),
        ("NCCL_IB_TIMEOUT", "50", "nccl_wrong_env"),
        ("NCCL_NTHREADS", "100", "nccl_wrong_env"),
        ("NCCL_ALGO", "Rings", "nccl_wrong_env"),
        ("NCCL_BUFFSIZE", "4M", "nccl_wrong_env"),
        ("NCCL_SOCKET_IFNAME", "enp", "nccl_wrong_env"),
        ("NCCL_SOCKET_IFNAME", "=eth", "nccl_wrong_env"),
        ("GLOO_SOCKET_IFNAME", "eth", "nccl_wrong_env"),
        ("NCCL_IB_HCA", "bnxt", "nccl_socket_fallback"),
    ],
)
def test_a_variable(name: str, value: str, cause: str) -> None:
    config = H100 | {"env": [f"{name}={value}"]}
    assert first(lint(evidence(config))) == (cause, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NCCL_ALGO", "^NVLS"),
        ("NCCL_ALGO", "allreduce:tree;default:ring"),
        ("NCCL_PROTO", "^LL,LL128"),
        ("NCCL_DEBUG", "warn"),
        ("NCCL_SOCKET_IFNAME", "^docker,lo"),
        ("NCCL_IB_HCA", "=mlx5_0:1"),
        ("NCCL_FASTRAK_CTRL_DEV", "eth0"),
        ("NCCL_ASYNC_ERROR_HANDLING", "1"),
        ("CUDA_LAUNCH_BLOCKING", "0"),
        ("NCCL_P2P_LEVEL", "NVL"),
        ("NCCL_IB_TIMEOUT", "22"),
    ],
)
def test_what_is_right_is_left_alone(name: str, value: str) -> None:
    assert lint(evidence(H100 | {"env": [f"{name}={value}"]})) == ()


def test_the_jobs_environment_counts_before_it_runs() -> None:
    pending = Evidence("job", "p", "Pending", 0.0, env={"NCCL_P2P_DISABLE": "1"})
    assert first(lint(pending)) == ("nccl_wrong_env", "NCCL_P2P_DISABLE")


def test_a_setting_of_one_rank_names_it() -> None:
    odd = Rank(3, "node-1", config=H100 | {"dtype": "float64", "env": ["NCCL_ALGO=Tree"]})
    good = evidence(H100)
    found = lint(Evidence("job", "p", "Running", 0.0, (*good.ranks[:3], odd, *good.ranks[4:]), good.nodes))
    assert {advice.ranks for advice in found} == {(3,)}
    assert any("on some ranks" in advice.evidence for advice in found if advice.setting == "NCCL_ALGO")


def test_no_infiniband_no_blame() -> None:
    only = (Series("node_network_up", "eth0", ()),)
    assert lint(evidence(H100, series=only, NCCL_IB_DISABLE="1")) == ()


def test_one_rank_a_node_has_no_peers() -> None:
    found = lint(evidence(H100, ranks=2, NCCL_P2P_DISABLE="1"))
    assert found[0].strength < 0.2
    assert found[0].against == "each node has one rank"


def test_a_backend_that_does_not_read_it_speaks_against() -> None:
    found = lint(evidence(CPU, ranks=2, nodes=1, NCCL_P2P_DISABLE="1"))
    assert first(found) == ("nccl_wrong_env", "NCCL_P2P_DISABLE")
    assert "gloo" in found[0].against


def test_too_many_threads_and_too_few() -> None:
    assert first(lint(evidence(CPU | {"threads": 4}, ranks=2, nodes=1))) == ("cpu_contention", "OMP_NUM_THREADS")
    assert first(lint(evidence(CPU | {"cpus": 16}, ranks=2, nodes=1))) == ("", "OMP_NUM_THREADS")


def test_interfaces_are_chosen_as_nccl_does() -> None:
    names = frozenset({"eth0", "eth1", "ib0", "docker0"})
    assert matching("eth", names) == {"eth0", "eth1"}
    assert matching("=eth0,ib0", names) == {"eth0", "ib0"}
    assert matching("^docker,eth", names) == {"ib0"}
    assert matching("^=docker0", names) == names - {"docker0"}


def test_the_variables_are_whole() -> None:
    known = data()
    assert known["source"].startswith("https://")
    for entry in known["slow"]:
        assert {"name", "is", "strength", "why", "do"} <= set(entry)
        assert 0 < entry["strength"] <= 1
    assert not set(known["values"]) & set(known["others"])


_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.text(max_size=30), max_size=3),
)
_KEYS = st.sampled_from(
    [*H100, *CPU, "threads", "compiled", "recompiles", "gradient_checkpointing", "fused", "optimizer"]
)
_VARIABLES = st.dictionaries(
    st.one_of(
        st.sampled_from(sorted({*data()["values"], *data()["others"], "NCCL_", "CUDA_LAUNCH_BLOCKING"})),
        st.text(max_size=20),
    ),
    st.text(max_size=20),
    max_size=4,
)


@given(st.lists(st.dictionaries(_KEYS, _VALUES, max_size=6), max_size=4), _VARIABLES)
def test_whatever_is_told_the_answer_is_sound(configs: list[dict[str, Any]], env: dict[str, str]) -> None:
    ranks = tuple(Rank(number, f"node-{number % 2}", config=config) for number, config in enumerate(configs))
    found = lint(Evidence("job", "p", "Running", 0.0, ranks, (NodeEvidence("node-0", NETS),), env=env))
    for advice in found:
        assert advice.cause in {"", *CAUSES}
        assert 0 <= advice.strength <= 1
        assert advice.evidence
        assert advice.action
        assert len(advice.evidence) < 500
        assert set(advice.ranks) <= {rank.rank for rank in ranks}
    assert [a.strength for a in found] == sorted((a.strength for a in found), reverse=True)
