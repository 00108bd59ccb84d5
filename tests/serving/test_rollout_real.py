"""A bad canary behind the real Envoy: its counters, the product's publisher, the planner, and the weights that come of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.serving_rollout_live import BAD, CANARY, GOOD, STABLE, Live
from penstock.serving.state import WHOLE, RolloutPhase, Want

pytestmark = pytest.mark.real


def test_bad_ones_are_taken_back_and_a_good_one_takes_over(tmp_path: Path) -> None:
    async def run() -> None:
        live = Live(tmp_path, 3)
        errors, wrong, good = live.services
        try:
            await live.start(150)
            ends = await asyncio.gather(
                live.roll(errors, *BAD["10% errors"]),
                live.roll(wrong, *BAD["10% wrong answers"]),
                live.roll(good, CANARY, GOOD),
            )
            assert [end.phase for end in ends] == [
                RolloutPhase.ROLLED_BACK, RolloutPhase.ROLLED_BACK, RolloutPhase.PROMOTED
            ]  # fmt: skip
            assert "error rate: " in ends[0].message
            assert "answers agree; at least 99% must: worse" in ends[1].message
            assert errors.wants == {STABLE: Want(1, WHOLE)}
            before = (await live.publisher.counts())["default", errors.name, errors.candidate].requests
            await asyncio.sleep(1.0)
            after = (await live.publisher.counts()).get(("default", errors.name, errors.candidate))
            assert after is None or after.requests == before
        finally:
            await live.close()

    asyncio.run(run())
