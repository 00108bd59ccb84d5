"""Times of tokens: from a runtime's page to the autoscaler's guard."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.serving.recent import Recent
from penstock.serving.runtimes.vllm import Vllm
from penstock.serving.scaling import of_replicas
from penstock.serving.state import Histogram

BOUNDS = (0.1, 1.0, 10.0)


def _total(*counts: float) -> Histogram:
    return Histogram(BOUNDS, counts)


def test_what_was_there_before_is_not_of_the_last_minute_and_what_is_older_leaves_it() -> None:
    recent = Recent()
    assert recent.take(0.0, _total(0, 0, 7, 0)) is None
    assert recent.take(30.0, _total(20, 0, 7, 0)) == pytest.approx((0.095, 20))
    assert recent.take(60.0, _total(20, 20, 7, 0)) == pytest.approx((0.91, 40))
    assert recent.take(91.0, _total(20, 30, 7, 0)) == pytest.approx((0.955, 10))


def test_a_runtime_that_began_anew_is_counted_from_its_beginning() -> None:
    recent = Recent()
    recent.take(0.0, _total(50, 0, 0, 0))
    assert recent.take(1.0, _total(0, 4, 0, 0)) == pytest.approx((0.955, 4))


def test_a_page_with_two_engines_and_the_older_name() -> None:
    page = "".join(
        f'vllm:{name}_bucket{{engine="{engine}",le="{bound}",model_name="m"}} {count}\n'
        for name in ("time_to_first_token_seconds", "time_per_output_token_seconds")
        for engine in (0, 1)
        for bound, count in (("0.1", 3.0), ("1.0", 5.0), ("+Inf", 6.0))
    )
    load = Vllm().load(page)
    assert load.ttft == load.tpot == Histogram((0.1, 1.0), (6.0, 4.0, 2.0))
    newer = page.replace("time_per_output", "request_time_per_output").replace(" 6.0", " 8.0")
    assert Vllm().load(page + newer).tpot.total == 16


def test_replicas_count_as_much_as_they_answered() -> None:
    reports: list[dict[str, Any]] = [
        {"ttft_p95": 1.0, "ttft_samples": 30.0},
        {"ttft_p95": 3.0, "ttft_samples": 10.0},
        {},
        {"ttft_p95": "x", "ttft_samples": 9},
        {"ttft_p95": float("nan"), "ttft_samples": 9},
    ]
    assert of_replicas(reports, "ttft") == (1.5, 40.0)
    assert of_replicas(reports, "tpot") == (None, 0.0)
