from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.capacity import figures, picture
from penstock.capacity.figures import Figures, percentile
from penstock.capacity.metrics import Metrics, reality

numbers = st.lists(st.floats(0, 1e12) | st.integers(0, 3).map(float), max_size=60)


@given(numbers, st.integers(1, 20), st.floats(0, 1))
def test_percentiles_on_disk_are_those_in_memory(values: list[float], run: int, share: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "RUN", run)
        pile = Figures()
        for value in values:
            pile.add(value)
        ordered = sorted(values)
        assert len(pile) == len(values)
        assert pile.percentiles(share, 0.5, 1.0) == [percentile(ordered, one) for one in (share, 0.5, 1.0)]
        assert pile.mean() == pytest.approx(sum(values) / len(values) if values else 0.0)
        pile.add(1.0)  # it can be asked in between
        assert pile.percentiles(0.0) == [min([*values, 1.0])]


def test_an_error_of_a_short_wait_is_a_share_of_a_minute_and_says_so() -> None:
    metrics = Metrics()
    metrics.real.add(5.0)
    metrics.again.add(30.0)
    found = reality(metrics)
    assert found is not None
    assert [line.strip() for line in picture.reality(found)][
        1
    ] == "mean  replayed      30s, really       5s: 42% of a minute off"
