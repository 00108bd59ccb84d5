"""The rings: what was taken comes back, coarser as it gets older; nothing that comes in makes them grow."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.telemetry.charts import charts
from penstock.telemetry.history import MOST_SERIES, TIERS, History
from penstock.telemetry.push import Row, Series
from penstock.telemetry.push import digest as digest_of
from tests.stores import NOON
from tests.telemetry.agents import Agent

LOAD = Series("penstock_gpu_power_watts", (("gpu", "0"), ("uuid", "GPU-0")))
SENT = Series("penstock_node_network_transmit_bytes_total", (("device", "eth0"),), "counter")


def one(series: tuple[Series, ...] = (LOAD,)) -> History:
    history = History()
    history.learn("n", digest_of(series), series)
    return history


def test_an_hour_comes_back_finest_where_it_is_newest() -> None:
    history = one()
    for minute in range(120):
        for second in range(0, 60, 10):
            history.take("n", [Row(NOON + minute * 60 + second, (float(minute),))])
    (series,) = history.series("n", NOON, NOON + 7200)
    assert (series.name, series.device) == ("penstock_gpu_power_watts", "GPU-0")
    times = [at for at, _ in series.samples]
    assert times == sorted(set(times))
    newest = [value for at, value in series.samples if at >= NOON + 7200 - 590]
    assert len(newest) == 59
    assert newest[-1] == 119
    assert max(later - at for at, later in pairwise(times)) <= 600
    assert all(abs(value - (at - NOON) / 60) <= 10 for at, value in series.samples)


def test_counters_come_back_as_rates_and_what_begins_anew_is_a_gap() -> None:
    history = one((SENT,))
    for look, count in enumerate(
        (1e12, 1e12 + 5e9, 2e9, 7e9)
    ):  # the third: the counter wrapped, or the driver was loaded
        history.take("n", [Row(NOON + look * 10, (count,))])
    (series,) = history.series("n", 0, NOON + 100)
    assert [at - NOON for at, _ in series.samples] == [10, 30]
    assert [value for _, value in series.samples] == pytest.approx([5e8, 5e8], rel=1e-3)


def test_a_silence_is_a_gap_and_what_is_older_than_the_newest_is_left() -> None:
    history = one()
    assert history.take("n", [Row(NOON, (1.0,)), Row(NOON + 10, (2.0,))]) == 2
    assert history.take("n", [Row(NOON + 5, (9.0,)), Row(NOON + 10, (9.0,)), Row(NOON + 3000, (3.0,))]) == 1
    (series,) = history.series("n", 0, NOON + 4000)
    assert series.samples[-1] == (NOON + 3000, 3.0)
    assert 9.0 not in [value for _, value in series.samples]
    assert len(series.samples) <= 3


@given(
    st.lists(st.tuples(st.floats(0, 2e9), st.floats(allow_nan=False, allow_infinity=False) | st.none()), max_size=40)
)
def test_any_rows_are_taken_and_read(rows: list[tuple[float, float | None]]) -> None:
    history = one((LOAD, SENT))
    size = history.bytes
    history.take("n", [Row(at, (value, value)) for at, value in rows])
    for series in history.series("n", -math.inf, math.inf):
        assert all(math.isfinite(value) for _, value in series.samples)
        assert [at for at, _ in series.samples] == sorted(at for at, _ in series.samples)
    assert history.bytes == size


def test_a_million_label_values_take_no_memory() -> None:
    history = History()
    for lot in range(500):
        series = tuple(
            Series(name, (("device", f"d{lot}-{number}"), ("mode", f"m{lot}-{number}")))
            for number in range(500)
            for name in (
                "anything_at_all",
                "penstock_node_network_receive_bytes_total",
                "penstock_node_cpu_seconds_total",
            )
        )
        history.learn("n", str(lot), series)
        history.take("n", [Row(NOON + lot, (1.0,) * len(series))])
    assert history.series_count == MOST_SERIES
    assert history.bytes == MOST_SERIES * 2 * sum(tier.slots for tier in TIERS)


def test_a_device_that_comes_late_finds_room_when_one_has_long_gone() -> None:
    history = History()
    crowd = tuple(Series(LOAD.name, (("uuid", f"GPU-{number}"),)) for number in range(MOST_SERIES))
    history.learn("n", "crowd", crowd)
    history.take("n", [Row(NOON, (1.0,) * MOST_SERIES)])
    history.learn("n", "swapped", (*crowd[1:], Series(LOAD.name, (("uuid", "late"),))))
    history.take("n", [Row(NOON + 10, (2.0,) * MOST_SERIES)])
    found = {series.device: [value for _, value in series.samples] for series in history.series("n", 0, NOON + 99)}
    assert found["GPU-1"] == [1.0, 2.0]
    assert found["late"] == [2.0]
    assert "GPU-0" not in found


def test_the_node_that_was_silent_for_longest_makes_way() -> None:
    history = History(most_bytes=3 * 2 * sum(tier.slots for tier in TIERS))
    for number in range(5):
        history.learn(f"n{number}", "d", (LOAD,))
        history.take(f"n{number}", [Row(NOON, (1.0,))])
    assert history.nodes() == ("n2", "n3", "n4")
    assert not history.knows("n0", "d")


def test_charts_say_what_a_person_asks() -> None:
    agent = Agent("n", gpus=2)
    history = one(agent.series)
    for look in range(3):
        history.take("n", [agent.row(NOON + look * 10)])
    found = {chart.id: chart for chart in charts(history.series("n", 0, NOON + 30))}
    assert [line.name for line in found["gpu_temperature"].lines] == ["GPU-00000000", "GPU-00000001"]
    assert found["gpu_utilization"].lines[0].newest == pytest.approx(97, rel=1e-3)
    assert found["gpu_clock"].lines[0].newest == pytest.approx(1980, rel=1e-3)
    assert found["cpu"].lines[0].newest == pytest.approx(100 * 2 / 9.5, rel=1e-2)
    assert found["memory"].lines[0].newest == pytest.approx(25, rel=1e-2)
    assert found["retransmits"].lines[0].newest == pytest.approx(0.2, rel=1e-2)
    assert {line.name for line in found["pressure"].lines} == {"cpu", "io", "memory"}
    assert found["network_in"].to_dict()["lines"][0]["samples"][-1][1] == pytest.approx(120, rel=1e-2)
