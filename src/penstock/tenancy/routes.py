"""Users, projects, members, tokens, and who one is."""

from __future__ import annotations

import pwd
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from penstock.base.errors import Forbidden, InvalidInput, Problem
from penstock.base.ids import NAME_RULE, check_name
from penstock.base.quantities import format_time, parse_duration
from penstock.base.routes import Call, Endpoint
from penstock.store.store import Store, Tx
from penstock.tenancy import accounts
from penstock.tenancy.plan import decide, visible
from penstock.tenancy.state import Token, User

LookUp = Callable[[str], int | None]  # a Unix user's uid; None where there is no such user
_LONGEST_S = 10 * 365 * 86400.0


def _checked(name: str) -> str:
    problem = check_name(name)
    if problem:
        raise ValueError(problem.message)
    return name


def _duration(text: str) -> str:
    if not 0 < parse_duration(text) <= _LONGEST_S:
        raise ValueError("a token lives longer than no time and at most ten years")
    return text


# The pattern is told in the document, and checked by a function that says it in words.
_NAME_FORM: dict[str, Any] = {"pattern": f"^{NAME_RULE.pattern}$", "minLength": 1}
Name = Annotated[str, Field(max_length=63, json_schema_extra=_NAME_FORM), AfterValidator(_checked)]
NodeName = Annotated[str, Field(min_length=1, max_length=253)]
UnixUser = Annotated[str, Field(min_length=1, max_length=32)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Page(_Model):
    limit: int = Field(100, ge=1, le=500)
    cursor: str | None = Field(None, max_length=100)


class NewUser(_Model):
    name: Name
    role: Literal["", "viewer", "admin"] = ""
    unix_user: UnixUser | None = None


class UserChange(_Model):
    """What is left out stays as it is."""

    role: Literal["", "viewer", "admin"] | None = None
    unix_user: UnixUser | None = None


class NewProject(_Model):
    name: Name


class Membership(_Model):
    role: Literal["viewer", "member", "admin"]


class NewToken(_Model):
    name: Name = "token"
    user: Name | None = Field(None, description="Whose; oneself when left out. An administrator may name another.")
    node: NodeName | None = Field(
        None, description="For the agent of this node: it tells of that node, and opens nothing else."
    )
    expires_in: Annotated[str, Field(max_length=40), AfterValidator(_duration)] | None = Field(
        None, description="A duration such as 30d; without it the token lives until it is revoked."
    )


def uid_of(name: str) -> int | None:
    """Asks the machine's own user database."""
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):  # ValueError: a NUL in the name
        return None


def check_unix_user(name: str | None, look_up: LookUp) -> None:
    """Jobs never run as root, nor as somebody who does not exist. Raises InvalidInput."""
    if name is None:
        return
    uid = look_up(name)
    if uid is None:
        raise InvalidInput("unknown Unix user", details=[Problem("unix_user", f"this machine has no user {name!r}")])
    if uid == 0:
        raise InvalidInput("jobs never run as root", details=[Problem("unix_user", f"{name!r} has the uid 0")])


