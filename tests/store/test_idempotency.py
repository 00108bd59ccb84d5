from __future__ import annotations

import asyncio
from typing import Any

import pytest

from penstock.base.errors import Conflict, InvalidInput
from penstock.store import events
from penstock.store.idempotency import KEPT_S, digest, recall, remember
from penstock.store.store import Tx
from tests.stores import Clock, emit, opened

BODY = digest(b'{"spec": {}}')


def create(key: str, user: str = "ann", body: str = BODY) -> Any:
    def fn(tx: Tx) -> Any:
        answer = recall(tx, key, user, body)
        if answer is None:
            emit(tx)
            answer = {"job": "digits", "at": tx.now}
            remember(tx, key, user, body, answer)
        return answer

    return fn


def test_the_same_request_twice_is_done_once(url: str) -> None:
    async def main() -> None:
        clock = Clock()
        async with opened(url, clock) as store:
            answers = await asyncio.gather(*(store.write(create("k1")) for _ in range(5)))
            clock.now += KEPT_S - 1
            answers.append(await store.write(create("k1")))
            assert answers == [answers[0]] * 6
            assert (await store.read(events.verify)).rows == 1
            assert await store.write(create("k1", user="bob")) != answers[0], "a key belongs to its user"

    asyncio.run(main())


def test_another_body_under_one_key_is_refused(sqlite_url: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url) as store:
            await store.write(create("k1"))
            with pytest.raises(Conflict, match="'k1' was used before"):
                await store.write(create("k1", body=digest(b"other")))
            assert (await store.read(events.verify)).rows == 1

    asyncio.run(main())


@pytest.mark.parametrize("step", [KEPT_S + 1, 10 * KEPT_S])
def test_a_key_is_free_again_after_a_day(sqlite_url: str, step: float) -> None:
    async def main() -> None:
        clock = Clock()
        async with opened(sqlite_url, clock) as store:
            await store.write(create("k1"))
            clock.now += step
            await store.write(create("k1", body=digest(b"other")))
            assert (await store.read(events.verify)).rows == 2

    asyncio.run(main())


def test_a_failed_creation_is_not_remembered(sqlite_url: str) -> None:
    def fails(tx: Tx) -> None:
        create("k1")(tx)
        raise ZeroDivisionError

    async def main() -> None:
        async with opened(sqlite_url) as store:
            with pytest.raises(ZeroDivisionError):
                await store.write(fails)
            assert await store.write(lambda tx: recall(tx, "k1", "ann", BODY)) is None

    asyncio.run(main())


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "a\x00b", "ключ", "\U0001f600"])
def test_an_unusable_key_is_refused(sqlite_url: str, key: str) -> None:
    async def main() -> None:
        async with opened(sqlite_url) as store:
            with pytest.raises(InvalidInput):
                await store.write(create(key))

    asyncio.run(main())
