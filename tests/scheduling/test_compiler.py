"""A queue file as accounts, associations and QoS; and only what is ours, and unchanged, is ever changed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engines.slurm.accounts import Accounting, Action, Change, Key, Kind, command, limit
from penstock.scheduling.compiler import Person, Wanted, compiled
from penstock.scheduling.drift import Made, Plan, plan
from penstock.scheduling.spec import Cohort, Flavor, Queue, Quota, Setup, parse_setup

SITE = Accounting(
    "test",
    {
        Key(Kind.ACCOUNT, "root"): {"fairshare": "1"},
        Key(Kind.QOS, "normal"): {},
        Key(Kind.ACCOUNT, "physics"): {"parent": "root", "fairshare": "5"},
        Key(Kind.USER, "ann", "physics"): {"fairshare": "1"},
    },
    frozenset({"cpu", "mem", "gres/gpu", "gres/gpu:h100", "gres/gpu:a100"}),
    frozenset({"associations", "limits", "qos"}),
    "priority/multifactor",
    "preempt/qos",
)
FILE = """
flavors:
- {name: h100, gpu_models: [H100]}
policy: {order: fairshare, preemption: true}
cohorts:
- {name: all-teams}
queues:
- {name: vision, cohort: all-teams, weight: 3, projects: [vision], quotas: {h100: {gpus: {nominal: 12, borrowing_limit: 4}}},
   qos: 0.5, max_time_limit: 2h, user_weights: {ann: 2}}
- {name: nlp, cohort: all-teams, projects: [nlp], quotas: {h100: {gpus: 12, memory: 16Gi}}}
- {name: spare-time, cohort: all-teams}
- {name: alone, quotas: {h100: {gpus: 4, cpus: 8}}}
"""
PEOPLE = (
    Person("ann", "ann", frozenset({"vision"})),
    Person("bob", "bob", frozenset({"nlp"})),
    Person("eve", None, frozenset({"nlp"})),
    Person("boss", "boss", None),
)


def account(name: str) -> Key:
    return Key(Kind.ACCOUNT, name)


def applied(site: Accounting, changes: list[Change]) -> Accounting:
    """What sacctmgr makes of them."""
    entities = {key: dict(fields) for key, fields in site.entities.items()}
    for change in changes:
        command(change, site.cluster)  # can be said
        key = change.key
        if change.action is Action.DELETE:
            assert not replace(site, entities=entities).children(key.name) or key.kind is not Kind.ACCOUNT
            del entities[key]
            continue
        above = key.account or change.fields.get("parent", "")
        assert change.action is Action.SET or not above or account(above) in entities, f"{key} before {above}"
        if change.action is Action.ADD:
            assert key not in entities
            entities[key] = {"fairshare": "1"} if key.kind is not Kind.QOS else {}
        for name, value in change.fields.items():
            was = entities[key].get("qos", "").split(",") if name == "qos" else []
            said = ",".join(sorted(filter(None, {*was, *value.split(",")}))) if name == "qos" else value
            entities[key][name] = said
        entities[key] = {name: value for name, value in entities[key].items() if value}
    return replace(site, entities=entities)


def kept(made: dict[Key, Made], found: Plan) -> dict[Key, Made]:
    """What is recorded after a plan was carried out."""
    after = dict(made)
    for change in found.changes:
        if change.action is Action.DELETE:
            del after[change.key]
        else:
            old = after[change.key].fields if change.key in after and change.action is Action.SET else {}
            after[change.key] = Made({n: v for n, v in {**old, **change.fields}.items() if v})
    for key in found.forget:
        del after[key]
    return after | {key: Made(fields) for key, fields in found.settled.items()}


def test_quotas_weights_priorities_and_members() -> None:
    found = compiled(parse_setup(FILE), PEOPLE, SITE, "c1")
    assert found.entities[account("all-teams")] == {
        "parent": "root", "fairshare": "1", limit("gres/gpu"): "24", limit("mem"): "16384",
    }  # fmt: skip
    assert found.entities[account("vision")] == {
        "parent": "all-teams", "fairshare": "3", limit("gres/gpu"): "16", "qos": "c1-vision", "max_wall": "7200",
    }  # fmt: skip
    assert found.entities[account("nlp")] == {"parent": "all-teams", "fairshare": "1", "qos": "c1-nlp"}
    assert found.entities[account("alone")] == {
        "parent": "root", "fairshare": "1", limit("gres/gpu"): "4", limit("cpu"): "8",
    }  # fmt: skip
    assert found.entities[Key(Kind.QOS, "c1-vision")] == {"priority": "500", "preempt": "c1-spare-time"}
    assert found.entities[Key(Kind.QOS, "c1-nlp")] == {"preempt": "c1-spare-time"}
    assert found.entities[Key(Kind.QOS, "c1-spare-time")] == {}
    members = {(key.name, key.account): fields for key, fields in found.entities.items() if key.kind is Kind.USER}
    assert members[("ann", "vision")] == {"fairshare": "2"}
    assert ("bob", "vision") not in members
    assert ("boss", "nlp") in members  # an administrator of the fleet may use every queue
    assert ("ann", "alone") in members  # as anybody may
    assert "users without a Unix name, who can have no account: eve" in found.cannot


def test_what_slurm_cannot_be_told_is_said() -> None:
    text = FILE.replace("gpus: 12, memory", "gpus: {nominal: 12, lending_limit: 4}, memory").replace(
        "order: fairshare", "backfill: conservative, order: sjf"
    )
    told = " | ".join(compiled(parse_setup(text), PEOPLE, SITE, "c1").cannot)
    assert "lending limits of nlp" in told
    assert "comes back when the borrowers' jobs end" in told
    assert "conservative backfill" in told
    assert "shortest estimate" in told
    bare = replace(
        SITE, enforce=frozenset(), priority="priority/basic", preempt="preempt/none", tres=frozenset({"cpu"})
    )
    told = " | ".join(compiled(parse_setup(FILE), PEOPLE, bare, "c1").cannot)
    for words in (
        "AccountingStorageEnforce=limits",
        "AccountingStorageEnforce=associations",
        "PriorityType=priority/multifactor",
        "PreemptType=preempt/qos",
        "AccountingStorageTRES=gres/gpu",
    ):
        assert words in told


def test_flavors_are_types_of_gpu_where_the_site_counts_them() -> None:
    text = """
