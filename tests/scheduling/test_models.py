"""A model is asked for by any words of its name, by jobs, by the flavors of a queue file and by prices alike."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.models import any_means, means
from penstock.scheduling.spec import Flavor, Setup, flavor_of
from penstock.scheduling.state import Ask, Gpu, NodeState, Part, Policy, Workload

H100, A100_80, A100_40, H200 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-40GB", "NVIDIA H200"


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("H100", {H100}), ("h100", {H100}), ("A100", {A100_80, A100_40}), ("A100 80GB", {A100_80}), ("nvidia", {H100, A100_80, A100_40, H200}),
        (H100, {H100}), ("H10", set()), ("100", set()), ("H100 40GB", set()), ("--", set()),
    ],
)  # fmt: skip
def test_whole_words_in_either_case(name: str, fits: set[str]) -> None:
    assert {model for model in (H100, A100_80, A100_40, H200) if means(name, model)} == fits


def test_one_of_several_and_names_that_have_no_words() -> None:
    assert any_means(("H100", "H200"), H200)
    assert means("--", "--")


@pytest.mark.parametrize("placement", ["bestfit", "spread", "fgd", "firstfit"])
@pytest.mark.parametrize("ask", [Ask(cpus=1, gpus=2), Ask(cpus=1, gpu_milli=500)])
def test_it_gets_such_gpus_and_no_others(placement: str, ask: Ask) -> None:
    scheduler = Scheduler(Setup(policy=Policy(placement=placement)))
    for name, models in (("a", (A100_40,) * 4), ("b", (H200, H200, H100, H100)), ("c", (A100_80,) * 2)):
        scheduler.put_node(NodeState(name, 8, 1 << 36, tuple(Gpu(f"{name}{n}", m) for n, m in enumerate(models))))
    wanted = replace(ask, gpu_models=("h100", "A100 80GB"))
    for n in range(3):
        scheduler.submit(Workload(f"j{n}", f"j{n}", 0.0, (Part(1, wanted),), seq=n))
    got = {gpu for admit in scheduler.plan(0.0).admit for share in admit.shares for gpu in share.gpus}
    assert got
    assert got <= {"b2", "b3", "c0", "c1"}
    if ask.gpus:
        assert got == {"b2", "b3", "c0", "c1"}
        assert "2 h100 or A100 80GB GPUs; 0 of 2 such nodes have room now" in scheduler.why("j2", 0.0).message


def test_flavors_name_models_so_too() -> None:
    setup = Setup(flavors={"big": Flavor("big", ("H100", "H200")), "old": Flavor("old", ("A100 40GB",))})
    found = [flavor_of(setup, (Gpu("0", model),)) for model in (H100, H200, A100_40, A100_80)]
    assert found == ["big", "big", "old", "default"]
