"""What every source must do, whatever it reads. Each function takes a source that has something to read."""

from __future__ import annotations

import math
import re

from penstock.telemetry.spec import Reading, Source

NOW = 1_800_000_000.0
MAX_POINTS = 20_000


def is_named_and_has_a_period(source: Source) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_-]{1,30}", source.name)
    assert 0 < source.every_s <= 300


def says_something(source: Source) -> None:
    reading = source.read(NOW)
    assert (reading.source, reading.at, reading.problem) == (source.name, NOW, "")
    assert reading.points or reading.lines


def points_are_sound(source: Source) -> None:
    sound(source.read(NOW))


def what_is_read_twice_has_the_same_names(source: Source) -> None:
    first, second = source.read(NOW), source.read(NOW + 10)
    assert {(point.name, point.labels, point.type) for point in first.points} == {
        (point.name, point.labels, point.type) for point in second.points
    }


def no_line_is_told_twice(source: Source) -> None:
    lines = [line for at in range(3) for line in source.read(NOW + at).lines]
    assert len({line.key for line in lines}) == len(lines)


def is_closed_twice(source: Source) -> None:
    source.read(NOW)
    source.close()
    source.close()


CONTRACT = (
    is_named_and_has_a_period,
    says_something,
    points_are_sound,
    what_is_read_twice_has_the_same_names,
    no_line_is_told_twice,
    is_closed_twice,
)


def sound(reading: Reading) -> None:
    """Bounded, finite, each series once; our own names in base units."""
    assert len(reading.points) <= MAX_POINTS
    assert len({(point.name, point.labels) for point in reading.points}) == len(reading.points)
    for point in reading.points:
        assert re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]*", point.name), point
        assert math.isfinite(point.value), point
        names = [name for name, _ in point.labels]
        assert names == sorted(set(names)), point
        assert all(isinstance(value, str) and len(value) <= 256 and "\n" not in value for _, value in point.labels), (
            point
        )
        if point.name.startswith("penstock_"):
            assert (point.type == "counter") == point.name.endswith("_total"), point
            assert not re.search(r"_(ms|us|mhz|mb|kib|mib|percent|mw|mj)\b", point.name), point
    for line in reading.lines:
        assert "\n" not in line.text and len(line.text) <= 2048
        assert 0 <= line.severity <= 7
