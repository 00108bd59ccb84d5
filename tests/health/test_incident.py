"""An incident as the ledger tells it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.base.reasons import Reason
from penstock.health.incident import Fact, incidents, markdown

FLAP: dict[str, Any] = {"rule": "LinkFlap", "first_at": 399}
XID: dict[str, Any] = {"rule": "Xid", "code": "79", "device": "0000:1b:00", "first_at": 999.5}
MET = {"jobs": ["p/train#1"]}


def ledger(*rows: tuple[float, str, str, str, str, dict[str, Any]]) -> list[Fact]:
    return [
        Fact(seq, at, "health", kind, subject, reason, message, data)
        for seq, (at, kind, subject, reason, message, data) in enumerate(rows, 1)
    ]


STORY = ledger(
    (400, "Node", "n1", "FindingRaised", "LinkFlap on mlx5_0: came and went", {"finding": FLAP}),
    (500, "Node", "n1", "FindingEnded", "LinkFlap on mlx5_0: over", {"finding": FLAP}),
    (1000, "Node", "n1", "FindingRaised", "Xid 79 on 0000:1b:00: fell off the bus", {"finding": XID} | MET),
    (1001, "Node", "n1", "Drained", "drain: Xid 79", {}),
    (1001, "Node", "n1", "HealthActed", "drain: Xid 79; then reboot", {"verb": "drain", "advise": "reboot"} | MET),
    (1001.5, "Job", "p/train", "NodeDrained", "its node is drained", {}),
    (1004, "Job", "p/train", "Started", "attempt 2 on n2", {}),
    (1005, "Job", "p/other", "Started", "on n3", {}),
    (1500, "Node", "n2", "Cordoned", "somebody", {}),
    (4000, "Node", "n1", "FindingEnded", "Xid 79: the node was started anew", {"finding": XID}),
    (7600, "Node", "n1", "Uncordoned", "nothing is wrong with it since 1h", {}),
)


def test_a_drain_from_its_first_word_to_its_return() -> None:
    found = incidents("n1", STORY)
    assert [(one.began, one.ended) for one in found] == [(399, 500), (999.5, 7600)]
    one = found[1]
    assert (one.detected, one.acted) == (1000, 1001)
    assert [(hit.job, hit.stopped_at, hit.back_at) for hit in one.hits] == [("p/train", 1001.5, 1004)]
    assert one.cause == "drain: Xid 79; then reboot"
    assert [(owed.what, owed.done_at) for owed in one.owed] == [("reboot the node", 7600)]
    assert one.contributing == ("LinkFlap on mlx5_0: came and went",)
    assert [fact.seq for fact in one.facts] == [3, 4, 5, 6, 7, 10, 11]


def test_one_that_lasts_has_no_end_and_owes_what_was_advised() -> None:
    (one,) = incidents("n1", [fact for fact in STORY if 1000 <= fact.at < 4000])
    assert one.ended is None
    assert [owed.done_at for owed in one.owed] == [None]
    assert "- [ ] reboot the node" in markdown(one)


def test_what_somebody_only_cordoned_is_one_too() -> None:
    (one,) = incidents("n2", STORY)
    assert (one.trigger, one.cause, one.hits) == ("somebody", "not established", ())


def test_as_a_page() -> None:
    page = markdown(incidents("n1", STORY)[1])
    assert page.splitlines()[:7] == [
        "# Incident: n1, 1970-01-01T00:16:39.500Z",
        "",
        "- **Impact:** 1 job interrupted, 2.5s in all until they ran again; 1h50m from begin to end",
        "- **Detection:** 1970-01-01T00:16:40.000Z, 0.5s after it began; acted on 1s later",
        "- **Trigger:** Xid 79 on 0000:1b:00: fell off the bus",
        "- **Cause:** drain: Xid 79; then reboot",
        "- **Contributing:** LinkFlap on mlx5\\_0: came and went",
    ]


def test_nobodys_words_become_markup() -> None:
    hostile = "| x |\n# not a heading <script>"
    (one,) = incidents("n1", ledger((1, "Node", "n1", "Cordoned", hostile, {})))
    rows = [line for line in markdown(one).splitlines() if "script" in line]
    assert rows
    assert all("\\|" in line and "\\<script" in line and not line.startswith("#") for line in rows)


REASONS = st.sampled_from(
    [
        Reason.FindingRaised,
        Reason.FindingEnded,
        Reason.Cordoned,
        Reason.Drained,
        Reason.Uncordoned,
        Reason.HealthActed,
    ]
)
ROWS = st.lists(st.tuples(st.floats(0, 1e6), st.sampled_from(["n1", "n2"]), REASONS, st.integers(0, 3)), max_size=40)


@given(ROWS)
def test_total_and_every_event_in_one_incident_at_the_most(rows: list[tuple[float, str, Reason, int]]) -> None:
    facts = ledger(
        *(
            (at, "Node", node, str(reason), "words", {"finding": {"rule": str(code)}})
            for at, node, reason, code in sorted(rows)
        )
    )
    found = incidents("n1", facts)
    seen = [fact.seq for one in found for fact in one.facts]
    assert len(seen) == len(set(seen))
    for one in found:
        assert one.began <= one.detected
        assert one.ended is None or one.ended >= one.detected
        assert markdown(one)
    assert all(one.ended is not None for one in found[:-1])
