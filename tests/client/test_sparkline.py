"""A row of numbers as a line of bars."""

from __future__ import annotations

from penstock.client.sparkline import sparkline


def test_the_largest_of_each_part_is_shown_and_nothing_is_a_blank() -> None:
    assert sparkline([0, 1, 4, 8], 8) == " ▂▅█"
    assert sparkline([0, 1, 4, 8], 8, 2) == "▂█"
    assert sparkline([3, 3], 0) == "  "
    assert sparkline([], 8) == ""
