"""What sacctmgr shows is read; what it is told is nothing but what was meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput
from penstock.engines.slurm.accounts import Action, Change, Key, Kind, command, limit, read
from penstock.engines.slurm.errors import Refused

CONFIG = """Configuration data as of 2026-11-25T19:06:33
AccountingStorageEnforce = associations,limits,qos
ClusterName             = c1
PreemptType             = preempt/qos
PriorityType            = priority/multifactor
"""
ASSOCIATIONS = """c1|root||||1|||normal
c1|root||root||1|||normal
c1|vision|root|||7|gres/gpu=12,mem=1T,cpu=3|1-02:00:00|normal,c1-vision
c1|vision||ann||5||1-02:00:00|normal,c1-vision
c1|vision||bob|gpu|1|||normal
other|elsewhere|root|||1|||normal
"""


def test_what_sacctmgr_shows_is_read() -> None:
    found = read(CONFIG, ASSOCIATIONS, "normal|0|\nhigh|10|b,a\n", "cpu|\nmem|\ngres|gpu\ngres|gpu:h100\n")
    assert found.cluster == "c1"
    assert found.tres == {"cpu", "mem", "gres/gpu", "gres/gpu:h100"}
    assert found.enforce == {"associations", "limits", "qos"}
    assert found.entities[Key(Kind.ACCOUNT, "vision")] == {
        "parent": "root",
        "fairshare": "7",
        "max_wall": "93600",
        "qos": "c1-vision,normal",
        limit("gres/gpu"): "12",
        limit("mem"): "1048576",
        limit("cpu"): "3",
    }
    assert found.entities[Key(Kind.USER, "ann", "vision")] == {"fairshare": "5"}
    assert found.entities[Key(Kind.QOS, "high")] == {"priority": "10", "preempt": "a,b"}
    assert Key(Kind.ACCOUNT, "elsewhere") not in found.entities
    assert {key.name for key in found.children("vision")} == {"ann", "bob@gpu"}


def test_an_answer_of_another_shape_is_refused() -> None:
    with pytest.raises(Refused, match="columns"):
        read(CONFIG, "c1|root\n", "", "")


def test_changes_in_sacctmgrs_words() -> None:
    fields = {"parent": "root", "fairshare": "2", limit("gres/gpu"): "16", limit("cpu"): "", "max_wall": "7200"}
    key = Key(Kind.ACCOUNT, "vision")
    assert command(Change(Action.SET, key, fields), "c1") == (
        "sacctmgr", "-i", "modify", "account", "where", "name=vision", "cluster=c1", "set",
        "GrpTRES=cpu=-1,gres/gpu=16", "fairshare=2", "MaxWall=02:00:00", "parent=root",
    )  # fmt: skip
    assert command(Change(Action.ADD, Key(Kind.USER, "ann", "vision"), {"fairshare": "1"}), "c1") == (
        "sacctmgr", "-i", "add", "user", "name=ann", "cluster=c1", "account=vision", "fairshare=1",
    )  # fmt: skip
    assert command(Change(Action.DELETE, Key(Kind.QOS, "c1-vision")), "c1") == (
        "sacctmgr", "-i", "delete", "qos", "where", "name=c1-vision",
    )  # fmt: skip


@given(st.text(min_size=1, max_size=20), st.sampled_from(list(Kind)), st.sampled_from(list(Action)))
def test_no_name_says_more_than_a_name(name: str, kind: Kind, action: Action) -> None:
    change = Change(action, Key(kind, name, "vision" if kind is Kind.USER else ""), {"fairshare": "1"})
    plain = all(letter in "abcdefghijklmnopqrstuvwxyz0123456789_.-" for letter in name) and name[0] not in "-."
    if not plain:
        with pytest.raises(InvalidInput):
            command(change, "c1")
        return
    words = command(change, "c1")
    assert f"name={name}" in words
    assert sum("name=" in word for word in words) == 1


@given(st.sampled_from(["fairshare", "parent", "qos", "preempt", "priority", limit("gres/gpu")]), st.text(max_size=12))
def test_no_value_says_more_than_a_value(field: str, value: str) -> None:
    try:
        words = command(Change(Action.SET, Key(Kind.ACCOUNT, "vision"), {field: value}), "c1")
    except InvalidInput:
        return
    assert not any(letter in word for word in words for letter in " \n\t'\"\\;$`|&")


@given(st.sampled_from(["a,b", "a b", "a=b", "a;b", "a'b", 'a"b', "a\nb", "$(a)", "-a", "", "A"]))
def test_what_sacctmgr_would_take_apart_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        command(Change(Action.ADD, Key(Kind.USER, "ann", name or "x y"), {}), "c1")
