"""Users, projects, members and tokens over the API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock.tenancy.routes import check_unix_user, uid_of
from tests.api.rig import Answered, Rig, call
from tests.api.test_doors import run


async def ask(rig: Rig, user: str, method: str, path: str, body: Any = None) -> Answered:
    raw = b"" if body is None else json.dumps(body).encode()
    return await call(rig.app, method, f"/api/v1{path}", token=rig.tokens.get(user, user), body=raw)


def test_a_user_is_made_and_works(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        made = await ask(rig, "admin", "POST", "/users", {"name": "dan", "unix_user": "ann"})
        assert made.status == 201 and made.json()["unix_user"] == "ann"
        assert (await ask(rig, "admin", "POST", "/users", {"name": "dan"})).status == 409
        token = (await ask(rig, "admin", "POST", "/tokens", {"name": "laptop", "user": "dan"})).json()
        assert token["token"].endswith(token["last_four"])
        listed = await ask(rig, "admin", "GET", "/tokens")
        assert token["token"] not in listed.body.decode()
        assert (await ask(rig, "admin", "PUT", "/projects/p1/members/dan", {"role": "member"})).status == 200
        me = (await ask(rig, token["token"], "GET", "/whoami")).json()
        assert me == {"user": "dan", "role": "", "projects": {"p1": "member"}, "unix_user": "ann"}
        made_thing = await ask(rig, token["token"], "POST", "/projects/p1/things", {"name": "x"})
        assert made_thing.status == 201
        assert (await ask(rig, "admin", "DELETE", "/projects/p1/members/dan")).status == 204
        assert (await ask(rig, token["token"], "POST", "/projects/p1/things", {"name": "y"})).status == 404
        assert (await ask(rig, "admin", "DELETE", f"/tokens/{token['id']}")).status == 204
        assert (await ask(rig, token["token"], "GET", "/whoami")).status == 401

    run(tmp_path, test)


@pytest.mark.parametrize(
    "name", ["../x", "Ann", "a b", "", "x" * 64, "-x", "\u00e4", "a\n", "$(touch c)", "'", None, 5]
)
def test_names_are_names(tmp_path: Path, name: object) -> None:
    async def test(rig: Rig) -> None:
        for path in ("/users", "/projects", "/tokens"):
            answer = await ask(rig, "admin", "POST", path, {"name": name})
            assert answer.status == 422 and answer.json()["details"][0]["path"] == "body.name"

    run(tmp_path, test)


def test_jobs_never_run_as_root_or_nobody_known(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        for unix_user in ("root", "no-such-user", "a\x00b", "../root"):
            for method, path, body in (("POST", "/users", {"name": "new"}), ("PUT", "/users/ann", {})):
                answer = await ask(rig, "admin", method, path, body | {"unix_user": unix_user})
                assert answer.status == 422 and answer.json()["details"][0]["path"] == "unix_user", unix_user
        changed = await ask(rig, "admin", "PUT", "/users/ann", {"unix_user": "ann"})
        assert changed.json()["unix_user"] == "ann"
        kept = await ask(rig, "admin", "PUT", "/users/ann", {"role": "viewer"})
        assert kept.json()["unix_user"] == "ann" and kept.json()["role"] == "viewer"
        cleared = await ask(rig, "admin", "PUT", "/users/ann", {"unix_user": None})
        assert cleared.json()["unix_user"] is None and cleared.json()["role"] == "viewer"

    run(tmp_path, test)


def test_the_machines_own_users_are_asked() -> None:
    assert uid_of("root") == 0 and uid_of("a\x00b") is None and uid_of("no-such-user") is None
    check_unix_user(None, uid_of)
    check_unix_user("nobody", uid_of)


def test_tokens_are_ones_own(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        mine = (await ask(rig, "ann", "POST", "/tokens", {"expires_in": "30d"})).json()
        assert mine["user"] == "ann" and mine["expires_at"] > mine["created_at"]
        assert (await ask(rig, "ann", "POST", "/tokens", {"user": "bob"})).status == 403
        assert (await ask(rig, "vic", "POST", "/tokens", {})).status == 403  # a viewer never writes
        assert (await ask(rig, "bob", "DELETE", f"/tokens/{mine['id']}")).status == 404
        users = {item["user"] for item in (await ask(rig, "ann", "GET", "/tokens")).json()["items"]}
        assert users == {"ann"}
        for text in ("soon", "0s", "-1d", "11y", "9999999d"):
            assert (await ask(rig, "ann", "POST", "/tokens", {"expires_in": text})).status == 422
        assert (await ask(rig, "ann", "DELETE", f"/tokens/{mine['id']}")).status == 204
        assert (await ask(rig, mine["token"], "GET", "/whoami")).status == 401

    run(tmp_path, test)


def test_projects_are_seen_by_their_members(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async def seen(user: str) -> list[str]:
            return [item["name"] for item in (await ask(rig, user, "GET", "/projects")).json()["items"]]

        assert await seen("ann") == ["p1"] and await seen("bob") == ["p2"]
        assert await seen("admin") == ["default", "p1", "p2"]
        page = (await ask(rig, "admin", "GET", "/projects?limit=2")).json()
        assert page["next_cursor"] == "p1"
        rest = (await ask(rig, "admin", "GET", f"/projects?limit=2&cursor={page['next_cursor']}")).json()
        assert [item["name"] for item in rest["items"]] == ["p2"] and rest["next_cursor"] is None
        assert (await ask(rig, "ann", "POST", "/projects", {"name": "p3"})).status == 403
        assert (await ask(rig, "ann", "PUT", "/projects/p1/members/eve", {"role": "viewer"})).status == 403
        assert (await ask(rig, "bob", "GET", "/projects/p1/members")).status == 404
        members = (await ask(rig, "vic", "GET", "/projects/p1/members")).json()["items"]
        assert members == [{"user": "ann", "role": "member"}, {"user": "vic", "role": "viewer"}]
        assert (await ask(rig, "admin", "PUT", "/projects/p9/members/eve", {"role": "viewer"})).status == 404
        assert (await ask(rig, "admin", "PUT", "/projects/p1/members/zoe", {"role": "viewer"})).status == 404

    run(tmp_path, test)


def test_every_change_is_an_event(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await ask(rig, "admin", "POST", "/users", {"name": "dan"})
        await ask(rig, "admin", "PUT", "/users/dan", {"role": "viewer"})
        await ask(rig, "admin", "POST", "/projects", {"name": "p4"})
        await ask(rig, "admin", "PUT", "/projects/p4/members/dan", {"role": "admin"})
        token = (await ask(rig, "admin", "POST", "/tokens", {"user": "dan"})).json()
        await ask(rig, "admin", "DELETE", f"/tokens/{token['id']}")
        events = (await ask(rig, "admin", "GET", "/events?newest=true&limit=6&actor=admin")).json()["items"]
        told = [(event["kind"], event["reason"]) for event in reversed(events)]
        assert told == [
            ("User", "UserCreated"),
            ("User", "UserUpdated"),
            ("Project", "Created"),
            ("Project", "Updated"),
            ("Token", "TokenCreated"),
            ("Token", "TokenRevoked"),
        ]
        assert token["token"] not in json.dumps(events)

    run(tmp_path, test)
