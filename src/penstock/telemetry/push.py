"""What an agent sends to the server, as JSON: samples as rows of numbers, and findings. Pure.

``POST /api/v1/telemetry/push``. The names of the series are sent once: later pushes name their digest, and the server says when
it does not know it (``series_wanted``). So a push of a node with eight GPUs is some 3 kB. A push is known by ``run`` (drawn at the
agent's start) and ``sequence`` (from 1): one that was taken is answered again and taken no second time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from penstock.base.errors import InvalidInput
from penstock.telemetry.spec import Finding, Labels, Severity

FORMAT = 1
MAX_SERIES = 2048  # of one node
MAX_ROWS = 360  # an hour's
MAX_FINDINGS = 256
MAX_SOURCES = 64
MAX_TEXT = 4096  # characters of a name, message or line
MAX_FEW = 32  # labels of a series, facts and lines of evidence of a finding


class Series(NamedTuple):
    """What one column of numbers is: as ``Point``, without its value."""

    name: str
    labels: Labels = ()
    type: str = "gauge"


class Row(NamedTuple):
    """One look at all series of a push. None: nothing was said of it then."""

    at: float
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Push:
    node: str
    boot_id: str
    run: str
    sequence: int
    at: float  # by the node's clock, when it was sent
    digest: str = ""  # of the series that the rows are of
    series: tuple[Series, ...] | None = None  # None: those of that digest, which were sent before
    rows: tuple[Row, ...] = ()
    findings: tuple[Finding, ...] = ()
    sources: tuple[tuple[str, str], ...] = ()  # name, and its problem ("" where there is none)
    version: str = ""  # of the agent


class Order(NamedTuple):
    """Checks that a node is asked to run, once for each ``id``."""

    id: str
    checks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """``sequence``: the newest that was taken. ``series_wanted``: the rows were not; send them again, with their series.
    ``orders``: what waits for the node, until it has told what came of it.
    """

    sequence: int
    series_wanted: bool = False
    orders: tuple[Order, ...] = ()


def digest(series: Sequence[Series]) -> str:
    """The same for the same series in the same order."""
    return blake2b(json.dumps(series).encode(), digest_size=12).hexdigest()


def encode(push: Push) -> bytes:
    body: dict[str, Any] = {
        "format": FORMAT,
        "node": push.node,
        "boot_id": push.boot_id,
        "run": push.run,
        "sequence": push.sequence,
        "at": round(push.at, 3),
        "digest": push.digest,
        "rows": [[round(row.at, 3), *map(_compact, row.values)] for row in push.rows],
        "findings": [finding_to_dict(finding) for finding in push.findings],
        "sources": dict(push.sources),
        "version": push.version,
    }
    if push.series is not None:
        body["series"] = [[one.name, dict(one.labels), one.type] for one in push.series]
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def decode(body: bytes) -> Push:
    """What was sent, held to its bounds: whoever has a node's token can send anything. Raises InvalidInput."""
    try:
        return _push(json.loads(body))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise InvalidInput(f"this is no push of an agent: {str(error)[:200] or type(error).__name__}") from error


def encode_answer(answer: Answer) -> dict[str, Any]:
    said = asdict(answer)
    return said if answer.orders else {name: value for name, value in said.items() if name != "orders"}


def decode_answer(body: bytes) -> Answer:
    """Raises InvalidInput."""
    try:
        found = json.loads(body)
        orders = tuple(Order(_text(name, 1), tuple(map(_text, checks))) for name, checks in found.get("orders", ()))
        return Answer(int(found["sequence"]), bool(found.get("series_wanted", False)), orders[:MAX_FEW])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InvalidInput(f"this is no answer to a push: {str(error)[:200]}") from error


def finding_to_dict(finding: Finding) -> dict[str, Any]:
    """Everything of a finding, as JSON has it; also for pages and commands."""
    found = {name: getattr(finding, name) for name in Finding.__dataclass_fields__}
    found.update(
        at=round(finding.at, 3),
        first_at=round(finding.first_at, 3),
        severity=finding.severity.value,
        evidence=list(finding.evidence),
        facts={name: _finite(value) for name, value in finding.facts.items()},
    )
    return found


