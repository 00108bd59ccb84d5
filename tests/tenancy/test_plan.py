"""``decide``: viewers never write, fewer roles never give more, what is not in the table is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.resource import Actor
from penstock.tenancy.plan import FLEET_ROLES, PROJECT_ROLES, VERBS, Scope, decide, visible

PROJECTS = ("p1", "p2", "p3")
roles = st.dictionaries(st.sampled_from(PROJECTS), st.sampled_from(PROJECT_ROLES))
actors = st.builds(Actor, st.sampled_from(["ann", "bob"]), st.sampled_from(FLEET_ROLES), roles)
verbs = st.sampled_from(sorted(VERBS))
places = st.none() | st.sampled_from(PROJECTS) | st.text(max_size=5)
owners = st.none() | st.sampled_from(["ann", "bob"])
_RANK = ("", *PROJECT_ROLES)


@given(actors, verbs, places, owners)
def test_a_viewer_never_writes(actor: Actor, verb: str, project: str | None, owner: str | None) -> None:
    viewer = Actor(actor.user, "viewer" if actor.role else "", dict.fromkeys(actor.projects, "viewer"))
    if VERBS[verb].writes:
        assert not decide(viewer, verb, project, owner=owner)


@given(actors, verbs, places, owners, st.data())
def test_nobody_gets_more_from_fewer_roles(
    actor: Actor, verb: str, project: str | None, owner: str | None, data: st.DataObject
) -> None:
    fewer = {name: data.draw(st.sampled_from(_RANK[: _RANK.index(role) + 1])) for name, role in actor.projects.items()}
    less = replace(
        actor,
        role=data.draw(st.sampled_from(FLEET_ROLES[: FLEET_ROLES.index(actor.role) + 1])),
        projects={name: role for name, role in fewer.items() if role},
    )
    if decide(less, verb, project, owner=owner):
        assert decide(actor, verb, project, owner=owner)
    seen, before = visible(less), visible(actor)
    assert before is None or (seen is not None and seen <= before)


@given(actors, st.text(max_size=20), places)
def test_an_unknown_verb_is_refused(actor: Actor, verb: str, project: str | None) -> None:
    if verb not in VERBS:
        assert not decide(actor, verb, project)
        assert not decide(Actor("system", "admin"), verb, project)


@given(st.text(max_size=8), st.text(max_size=8), verbs, st.sampled_from(PROJECTS))
def test_an_unknown_role_is_none(fleet_role: str, project_role: str, verb: str, project: str) -> None:
    if fleet_role in FLEET_ROLES or project_role in PROJECT_ROLES:
        return
    actor = Actor("eve", fleet_role, {project: project_role})
    assert decide(actor, verb, project) == (VERBS[verb].scope is Scope.ANYONE)
    assert visible(actor) == frozenset()


@given(actors, verbs)
def test_some_project_is_enough_without_a_project_and_no_other(actor: Actor, verb: str) -> None:
    if VERBS[verb].scope is Scope.PROJECT:
        anywhere = any(decide(actor, verb, project) for project in (*PROJECTS, "other"))
        assert decide(actor, verb) == anywhere


@given(actors, verbs, places)
def test_a_role_in_one_project_says_nothing_of_another(actor: Actor, verb: str, project: str | None) -> None:
    without = {name: role for name, role in actor.projects.items() if name == project}
    if project is not None:
        assert decide(actor, verb, project) == decide(replace(actor, projects=without), verb, project)


def test_a_session_in_a_colleagues_job_is_for_the_projects_admin() -> None:
    member, admin = Actor("ann", "", {"p": "member"}), Actor("ann", "", {"p": "admin"})
    assert decide(member, "jobs.exec", "p", owner="ann")
    assert not decide(member, "jobs.exec", "p", owner="bob")
    assert decide(admin, "jobs.exec", "p", owner="bob")


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_an_administrator_may_do_everything(verb: str) -> None:
    assert decide(Actor("root", "admin"), verb, "anything")
