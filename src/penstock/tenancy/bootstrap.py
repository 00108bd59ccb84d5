"""The first start: one administrator, one project, one random token in a file that only its owner can read.

There is no default password and nothing to change after the installation. The token is never printed or logged.
"""

from __future__ import annotations

import os
import secrets

from penstock.base.errors import NotFound, Unavailable
from penstock.store.store import Store, Tx
from penstock.tenancy import accounts
from penstock.tenancy.state import User
from penstock.tenancy.tokens import Secret

TOKEN_FILE = "token"  # noqa: S105 - a file's name
_LOCAL = "local"  # the name of the token in the file


async def bootstrap(store: Store, data_dir: str) -> bool:
    """Make the first user, project and token where there is no user yet. Answers whether it did.

    The file is written before the commit: a crash between the two leaves a file that opens nothing, and the next
    start writes it anew. The other way round it would leave an administrator whose token nobody has.
    """
    if await store.read(accounts.any_user):
        return False
    secret = accounts.new_token(store.clock())
    draft = _draft(data_dir, secret)

    def found(tx: Tx) -> bool:
        if accounts.any_user(tx.conn):
            return False  # another server on this database was first
        os.replace(draft, os.path.join(data_dir, TOKEN_FILE))
        _sync_folder(data_dir)
        accounts.add_user(tx, "system", User(accounts.ADMIN, "admin", tx.now))
        accounts.add_project(tx, "system", accounts.DEFAULT_PROJECT)
        accounts.add_token(tx, "system", accounts.ADMIN, _LOCAL, secret=secret)
        return True

    try:
        return await store.write(found)
    finally:
        _drop(draft)


async def reset_token(store: Store, data_dir: str) -> str:
    """Make a new administrator's token, revoke those that this file held before, write the file. Answers its path."""
    secret = accounts.new_token(store.clock())
    path = os.path.join(data_dir, TOKEN_FILE)
    draft = _draft(data_dir, secret)

    def renew(tx: Tx) -> None:
        if accounts.actor_of(tx.conn, accounts.ADMIN) is None:
            raise NotFound("there is no user 'admin' in this database", hint="Start the server once: `penstock up`.")
        for old in accounts.tokens_named(tx.conn, accounts.ADMIN, _LOCAL):
            accounts.revoke_token(tx, "system", old, owner=None)
        accounts.add_token(tx, "system", accounts.ADMIN, _LOCAL, secret=secret)

    try:
        await store.write(renew)
        os.replace(draft, path)
        _sync_folder(data_dir)
    finally:
        _drop(draft)
    return path


def read_token(data_dir: str) -> str | None:
    """What the file holds; None where there is none. For the local CLI and for tests."""
    try:
        with open(os.path.join(data_dir, TOKEN_FILE), encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def _draft(data_dir: str, secret: Secret) -> str:
    """The file under another name, complete and on the disk, ready to be renamed; nobody else could ever open it."""
    path = os.path.join(data_dir, f".{TOKEN_FILE}.{secrets.token_hex(8)}")
    try:
        os.makedirs(data_dir, mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise Unavailable(
            f"the token's file cannot be written: {exc.strerror}",
            hint=f"Check that the folder {data_dir} belongs to the user that runs the server.",
        ) from exc
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secret.text + "\n")
        file.flush()
        os.fsync(file.fileno())
    return path


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _drop(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # it was renamed