flavors: [{name: fast, gpu_models: [H100]}, {name: old, gpu_models: [V100]}]
queues: [{name: a, quotas: {fast: {gpus: 8}, old: {gpus: 4}}}]
"""
    found = compiled(parse_setup(text), (), SITE, "c1")
    assert found.entities[account("a")][limit("gres/gpu:h100")] == "8"
    assert limit("gres/gpu") not in found.entities[account("a")]
    told = " | ".join(found.cannot)
    assert "queue a: its quota of gpus of flavor old" in told
    assert "hold only jobs that name the type" in told


def test_applied_twice_changes_nothing() -> None:
    wanted = compiled(parse_setup(FILE), PEOPLE, SITE, "c1")
    first = plan(wanted, SITE, {})
    assert {change.action for change in first.changes} == {Action.ADD}
    after, made = applied(SITE, first.changes), kept({}, first)
    second = plan(compiled(parse_setup(FILE), PEOPLE, after, "c1"), after, made)
    assert (second.changes, second.drift, second.left, second.forget) == ([], [], [], [])


def test_a_change_by_hand_is_drift_and_is_not_overwritten() -> None:
    wanted = compiled(parse_setup(FILE), PEOPLE, SITE, "c1")
    first = plan(wanted, SITE, {})
    after, made = applied(SITE, first.changes), kept({}, first)
    by_hand = applied(after, [Change(Action.SET, account("vision"), {limit("gres/gpu"): "99"})])
    found = plan(wanted, by_hand, made)
    assert found.changes == []
    assert [str(one) for one in found.drift] == ["account vision: limit gres/gpu is 99, changed by hand from 16"]
    over = plan(wanted, by_hand, made, overwrite=True)
    assert [(change.key, dict(change.fields)) for change in over.changes] == [
        (account("vision"), {limit("gres/gpu"): "16"})
    ]
    more = compiled(parse_setup(FILE.replace("weight: 3", "weight: 4")), PEOPLE, by_hand, "c1")
    found = plan(more, by_hand, made)  # what nobody touched is changed all the same
    assert [dict(change.fields) for change in found.changes] == [{"fairshare": "4"}]
    assert len(found.drift) == 1
    again = plan(more, applied(by_hand, found.changes), kept(made, found))
    assert again.changes == []
    assert [one.found for one in again.drift] == ["99"]


def test_what_was_deleted_by_hand_is_not_made_again() -> None:
    wanted = compiled(parse_setup(FILE), PEOPLE, SITE, "c1")
    first = plan(wanted, SITE, {})
    after, made = applied(SITE, first.changes), kept({}, first)
    gone = {key: f for key, f in after.entities.items() if key.account != "nlp" and key != account("nlp")}
    found = plan(wanted, replace(after, entities=gone), made)
    assert found.changes == []
    assert [str(one) for one in found.drift] == ["account nlp was deleted by hand"]
    over = plan(wanted, replace(after, entities=gone), made, overwrite=True)
    assert next(change.key for change in over.changes) == account("nlp")
    assert applied(replace(after, entities=gone), over.changes).entities == after.entities


def test_what_others_made_is_left() -> None:
    text = "queues: [{name: physics}, {name: vision, projects: [vision]}]"
    wanted = compiled(parse_setup(text), PEOPLE, SITE, "c1")
    found = plan(wanted, SITE, {}, overwrite=True)
    assert found.left == ["account physics: is there already, and Penstock did not make it: left as it is"]
    assert not any("physics" in (change.key.name, change.key.account) for change in found.changes)
    after, made = applied(SITE, found.changes), kept({}, found)
    guest = applied(after, [Change(Action.ADD, Key(Kind.USER, "guest", "vision"), {})])
    ended = plan(compiled(parse_setup("queues: [{name: other, projects: [vision]}]"), PEOPLE, guest, "c1"), guest, made)
    assert "account vision: not deleted, user guest in account vision would go with it" in ended.left
    assert applied(guest, ended.changes).entities[Key(Kind.USER, "guest", "vision")]


def test_an_interrupted_run_is_taken_up() -> None:
    wanted = compiled(parse_setup(FILE), PEOPLE, SITE, "c1")
    first = plan(wanted, SITE, {})
    intended = {change.key: Made(change.fields, pending=True) for change in first.changes}
    half = applied(SITE, first.changes[:5])
    rest = plan(wanted, half, intended)
    assert [change.key for change in rest.changes] == [change.key for change in first.changes[5:]]
    assert applied(half, rest.changes).entities == applied(SITE, first.changes).entities


@pytest.mark.parametrize("name", ["root"])
def test_a_queue_that_cannot_be_an_account_is_told(name: str) -> None:
    found = compiled(Setup(queues={name: Queue(name)}), PEOPLE, SITE, "c1")
    assert not [key for key in found.entities if key.kind is Kind.ACCOUNT]
    assert "above all others" in found.cannot[0]


_AMOUNT = st.integers(0, 40).map(float)
_QUOTA = st.builds(Quota, _AMOUNT, st.none() | _AMOUNT, st.none())
_QUOTAS = st.dictionaries(
    st.sampled_from(["h100", "a100"]), st.dictionaries(st.sampled_from(["gpus", "cpus", "memory"]), _QUOTA), max_size=2
)
_FLAVORS = {"h100": Flavor("h100", ("H100",)), "a100": Flavor("a100", ("A100",))}


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    cohorts: dict[str, Cohort] = {}
    for n in range(draw(st.integers(0, 3))):
        parent = draw(st.none() | st.sampled_from(sorted(cohorts))) if cohorts else None
        cohorts[f"c{n}"] = Cohort(f"c{n}", parent, draw(_QUOTAS), draw(st.sampled_from([1.0, 0.5, 3.0])))
    queues: dict[str, Queue] = {}
    for n in range(draw(st.integers(1, 4))):
        cohort = draw(st.none() | st.sampled_from(sorted(cohorts))) if cohorts else None
        projects = draw(st.sets(st.sampled_from(["vision", "nlp"])))
        name = draw(st.sampled_from([f"q{n}", f"q{n}", f"r{n}"]))
        queues[name] = Queue(
            name, cohort, draw(_QUOTAS), draw(st.sampled_from([1.0, 2.5])), projects=tuple(sorted(projects)),
            qos=draw(st.sampled_from([0.0, 0.3])), max_limit_s=draw(st.none() | st.just(3600.0)),
        )  # fmt: skip
    policy = replace(Setup().policy, preemption=draw(st.booleans()))
    return Setup(policy, queues, cohorts, _FLAVORS)


@given(setups(), setups(), st.booleans())
def test_from_any_file_to_any_other_and_back(one: Setup, other: Setup, overwrite: bool) -> None:
    site, made = SITE, dict[Key, Made]()
    for setup in (one, other, one):
        wanted: Wanted = compiled(setup, PEOPLE, site, "c1")
        found = plan(wanted, site, made, overwrite=overwrite)
        assert not found.drift
        site, made = applied(site, found.changes), kept(made, found)
        assert made.keys() == wanted.entities.keys()
        again = plan(compiled(setup, PEOPLE, site, "c1"), site, made)
        assert not again.changes
        assert not again.drift
        for key, fields in SITE.entities.items():
            assert site.entities[key] == fields
