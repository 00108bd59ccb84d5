"""Users, projects, members, tokens and sessions in the database. Every change is an event in the same transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.engine import Connection, Row

from penstock.base.errors import Conflict, NotFound
from penstock.base.reasons import Reason
from penstock.base.resource import Actor, Ref
from penstock.store.store import Tx
from penstock.tenancy.state import Token, User
from penstock.tenancy.tables import members, projects, sessions, tokens, users
from penstock.tenancy.tokens import SESSION, TOKEN, Secret, mint

SESSION_S = 12 * 3600.0  # how long a console login lasts
ADMIN = "admin"
DEFAULT_PROJECT = "default"


# ---- users


def add_user(tx: Tx, actor: str, user: User) -> User:
    if _user_row(tx.conn, user.name) is not None:
        raise Conflict(f"there is a user {user.name!r} already")
    tx.conn.execute(
        insert(users).values(name=user.name, role=user.role, unix_user=user.unix_user, created_at=user.created_at)
    )
    said = {"role": user.role, "unix_user": user.unix_user}
    tx.emit(_user(user.name), Reason.UserCreated, _role_words(user.role), actor=actor, data=said)
    return user


def change_user(tx: Tx, actor: str, name: str, values: dict[str, str | None]) -> User:
    """``values`` may hold "role" and "unix_user". The last fleet administrator keeps the role."""
    row = _user_row(tx.conn, name)
    if row is None:
        raise NotFound(f"there is no user {name!r}")
    if row.role == ADMIN and values.get("role", ADMIN) != ADMIN and _administrators(tx.conn) == 1:
        raise Conflict(
            f"{name!r} is the only administrator", hint="Give another user the role admin first; nothing was changed."
        )
    changed = {key: value for key, value in values.items() if getattr(row, key) != value}
    if changed:
        tx.conn.execute(update(users).where(users.c.name == name).values(**changed))
        words = ", ".join(f"{key} {value!r}" for key, value in changed.items())
        tx.emit(_user(name), Reason.UserUpdated, words, actor=actor, data=changed)
    return find_user(tx.conn, name)


def find_user(conn: Connection, name: str) -> User:
    row = _user_row(conn, name)
    if row is None:
        raise NotFound(f"there is no user {name!r}")
    return User(row.name, row.role, row.created_at, row.unix_user, memberships(conn, name))


def list_users(conn: Connection, after: str, limit: int) -> list[User]:
    rows = conn.execute(select(users).where(users.c.name > after).order_by(users.c.name).limit(limit)).all()
    return [User(row.name, row.role, row.created_at, row.unix_user, memberships(conn, row.name)) for row in rows]


def any_user(conn: Connection) -> bool:
    return conn.execute(select(users.c.name).limit(1)).first() is not None


def actor_of(conn: Connection, name: str) -> Actor | None:
    """What the API needs to know of a user at every request."""
    row = _user_row(conn, name)
    return Actor(row.name, row.role, memberships(conn, name), row.unix_user) if row else None


def _user_row(conn: Connection, name: str) -> Row[Any] | None:
    return conn.execute(select(users).where(users.c.name == name)).first()


def _administrators(conn: Connection) -> int:
    return conn.execute(select(func.count()).select_from(users).where(users.c.role == ADMIN)).scalar_one()


def _user(name: str) -> Ref:
    return Ref("User", name, id=name)


def _role_words(role: str) -> str:
    return f"fleet-wide role {role}" if role else "no fleet-wide role"


# ---- projects and their members


_PROJECT = select(projects.c.name).where(projects.c.name == bindparam("name"))  # asked at every submission: made once


def add_project(tx: Tx, actor: str, name: str) -> None:
    if project_exists(tx.conn, name):
        raise Conflict(f"there is a project {name!r} already")
    tx.conn.execute(insert(projects).values(name=name, created_at=tx.now))
    tx.emit(_project(name), Reason.Created, actor=actor)


def project_exists(conn: Connection, name: str) -> bool:
    return conn.execute(_PROJECT, {"name": name}).first() is not None


def require_project(conn: Connection, name: str) -> None:
    """Raises NotFound. For rooms that put something into a project."""
    if not project_exists(conn, name):
        raise NotFound(f"there is no project {name!r}")


def list_projects(conn: Connection, seen: frozenset[str] | None, after: str, limit: int) -> list[dict[str, Any]]:
    """Those in ``seen`` (None: all), in the order of their names."""
    query = select(projects).where(projects.c.name > after).order_by(projects.c.name).limit(limit)
    if seen is not None:
        query = query.where(projects.c.name.in_(sorted(seen)))
    return [{"kind": "Project", "name": row.name, "created_at": row.created_at} for row in conn.execute(query)]


def memberships(conn: Connection, user: str) -> dict[str, str]:
    query = select(members.c.project, members.c.role).where(members.c.user == user).order_by(members.c.project)
    return {row.project: row.role for row in conn.execute(query)}


def list_members(conn: Connection, project: str, after: str, limit: int) -> list[dict[str, Any]]:
    query = select(members).where(members.c.project == project, members.c.user > after)
    return [{"user": row.user, "role": row.role} for row in conn.execute(query.order_by(members.c.user).limit(limit))]


def set_member(tx: Tx, actor: str, project: str, user: str, role: str | None) -> None:
    """``role`` None takes the user out of the project."""
    require_project(tx.conn, project)
    if _user_row(tx.conn, user) is None:
        raise NotFound(f"there is no user {user!r}")
    mine = (members.c.project == project) & (members.c.user == user)
    before = tx.conn.execute(select(members.c.role).where(mine)).scalar()
    if before == role:
        return
    if role is None:
        tx.conn.execute(members.delete().where(mine))
    elif before is None:
        tx.conn.execute(insert(members).values(project=project, user=user, role=role))
    else:
        tx.conn.execute(update(members).where(mine).values(role=role))
    words = f"{user} is {role} now" if role else f"{user} is no member any more"
    tx.emit(_project(project), Reason.Updated, words, actor=actor, data={"user": user, "role": role})


def _project(name: str) -> Ref:
    return Ref("Project", name, project=name, id=name)


# ---- tokens


def add_token(
    tx: Tx,
    actor: str,
    user: str,
    name: str,
    *,
    secret: Secret,
    expires_at: float | None = None,
    node: str | None = None,
) -> Token:
    """Keep the hash of ``secret`` as a token of ``user``; with a ``node`` it is that node's agent's."""
    if _user_row(tx.conn, user) is None:
        raise NotFound(f"there is no user {user!r}")
    token = Token(secret.id, user, name, secret.text[-4:], tx.now, expires_at, node=node)
    tx.conn.execute(
        insert(tokens).values(
            id=token.id,
            user=user,
            name=name,
            hash=secret.hash,
            last_four=token.last_four,
            created_at=token.created_at,
            expires_at=expires_at,
            node=node,
        )
    )
    said = {"user": user, "last_four": token.last_four} | ({"node": node} if node else {})
    whose = f"for the agent of {node}" if node else f"for {user}"
    tx.emit(_token(token), Reason.TokenCreated, whose, actor=actor, data=said)
    return token


def revoke_token(tx: Tx, actor: str, token_id: str, *, owner: str | None) -> None:
    """``owner`` None: whosesoever it is. A token that is not the owner's is not found. Twice is once."""
    row = tx.conn.execute(select(tokens).where(tokens.c.id == token_id)).first()
    if row is None or owner not in (None, row.user):
        raise NotFound("there is no such token", hint="`penstock get tokens` lists yours.")
    if row.revoked_at is not None:
        return
    tx.conn.execute(update(tokens).where(tokens.c.id == token_id).values(revoked_at=tx.now))
    tx.conn.execute(sessions.delete().where(sessions.c.token_id == token_id))
    tx.emit(_token(_to_token(row)), Reason.TokenRevoked, f"of {row.user}", actor=actor)