def finding_from_dict(body: Mapping[str, Any]) -> Finding:
    """Raises ValueError, TypeError or KeyError: for ``decode``, and for who reads what was written so."""
    _few(body["evidence"], MAX_FEW, "lines of evidence")
    _few(body["facts"], MAX_FEW, "facts")
    return Finding(
        rule=_text(body["rule"], 1),
        node=_text(body["node"], 1),
        at=_number(body["at"]),
        first_at=_number(body["first_at"]),
        message=_text(body["message"]),
        severity=Severity(body["severity"]),
        device=_text(body["device"]),
        code=_text(body["code"]),
        count=_count(body["count"]),
        source=_text(body["source"]),
        active=bool(body["active"]),
        evidence=tuple(_text(line) for line in body["evidence"]),
        facts={
            _text(name): _text(value) if isinstance(value, str) else _number(value)
            for name, value in body["facts"].items()
        },
    )


def _push(body: Mapping[str, Any]) -> Push:
    if body["format"] != FORMAT:
        raise ValueError(f"its format is {body['format']!r}, and this server reads {FORMAT}")
    series = None
    if body.get("series") is not None:
        _few(body["series"], MAX_SERIES, "series")
        series = tuple(_series(*one) for one in body["series"])
        if body["digest"] != digest(series):
            raise ValueError("its digest is not that of its series")
    _few(body["rows"], MAX_ROWS, "rows")
    _few(body["findings"], MAX_FINDINGS, "findings")
    _few(body["sources"], MAX_SOURCES, "sources")
    rows = tuple(_row(row) for row in body["rows"])
    if rows and (len({len(row.values) for row in rows}) > 1 or (series and len(rows[0].values) != len(series))):
        raise ValueError("its rows are not as long as its series")
    return Push(
        node=_text(body["node"], 1),
        boot_id=_text(body["boot_id"]),
        run=_text(body["run"], 1),
        sequence=_count(body["sequence"]),
        at=_number(body["at"]),
        digest=_text(body["digest"]),
        series=series,
        rows=rows,
        findings=tuple(finding_from_dict(one) for one in body["findings"]),
        sources=tuple((_text(name), _text(problem)) for name, problem in body["sources"].items()),
        version=_text(body["version"]),
    )


def _series(name: str, labels: Mapping[str, str], kind: str) -> Series:
    _few(labels, MAX_FEW, "labels")
    if kind not in {"gauge", "counter"}:
        raise ValueError(f"a series is a gauge or a counter, not {kind!r}")
    return Series(_text(name, 1), tuple(sorted((_text(key), _text(value)) for key, value in labels.items())), kind)


def _row(row: list[Any]) -> Row:
    at, *values = row
    if len(values) > MAX_SERIES:
        raise ValueError(f"a row of more than {MAX_SERIES} values")
    for value in values:
        if value is not None and (type(value) not in {int, float} or not math.isfinite(value)):
            raise ValueError(f"{value!r} is no sample")
    return Row(_number(at), tuple(values))


def _few(items: Sequence[Any] | Mapping[str, Any], most: int, what: str) -> None:
    if len(items) > most:
        raise ValueError(f"{len(items)} {what}, and {most} are read")


def _text(value: Any, least: int = 0) -> str:
    if not isinstance(value, str) or not least <= len(value) <= MAX_TEXT:
        raise ValueError(f"{str(value)[:40]!r} is not a text of {least} to {MAX_TEXT} characters")
    return value


def _number(value: Any) -> float:
    if type(value) not in {int, float} or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]!r} is not a finite number")
    return float(value)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{str(value)[:40]!r} is not a count")
    return value


def _finite(value: float | str) -> float | str:
    return value if isinstance(value, str) or math.isfinite(value) else str(value)


def _compact(value: float | None) -> float | int | None:
    """As few digits as a chart needs; whole numbers, which counters are, stay exact."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if value == int(value) and abs(value) < 1 << 53 else float(f"{value:.6g}")
