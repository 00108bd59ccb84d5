"""A queue that names projects is theirs alone."""

from __future__ import annotations

from penstock.base.reasons import Reason
from penstock.scheduling.cycle import Scheduler
from penstock.scheduling.rights import may_use, too_urgent, usable
from penstock.scheduling.spec import Queue, Setup
from penstock.scheduling.state import Ask, Gpu, NodeState, Part, Workload

QUEUES = {
    "default": Queue("default"),
    "lab": Queue("lab", projects=("physics", "biology")),
    "prod": Queue("prod", projects=("serving",)),
}


def test_who_may_use_what() -> None:
    setup = Setup(queues=QUEUES)
    assert usable(setup, "physics") == ["default", "lab"]
    assert may_use(setup, "lab", "physics") is None
    assert may_use(setup, "default", "anything") is None
    for queue, words in (("prod", "queue 'prod' is not for project 'physics'"), ("x", "there is no queue 'x'")):
        problem = may_use(setup, queue, "physics")
        assert problem is not None
        assert problem.message == f"{words}; 'physics' may use default, lab"
    assert may_use(setup, "prod", "") is None  # a trace's


def test_who_may_not_is_never_started_and_told_so() -> None:
    scheduler = Scheduler(Setup(queues=QUEUES))
    scheduler.put_node(NodeState("n", 8.0, 1 << 36, (Gpu("0", ""), Gpu("1", ""))))
    for seq, project in enumerate(("physics", "serving")):
        parts = (Part(1, Ask(1.0, 0, 1)),)
        scheduler.submit(Workload(project, project, 0.0, parts, "prod", "ann", project, seq=seq))
    assert [admit.id for admit in scheduler.plan(0.0).admit] == ["serving"]
    why = scheduler.why("physics", 1.0)
    assert why.reason == Reason.Unschedulable
    assert (why.message, why.helps) == ("queue 'prod' is not for project 'physics'", ("name one of: default, lab",))


def test_a_queue_may_take_no_priority_above_its_highest() -> None:
    setup = Setup(queues={"default": Queue("default", max_priority=10), "free": Queue("free")})
    assert too_urgent(setup, "default", 10) is None
    assert too_urgent(setup, "free", 1_000_000) is None
    problem = too_urgent(setup, "default", 11)
    assert problem is not None
    assert str(problem) == "priority: is 11; queue default takes none above 10"
