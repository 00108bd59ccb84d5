"""When a ticket says that it began."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.diagnosis.ticket import window

NOW = datetime(2026, 11, 26, 15, 30, tzinfo=UTC).timestamp()  # a Thursday

SAID = [
    ("training is slow since this morning", "2026-11-26 06:00"),
    ("slow since yesterday", "2026-11-25 00:00"),
    ("it became slow yesterday evening", "2026-11-25 18:00"),
    ("slow since yesterday 14:10", "2026-11-25 14:10"),
    ("since last night my run crawls", "2026-11-25 22:00"),
    ("slower since Monday", "2026-11-23 00:00"),
    ("slower since monday 9am", "2026-11-23 09:00"),
    ("for the last 2 hours each step takes twice as long", "2026-11-26 13:30"),
    ("in the past hour", "2026-11-26 14:30"),
    ("it began 45 minutes ago", "2026-11-26 14:45"),
    ("half an hour ago", "2026-11-26 15:00"),
    ("since 10:20", "2026-11-26 10:20"),
    ("since 9am", "2026-11-26 09:00"),
    ("slow since 2026-11-20 08:00", "2026-11-20 08:00"),
    ("today", "2026-11-26 00:00"),
    ("this afternoon throughput halved", "2026-11-26 12:00"),
]


@pytest.mark.parametrize(("text", "since"), SAID)
def test_a_time(text: str, since: str) -> None:
    found = window(text, NOW)
    assert found.since is not None
    assert datetime.fromtimestamp(found.since, UTC).strftime("%Y-%m-%d %H:%M") == since
    assert since in found.words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "training is slow",
        "my loss is 3 times what it was",
        "each step takes 400 ms",
        "8 gpus at 90% only",
        "since 23:00",
    ],
)
def test_no_time(text: str) -> None:
    assert window(text, NOW).since is None


def test_a_step() -> None:
    assert window("slow since step 1200, was fine before", NOW).step == 1200


def test_the_writers_own_clock() -> None:
    found = window("since this morning", NOW, 7200.0)
    assert found.since is not None
    assert datetime.fromtimestamp(found.since, UTC).hour == 4


@given(st.text(max_size=200), st.floats(0, 4e9), st.floats(-1e6, 1e6))
def test_it_is_total(text: str, now: float, offset: float) -> None:
    found = window(text, now, offset)
    assert found.since is None or found.since <= now
