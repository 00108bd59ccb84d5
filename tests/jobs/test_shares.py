"""Parts of a GPU, from the spec to the planners and back, and what they are counted as."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.launchers import device_env
from penstock.engines.spec import RankGroup
from penstock.jobs.spec import JobSpec, Resources
from penstock.jobs.view import pool_id, to_workload
from penstock.scheduling.devices import geometries, part
from penstock.scheduling.spec import Setup

H100 = "NVIDIA H100 80GB HBM3"


def ask(**resources: Any) -> Any:
    spec = JobSpec.model_validate({"command": ["train"], "resources": resources})
    assert JobSpec.model_validate_json(spec.model_dump_json(exclude_defaults=True)) == spec
    return to_workload(Setup(), spec, "default", "ann").parts[0].ask


def test_what_the_planners_are_told() -> None:
    assert (ask(gpu_share=0.5).gpus, ask(gpu_share=0.5).gpu_milli) == (0, 500)
    assert ask(gpu_share=0.125).gpu_milli == 125
    assert (ask(mig="3g.40gb").mig, ask(mig="3g.40gb").gpus) == ("3g.40gb", 1)
    assert ask(mig="1g.10gb", gpus=3).gpus == 3
    assert ask(gpus=8).gpu_milli == 0


@pytest.mark.parametrize(
    "resources",
    [
        {"gpu_share": 0},
        {"gpu_share": 1},
        {"gpu_share": 1.5},
        {"gpu_share": 0.0001},
        {"gpu_share": 0.3333},
        {"gpu_share": 0.5, "gpus": 1},
        {"gpu_share": 0.5, "mig": "3g.40gb"},
        {"mig": "half"},
        {"mig": ""},
    ],
)
def test_what_is_no_part(resources: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"gpu_share|mig"):
        Resources.model_validate(resources)


def test_what_each_part_counts_as() -> None:
    assert part(H100) == 1
    assert part(H100, 250) == 0.25
    assert part(H100, mig="7g.80gb") == 1
    assert part(H100, mig="3g.40gb") == part(H100, mig="1c.3g.40gb") == 3 / 7
    assert part("NVIDIA A30", mig="2g.12gb") == 0.5
    assert part("of another make", mig="1g.5gb+me") == 1 / 7


@given(st.sampled_from([H100, "NVIDIA A30", "NVIDIA H200"]), st.data())
def test_the_instances_of_a_gpu_are_never_more_than_it(model: str, data: st.DataObject) -> None:
    cut = data.draw(st.sampled_from(sorted(geometries(model))))
    assert round(sum(part(model, mig=profile) for profile in cut), 6) <= 1


def test_an_instance_is_known_by_its_gpu_and_place() -> None:
    assert pool_id({"id": "MIG-1", "mig": "3g.40gb", "gpu": "GPU-7", "instance": 1}) == "GPU-7:1"
    assert pool_id({"id": "GPU-7", "milli": 500}) == "GPU-7"


def test_what_a_rank_is_shown() -> None:
    assert device_env(RankGroup("n", 0, 1.0, None, ("GPU-7",))) == {"CUDA_VISIBLE_DEVICES": "GPU-7"}
    assert device_env(RankGroup("n", 0, 1.0, None, ("GPU-7",), 125)) == {
        "CUDA_VISIBLE_DEVICES": "GPU-7",
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "12.5",
    }