class Rooms:
    """The endpoints' bodies; ``endpoints`` lists them."""

    def __init__(self, store: Store, look_up: LookUp) -> None:
        self.store = store
        self.look_up = look_up

    async def whoami(self, call: Call) -> dict[str, Any]:
        actor = call.actor
        return {
            "user": actor.user,
            "role": actor.role,
            "projects": dict(actor.projects),
            "unix_user": actor.unix_user,
        }

    async def users(self, call: Call) -> dict[str, Any]:
        page: Page = call.query
        found = await self.store.read(lambda conn: accounts.list_users(conn, page.cursor or "", page.limit + 1))
        return _paged([user.to_dict() for user in found], page.limit, "name")

    async def add_user(self, call: Call) -> dict[str, Any]:
        new: NewUser = call.body
        check_unix_user(new.unix_user, self.look_up)
        user = await self.store.write(
            lambda tx: accounts.add_user(tx, call.actor.user, User(new.name, new.role, tx.now, new.unix_user))
        )
        return user.to_dict()

    async def change_user(self, call: Call) -> dict[str, Any]:
        values = call.body.model_dump(exclude_unset=True)
        if values.get("role", "") is None:
            values.pop("role")
        check_unix_user(values.get("unix_user"), self.look_up)
        name = call.path["user"]
        user = await self.store.write(lambda tx: accounts.change_user(tx, call.actor.user, name, values))
        return user.to_dict()

    async def projects(self, call: Call) -> dict[str, Any]:
        page: Page = call.query
        seen = visible(call.actor)
        found = await self.store.read(
            lambda conn: accounts.list_projects(conn, seen, page.cursor or "", page.limit + 1)
        )
        items = [row | {"created_at": format_time(row["created_at"])} for row in found]
        return _paged(items, page.limit, "name")

    async def add_project(self, call: Call) -> dict[str, Any]:
        name = call.body.name
        await self.store.write(lambda tx: accounts.add_project(tx, call.actor.user, name))
        return {"kind": "Project", "name": name}

    async def members(self, call: Call) -> dict[str, Any]:
        page: Page = call.query
        project = call.path["project"]

        def load(conn: Connection) -> list[dict[str, Any]]:
            accounts.require_project(conn, project)
            return accounts.list_members(conn, project, page.cursor or "", page.limit + 1)

        return _paged(await self.store.read(load), page.limit, "user")

    async def set_member(self, call: Call) -> dict[str, Any]:
        project, user, role = call.path["project"], call.path["user"], call.body.role
        await self.store.write(lambda tx: accounts.set_member(tx, call.actor.user, project, user, role))
        return {"user": user, "role": role}

    async def drop_member(self, call: Call) -> None:
        project, user = call.path["project"], call.path["user"]
        await self.store.write(lambda tx: accounts.set_member(tx, call.actor.user, project, user, None))

    async def tokens(self, call: Call) -> dict[str, Any]:
        page: Page = call.query
        owner = None if decide(call.actor, "users.read") else call.actor.user
        found = await self.store.read(lambda conn: accounts.list_tokens(conn, owner, page.cursor or "", page.limit + 1))
        return _paged([token.to_dict() for token in found], page.limit, "id")

    async def add_token(self, call: Call) -> dict[str, Any]:
        """The answer's ``token`` is the secret; it is shown this once and kept nowhere."""
        new: NewToken = call.body
        user = new.user or call.actor.user
        if user != call.actor.user and not decide(call.actor, "users.write"):
            raise Forbidden("a token for another user is made by an administrator")
        if new.node and not decide(call.actor, "nodes.write"):
            raise Forbidden("a token for a node's agent is made by an administrator")
        now = self.store.clock()
        secret = accounts.new_token(now)
        ends = now + parse_duration(new.expires_in) if new.expires_in else None

        def add(tx: Tx) -> Token:
            return accounts.add_token(
                tx, call.actor.user, user, new.name, secret=secret, expires_at=ends, node=new.node
            )

        token = await self.store.write(add)
        return token.to_dict() | {"token": secret.text}

    async def revoke_token(self, call: Call) -> None:
        owner = None if decide(call.actor, "users.write") else call.actor.user
        token_id = call.path["id"]
        await self.store.write(lambda tx: accounts.revoke_token(tx, call.actor.user, token_id, owner=owner))


def _paged(items: list[dict[str, Any]], limit: int, key: str) -> dict[str, Any]:
    """``items`` holds one more than asked for where there is a next page."""
    more = len(items) > limit
    return {"items": items[:limit], "next_cursor": items[limit - 1][key] if more else None}


def endpoints(store: Store, *, look_up: LookUp = uid_of) -> Sequence[Endpoint]:
    do = Rooms(store, look_up)
    users, projects, tokens = "/api/v1/users", "/api/v1/projects", "/api/v1/tokens"
    members = projects + "/{project}/members"
    return [
        Endpoint("GET", "/api/v1/whoami", "whoami.read", do.whoami, "Who am I, and what may I do"),
        Endpoint("GET", users, "users.read", do.users, "List users", query=Page),
        Endpoint("POST", users, "users.write", do.add_user, "Make a user", body=NewUser, status=201),
        Endpoint("PUT", users + "/{user}", "users.write", do.change_user, "Change a user", body=UserChange),
        Endpoint("GET", projects, "projects.read", do.projects, "List the projects that I see", query=Page),
        Endpoint("POST", projects, "projects.write", do.add_project, "Make a project", body=NewProject, status=201),
        Endpoint("GET", members, "members.read", do.members, "List a project's members", query=Page),
        Endpoint(
            "PUT", members + "/{user}", "members.write", do.set_member, "Give a user a role in it", body=Membership
        ),
        Endpoint("DELETE", members + "/{user}", "members.write", do.drop_member, "Take a user out of it", status=204),
        Endpoint("GET", tokens, "tokens.read", do.tokens, "List tokens, without their secrets", query=Page),
        Endpoint("POST", tokens, "tokens.write", do.add_token, "Make a token", body=NewToken, status=201),
        Endpoint("DELETE", tokens + "/{id}", "tokens.write", do.revoke_token, "Revoke a token", status=204),
    ]
