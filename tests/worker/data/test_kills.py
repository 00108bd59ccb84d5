"""The benchmark's kills, as a soak: each sample once through 20 of them, on 1 to 4 ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.training_data import KILLS, killed_training


@pytest.mark.soak
@pytest.mark.real
@pytest.mark.timeout(1800)
def test_each_sample_once_through_random_kills(record_property: Callable[[str, object], None]) -> None:
    told = killed_training()
    record_property("soak:data_kills", told.kills)
    record_property("soak:data_missed", told.missed)
    record_property("soak:data_doubled", told.doubled)
    assert (told.kills, told.missed, told.doubled, told.disordered) == (KILLS, 0, 0, 0)
    assert told.resized >= 5
