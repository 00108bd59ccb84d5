"""The loop in virtual time: serial per key, parallel across keys, folding, back-off."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from penstock.reconcile.loop import BACKOFF_LIMIT_S, Loop


class _Jump(selectors.SelectSelector):
    """Instead of waiting, time jumps to the next timer."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout:
            self.skipped += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jump = _Jump()
        super().__init__(self.jump)

    def time(self) -> float:
        return self.jump.skipped


def run(main: Callable[[], Awaitable[None]]) -> float:
    """Run in virtual time; the answer is how much of it went by."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(_whole(main))
        return runner.get_loop().time()


async def _whole(main: Callable[[], Awaitable[None]]) -> None:
    await main()


def test_one_key_is_never_looked_at_twice_at_once() -> None:
    running = most = looks = 0

    async def look(_item: object) -> None:
        nonlocal running, most, looks
        running += 1
        most = max(most, running)
        looks += 1
        await asyncio.sleep(1)
        running -= 1

    async def main() -> None:
        loop = Loop({"job": look})
        for _ in range(10):
            loop.enqueue("job", 1)
            await asyncio.sleep(0.01)
        await asyncio.sleep(5)

    run(main)
    assert most == 1
    assert looks == 2  # the first, and one for all the asks that came meanwhile


def test_keys_are_looked_at_together() -> None:
    async def look(_item: object) -> None:
        await asyncio.sleep(1)

    async def main() -> None:
        loop = Loop({"job": look})
        for key in range(100):
            loop.enqueue("job", key)
        await asyncio.sleep(1.5)

    assert run(main) < 2


def test_a_failing_key_is_tried_again_ever_later_and_holds_up_nobody() -> None:
    tries: list[float] = []
    others = 0

    async def look(item: object) -> None:
        nonlocal others
        if item == "bad":
            tries.append(asyncio.get_running_loop().time())
            raise RuntimeError("no")
        others += 1

    async def main() -> None:
        loop = Loop({"job": look})
        loop.enqueue("job", "bad")
        loop.enqueue("job", "good")
        await asyncio.sleep(600)
        await loop.close()

    run(main)
    gaps = [b - a for a, b in pairwise(tries)]
    assert others == 1
    assert gaps == sorted(gaps)
    assert max(gaps) <= BACKOFF_LIMIT_S + 0.1
    assert len(tries) > 10


def test_an_earlier_ask_moves_a_timer_forward() -> None:
    seen: list[float] = []

    async def look(_item: object) -> None:
        seen.append(asyncio.get_running_loop().time())

    async def main() -> None:
        loop = Loop({"job": look})
        loop.enqueue("job", 1, 50)
        loop.enqueue("job", 1, 5)
        loop.enqueue("job", 1, 20)
        await asyncio.sleep(100)

    run(main)
    assert [round(at) for at in seen] == [5]


def test_nothing_begins_after_close() -> None:
    looks = 0

    async def look(_item: object) -> float:
        nonlocal looks
        looks += 1
        return 1.0

    async def main() -> None:
        loop = Loop({"job": look})
        loop.enqueue("job", 1)
        await asyncio.sleep(0.1)
        await loop.close()
        loop.enqueue("job", 2)
        await asyncio.sleep(10)

    run(main)
    assert looks == 1


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 5), st.floats(0, 3)), max_size=30))
def test_every_ask_is_followed_by_a_look(asks: list[tuple[int, float, float]]) -> None:
    """Whatever the order of asks and their delays: after the last ask for a key, a look begins no sooner than it."""
    last: dict[int, float] = {}
    began: dict[int, float] = {}

    async def look(item: Any) -> None:
        began[item] = asyncio.get_running_loop().time()
        await asyncio.sleep(0.5)

    async def main() -> None:
        loop = Loop({"job": look})
        for key, pause, delay in asks:
            await asyncio.sleep(pause)
            loop.enqueue("job", key, delay)
            last[key] = asyncio.get_running_loop().time()
        await asyncio.sleep(100)

    run(main)
    assert set(began) == set(last)
    assert all(began[key] >= last[key] - 0.51 for key in last)
