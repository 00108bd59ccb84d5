"""Points as a page in Prometheus' text format 0.0.4. Pure. Names are as the sources have them: vendors' stay."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.telemetry.spec import Labels, Point

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def page(points: Iterable[Point]) -> str:
    """Of a series that two sources tell of the first counts; a name has the type of its first point."""
    families: dict[str, dict[Labels, Point]] = {}
    for point in points:
        families.setdefault(point.name, {}).setdefault(point.labels, point)
    lines: list[str] = []
    for name, series in families.items():
        first = next(iter(series.values()))
        # a counter of a vendor that does not end in _total has no type that the format would let it keep
        kind = "untyped" if first.type == "counter" and not name.startswith("penstock_") else first.type
        lines.append(f"# TYPE {name} {kind}")
        lines += [f"{name}{_labels(labels)} {_value(point.value)}" for labels, point in series.items()]
    return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in labels) + "}" if labels else ""


def _value(value: float) -> str:
    return str(int(value)) if value == value // 1 and abs(value) < 1 << 53 else repr(value)
