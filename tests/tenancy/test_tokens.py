"""Secrets: made at random, kept as hashes, revoked at once, lost and made anew."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import Conflict, NotFound, Unauthenticated, Unavailable
from penstock.store.store import Store, Tx
from penstock.tenancy import accounts, tokens
from penstock.tenancy.access import FRESH_S, Access
from penstock.tenancy.bootstrap import bootstrap, read_token, reset_token
from penstock.tenancy.state import User
from tests.postgres import Cluster
from tests.stores import Clock, opened


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/penstock.db"


def access_of(store: Store, clock: Clock, monotonic: list[float]) -> Access:
    return Access(store, now=clock, monotonic=lambda: monotonic[0])


def test_the_first_start_makes_one_secret_in_a_private_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test() -> None:
        caplog.set_level(logging.DEBUG)
        os.umask(0o000)
        async with opened(url(tmp_path)) as store:
            assert await bootstrap(store, str(tmp_path))
            assert not await bootstrap(store, str(tmp_path))
            token = read_token(str(tmp_path)) or ""
            path = tmp_path / "token"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert tokens.parse(token) and len(token.split("_", 2)[2]) == 43
            clock = Clock()
            access = access_of(store, clock, [0.0])
            actor = await access(token)
            assert actor is not None and (actor.user, actor.role) == ("admin", "admin")
            assert await store.read(lambda conn: accounts.project_exists(conn, "default"))
        assert [name for name in os.listdir(tmp_path) if "token" in name] == ["token"]

    before = os.umask(0o022)
    try:
        asyncio.run(test())
    finally:
        os.umask(before)
    token = read_token(str(tmp_path)) or ""
    written = b"".join(path.read_bytes() for path in tmp_path.glob("penstock.db*"))
    assert token.encode() not in written and token[30:].encode() not in written
    said = capfd.readouterr()
    assert token not in caplog.text + said.out + said.err


def test_a_lost_file_is_replaced_and_the_old_token_dies(tmp_path: Path) -> None:
    async def test() -> None:
        clock, at = Clock(), [0.0]
        async with opened(url(tmp_path), clock) as store:
            with pytest.raises(NotFound):
                await reset_token(store, str(tmp_path))
            await bootstrap(store, str(tmp_path))
            old = read_token(str(tmp_path)) or ""
            access = access_of(store, clock, at)
            assert await access(old)
            (tmp_path / "token").unlink()
            assert await reset_token(store, str(tmp_path)) == str(tmp_path / "token")
            new = read_token(str(tmp_path)) or ""
            assert await access(new) and not await access(old)
            assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600

    asyncio.run(test())


def test_a_link_in_the_tokens_place_is_replaced_not_followed(tmp_path: Path) -> None:
    async def test() -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_text("untouched")
        data = tmp_path / "data"
        data.mkdir()
        (data / "token").symlink_to(elsewhere)
        async with opened(url(data)) as store:
            await bootstrap(store, str(data))
        assert elsewhere.read_text() == "untouched" and not (data / "token").is_symlink()

    asyncio.run(test())


def test_a_folder_that_is_none_is_a_clear_error(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(url(tmp_path)) as store:
            (tmp_path / "file").write_text("")
            with pytest.raises(Unavailable):
                await bootstrap(store, str(tmp_path / "file"))
            assert not await store.read(accounts.any_user)

    asyncio.run(test())


def test_revocation_counts_at_once_and_elsewhere_soon(tmp_path: Path) -> None:
    async def test() -> None:
        clock, at = Clock(), [0.0]
        async with opened(url(tmp_path), clock) as store, opened(url(tmp_path), clock) as other:
            await bootstrap(store, str(tmp_path))
            token = read_token(str(tmp_path)) or ""
            here, there = access_of(store, clock, at), access_of(other, clock, at)
            session = await here.log_in(token)
            for access in (here, there):
                assert await access(token) and await access(session, "cookie")
                assert not await access(session) and not await access(token, "cookie")
            identity = token.split("_")[1]
            await store.write(lambda tx: accounts.revoke_token(tx, "admin", identity, owner=None))
            await asyncio.sleep(0)
            assert not await here(token) and not await here(session, "cookie")
            at[0] += FRESH_S + 0.01
            assert not await there(token) and not await there(session, "cookie")
            with pytest.raises(Unauthenticated):
                await here.log_in(token)

    asyncio.run(test())


def test_a_change_of_roles_counts_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        clock = Clock()
        async with opened(url(tmp_path), clock) as store:
            await bootstrap(store, str(tmp_path))
            access = access_of(store, clock, [0.0])
            secret = accounts.new_token(clock.now)

            def make(tx: Tx) -> None:
                accounts.add_user(tx, "admin", User("ann", "", clock.now))
                accounts.add_token(tx, "admin", "ann", "t", secret=secret)

            await store.write(make)
            actor = await access(secret.text)
            assert actor is not None and dict(actor.projects) == {}
            await store.write(lambda tx: accounts.set_member(tx, "admin", "default", "ann", "member"))
            await asyncio.sleep(0)
            actor = await access(secret.text)
            assert actor is not None and dict(actor.projects) == {"default": "member"}
            await store.write(lambda tx: accounts.change_user(tx, "admin", "ann", {"role": "admin"}))
            await asyncio.sleep(0)
            actor = await access(secret.text)
            assert actor is not None and actor.role == "admin"

    asyncio.run(test())


def test_tokens_and_sessions_end_with_time(tmp_path: Path) -> None:
    async def test() -> None:
        clock = Clock()
        async with opened(url(tmp_path), clock) as store:
            await bootstrap(store, str(tmp_path))
            access = access_of(store, clock, [0.0])
            short, ends = accounts.new_token(clock.now), clock.now + 60
            await store.write(
                lambda tx: accounts.add_token(tx, "admin", "admin", "short", secret=short, expires_at=ends)
            )
            of_short = await access.log_in(short.text)
            of_long = await access.log_in(read_token(str(tmp_path)) or "")
            assert await access(short.text) and await access(of_short, "cookie")
            clock.now += 60
            assert not await access(short.text) and not await access(of_short, "cookie")
            assert await access(of_long, "cookie")
            clock.now += accounts.SESSION_S
            assert not await access(of_long, "cookie")

    asyncio.run(test())


def test_logging_out_ends_the_session_alone(tmp_path: Path) -> None:
    async def test() -> None:
        clock = Clock()
        async with opened(url(tmp_path), clock) as store:
            await bootstrap(store, str(tmp_path))
            token = read_token(str(tmp_path)) or ""
            access = access_of(store, clock, [0.0])
            one, two = await access.log_in(token), await access.log_in(f" {token}\n")
            await access.log_out(one)
            await access.log_out("nonsense")
            await asyncio.sleep(0)
            assert not await access(one, "cookie")
            assert await access(two, "cookie") and await access(token)

    asyncio.run(test())


def test_the_last_administrator_stays(tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(url(tmp_path)) as store:
            await bootstrap(store, str(tmp_path))
            with pytest.raises(Conflict):
                await store.write(lambda tx: accounts.change_user(tx, "admin", "admin", {"role": ""}))
            await store.write(lambda tx: accounts.add_user(tx, "admin", User("ann", "admin", tx.now)))
            await store.write(lambda tx: accounts.change_user(tx, "ann", "admin", {"role": ""}))

    asyncio.run(test())


def test_a_secret_does_not_show_itself() -> None:
    secret = tokens.mint(tokens.TOKEN, 0.0)
    assert secret.text not in repr(secret) and secret.text[-10:] not in f"{secret}"
    assert tokens.mint(tokens.TOKEN, 0.0).text != secret.text


@given(st.text(max_size=100) | st.from_regex(r"ps[ts]_[0-9A-Z]{20,28}_[\w-]{40,45}", fullmatch=True))
def test_anything_may_be_shown(text: str) -> None:
    shown = tokens.parse(text)
    assert shown is None or (shown.kind in ("pst", "pss") and text.startswith(f"{shown.kind}_{shown.id}_"))


@pytest.mark.real
@pytest.mark.needs("postgresql")
def test_another_server_on_postgresql_forgets_within_a_second(tmp_path: Path) -> None:
    cluster = Cluster()
    try:
        cluster.start()
        address = cluster.create_database()

        async def test() -> None:
            async with opened(address) as store, opened(address) as other:
                await asyncio.gather(bootstrap(store, str(tmp_path / "a")), bootstrap(other, str(tmp_path / "b")))
                found = [read_token(str(tmp_path / name)) for name in "ab"]
                assert sum(token is not None for token in found) == 1  # one of the two was first
                token = found[0] or found[1] or ""
                access = Access(other, now=Clock(), monotonic=time.monotonic)
                assert await access(token)
                identity = token.split("_")[1]
                await store.write(lambda tx: accounts.revoke_token(tx, "admin", identity, owner=None))
                begun = time.monotonic()
                while await access(token):
                    await asyncio.sleep(0.01)
                    assert time.monotonic() - begun < 5
                assert time.monotonic() - begun < 1
                access.close()

        asyncio.run(test())
    finally:
        cluster.remove()
