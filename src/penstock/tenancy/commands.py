"""``penstock project``, ``user`` and ``token``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from penstock.client.verb import Column, Invocation, Verb

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.client.resources import Resource


def _plain(title: str, name: str) -> Column:
    return Column(title, lambda row, _: str(row.get(name) or ""))


USERS = (
    _plain("NAME", "name"),
    _plain("ROLE", "role"),
    _plain("UNIX USER", "unix_user"),
    _plain("CREATED", "created_at"),
)
TOKENS = (
    _plain("ID", "id"),
    _plain("USER", "user"),
    _plain("NAME", "name"),
    _plain("NODE", "node"),
    _plain("ENDS IN", "last_four"),
    _plain("CREATED", "created_at"),
    _plain("EXPIRES", "expires_at"),
    _plain("REVOKED", "revoked_at"),
)
PROJECTS = (_plain("NAME", "name"), _plain("CREATED", "created_at"))
MEMBERS = (_plain("USER", "user"), _plain("ROLE", "role"))


def _token(call: Invocation, arguments: Namespace) -> int:
    tokens = call.client.tokens
    if arguments.what == "list":
        return _show(call, TOKENS, list(tokens.list()))
    if arguments.what == "revoke":
        for token_id in arguments.id:
            tokens.revoke(token_id)
            call.output.note(f"token {token_id} is revoked")
        return 0
    name = arguments.name or ("agent" if arguments.agent else None)
    token = tokens.create(user=arguments.user, name=name, expires_in=arguments.expires_in, node=arguments.agent)
    if call.output.format == "table":
        call.output.line(token["token"])
        whose = f"of the agent of {arguments.agent}" if arguments.agent else f"of {token['user']}"
        call.output.note(f"token {token['id']} {whose}: it is shown this once")
    else:
        call.output.document(token)
    return 0


def _token_arguments(parser: ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="create|list|revoke")
    create = what.add_parser("create", help="make a token and print its secret, this once", add_help=True)
    create.add_argument("--user", metavar="NAME", help="whose (default: yours; an administrator may name another)")
    create.add_argument("--name", metavar="NAME", help="what it is for")
    create.add_argument(
        "--agent", metavar="NODE", help="for that node's agent: it tells of the node, and opens nothing else"
    )
    create.add_argument("--expires-in", metavar="TIME", help="30d; without it, it lives until it is revoked")
    what.add_parser("list", help="list tokens, without their secrets")
    what.add_parser("revoke", help="end a token").add_argument("id", nargs="+", metavar="ID")


def _user(call: Invocation, arguments: Namespace) -> int:
    users = call.client.users
    if arguments.what == "list":
        return _show(call, USERS, list(users.list()))
    user = users.create(arguments.name, role=arguments.role, unix_user=arguments.unix_user)
    return _made(
        call, user, f"user {user['name']} was made; a token for it: penstock token create --user {user['name']}"
    )


def _user_arguments(parser: ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="create|list")
    create = what.add_parser("create", help="make a user")
    create.add_argument("name", metavar="NAME")
    create.add_argument("--role", choices=("admin", "viewer"), default="", help="everywhere; without it: as granted")
    create.add_argument("--unix-user", metavar="NAME", help="who the user's jobs run as on this machine")
    what.add_parser("list", help="list users")


def _project(call: Invocation, arguments: Namespace) -> int:
    projects = call.client.projects
    if arguments.what == "list":
        return _show(call, PROJECTS, list(projects.list()))
    if arguments.what == "members":
        return _show(call, MEMBERS, projects.members(arguments.name))
    if arguments.what == "grant":
        role = None if arguments.role == "none" else arguments.role
        projects.grant(arguments.name, arguments.user, role)
        call.output.note(
            f"{arguments.user} is {role or 'no member'} of {arguments.name}"
            if role is None
            else f"{arguments.user} is {role} of {arguments.name}"
        )
        return 0
    project = projects.create(arguments.name)
    return _made(call, project, f"project {project['name']} was made")


def _project_arguments(parser: ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="create|list|members|grant")
    what.add_parser("create", help="make a project").add_argument("name", metavar="NAME")
    what.add_parser("list", help="list the projects that you see")
    what.add_parser("members", help="list a project's members").add_argument("name", metavar="NAME")
    grant = what.add_parser("grant", help="give a user a role in it, or take it away")
    grant.add_argument("name", metavar="PROJECT")
    grant.add_argument("user", metavar="USER")
    grant.add_argument("role", choices=("admin", "member", "viewer", "none"))


def _show(call: Invocation, columns: Sequence[Column], rows: Sequence[Resource]) -> int:
    if call.output.format == "table":
        call.output.table(columns, rows, call.now)
    else:
        call.output.document({"items": list(rows)})
    return 0


def _made(call: Invocation, body: dict[str, Any], words: str) -> int:
    if call.output.format == "table":
        call.output.note(words)
    else:
        call.output.document(body)
    return 0


VERBS = {
    "project": Verb(
        "penstock project create vision\npenstock project grant vision anna member\npenstock project members vision",
        _project_arguments,
        _project,
        about="Roles: a viewer reads, a member runs jobs, an admin also says who may.",
    ),
    "user": Verb("penstock user create anna --unix-user anna\npenstock user list", _user_arguments, _user),
    "token": Verb(
        "penstock token create --user anna --expires-in 90d\npenstock token create --agent node-3\npenstock token revoke 01JD2Z8Q",
        _token_arguments,
        _token,
        about="The server keeps a token's hash only.",
    ),
}
