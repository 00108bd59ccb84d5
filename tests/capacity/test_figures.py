from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.capacity import figures
from penstock.capacity.figures import Figures, percentile

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
