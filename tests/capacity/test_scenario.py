from __future__ import annotations

import pytest

from penstock.base.errors import InvalidInput
from penstock.capacity.scenario import Scenario, changed

QUEUES = """\
policy: {order: fairshare, backfill: easy, depth: 7, decay_half_life: 1d, max_evictions: 1}
flavors: [{name: h100, gpu_models: [H100]}]
queues:
- {name: a, quotas: {h100: {gpus: 8, memory: 1Ti}}}
"""


def test_a_queue_file_says_the_policy_unless_the_options_do() -> None:
    policy = Scenario(1, 8, queues=QUEUES, gpu_model="H100").setup().policy
    assert (policy.order, policy.blocking, policy.backfill, policy.depth) == ("fairshare", "strict", "easy", 7)
    assert (policy.decay_half_life_s, policy.max_evictions, policy.placement) == (86400, 1, "bestfit")
    policy = Scenario(1, 8, "sjf", "skip", "none", queues=QUEUES, gpu_model="H100").setup().policy
    assert (policy.order, policy.blocking, policy.backfill, policy.placement) == ("sjf", "skip", "none", "firstfit")
    policy = Scenario(1, 8, "sjf", "skip", placement="bestfit").setup().policy
    assert policy.placement == "bestfit"
    assert Scenario(1, 8).setup().policy.name == "fifo-strict"


def test_the_nodes_model_is_their_flavor() -> None:
    assert Scenario(1, 8, queues=QUEUES, gpu_model="H100").cluster().flavor == "h100"
    assert Scenario(1, 8, gpu_model="H100").cluster().flavor == "default"
    with pytest.raises(InvalidInput) as told:
        Scenario(1, 8, queues=QUEUES).setup()
    assert "--gpu-model" in told.value.advice
    with pytest.raises(InvalidInput, match="1 thing"):
        Scenario(1, 4, queues=QUEUES, gpu_model="H100").setup()


def test_versus_changes_a_thing_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        changed(Scenario(4, 8), "nodes=12,nodes=13,policy=sjf,policy=fifo,what=1")
    assert [problem.message for problem in caught.value.details][:2] == [
        "nodes is given twice",
        "policy is given twice",
    ]
    assert len(caught.value.details) == 3


def test_failures_that_never_end_are_refused() -> None:
    assert [problem.path for problem in Scenario(1, 8, mtbf_s=1.0, repair_s=1e30).problems()] == ["repair"]
    for until in ("1e308", "inf", "nan"):
        with pytest.raises(InvalidInput) as caught:
            list(Scenario(1, 8, failures=f"node,at_s,until_s\n0,50,{until}\n").lost())
        assert [(problem.path, problem.line) for problem in caught.value.details] == [("until_s", 2)]