def tokens_named(conn: Connection, user: str, name: str) -> list[str]:
    """The ids of the user's unrevoked tokens of that name."""
    mine = (tokens.c.user == user) & (tokens.c.name == name) & tokens.c.revoked_at.is_(None)
    return list(conn.execute(select(tokens.c.id).where(mine)).scalars())


def list_tokens(conn: Connection, owner: str | None, after: str, limit: int) -> list[Token]:
    """Newest last; ``owner`` None: everybody's."""
    query = select(tokens).where(tokens.c.id > after).order_by(tokens.c.id).limit(limit)
    if owner is not None:
        query = query.where(tokens.c.user == owner)
    return [_to_token(row) for row in conn.execute(query)]


def token_by_id(conn: Connection, token_id: str) -> tuple[Token, str] | None:
    """The token and its hash."""
    row = conn.execute(select(tokens).where(tokens.c.id == token_id)).first()
    return (_to_token(row), row.hash) if row else None


def _to_token(row: Row[Any]) -> Token:
    return Token(row.id, row.user, row.name, row.last_four, row.created_at, row.expires_at, row.revoked_at, row.node)


def _token(token: Token) -> Ref:
    return Ref("Token", token.name, id=token.id)


# ---- sessions of the console


def open_session(tx: Tx, token: Token) -> Secret:
    """A cookie's secret that dies with the token, after ``SESSION_S`` or at ``close_session``, whichever is first."""
    tx.conn.execute(sessions.delete().where(sessions.c.expires_at < tx.now))
    secret = mint(SESSION, tx.now)
    ends = min(tx.now + SESSION_S, token.expires_at or tx.now + SESSION_S)
    tx.conn.execute(
        insert(sessions).values(id=secret.id, token_id=token.id, hash=secret.hash, created_at=tx.now, expires_at=ends)
    )
    tx.emit(Ref("Session", token.user, id=secret.id), Reason.SessionOpened, "console", actor=token.user)
    return secret


def close_session(tx: Tx, session_id: str, user: str) -> None:
    gone = tx.conn.execute(sessions.delete().where(sessions.c.id == session_id))
    if gone.rowcount:
        tx.emit(Ref("Session", user, id=session_id), Reason.SessionClosed, "console", actor=user)


def session_by_id(conn: Connection, session_id: str) -> tuple[str, str, float] | None:
    """The token's id, the session's hash, and when it ends (epoch seconds)."""
    row = conn.execute(select(sessions).where(sessions.c.id == session_id)).first()
    return (row.token_id, row.hash, row.expires_at) if row else None


def new_token(now: float) -> Secret:
    return mint(TOKEN, now)
