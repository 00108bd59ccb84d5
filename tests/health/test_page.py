"""What people see of it: the console's view models, and the terminal's panel."""

from __future__ import annotations

from penstock.health import commands, page
from tests.health.sample import FLEET, FOUND, NODE


def test_a_node_says_what_was_done_and_what_was_not() -> None:
    node = page.node(NODE)
    assert (node.service, node.out_since) == ("drained", NODE["out_since"])
    assert [one.verb for one in node.done] == ["drain"]
    assert [(one.verb, one.held) for one in node.held] == [("cordon", "shadow")]
    assert node.findings[0].evidence == tuple(FOUND["evidence"])
    assert page.past(FLEET["outages"])[0].moved == "default/train"


def test_the_terminal_tells_the_same() -> None:
    lines = commands.panel(NODE)
    assert lines[0] == "Health:"
    assert "  Xid 79 on GPU-1: fell off the bus (active)" in lines
    assert "  not done (shadow): cordon: ClockSkew; only tried out" in lines
    assert "  source nvml: hangs" in lines
    well = {**NODE, "findings": [], "decisions": [], "doubts": {}, "outages": []}
    assert commands.panel(well) == []
