"""What waits to be sent to the server: bounded, whatever the server's absence lasts. Pure.

Samples go first when there is no room, the oldest of them; findings are kept, and the newest word of one stands for all before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from penstock.telemetry.kept import place
from penstock.telemetry.names import SUMMED, canonical
from penstock.telemetry.push import MAX_FINDINGS, MAX_ROWS, MAX_SERIES, Answer, Push, Row, Series, digest
from penstock.telemetry.spec import Finding, Point, Severity

KEPT_FINDINGS = 1000
ROWS_AT_ONCE = 60
_ORDER = (Severity.INFO, Severity.WARNING, Severity.CRITICAL)
_Key = tuple[str, str, str, str]


@dataclass(slots=True)
class _Table:
    """Series by the order in which they came; a series that is silent keeps its place, so that names are seldom sent."""

    places: dict[Series, int] = field(default_factory=dict)
    names: tuple[Series, ...] = ()

    def row(self, at: float, said: Mapping[Series, float]) -> Row | None:
        """None: there is no room for what is new."""
        values: list[float | None] = [None] * len(self.places)
        for series, value in said.items():
            index = self.places.get(series)
            if index is None:
                if len(self.places) >= MAX_SERIES:
                    return None
                index = self.places[series] = len(values)
                values.append(None)
            values[index] = value
        if len(self.names) != len(self.places):
            self.names = tuple(self.places)
        return Row(at, tuple(values))


@dataclass(frozen=True, slots=True)
class _Kept:
    row: Row
    series: tuple[Series, ...]


class Outbox:
    def __init__(self, node: str, boot_id: str, run: str, version: str) -> None:
        self._who = (node, boot_id, run)
        self._version = version
        self._table = _Table()
        self._rows: deque[_Kept] = deque()
        self._findings: dict[_Key, Finding] = {}
        self._sources: dict[str, str] = {}
        self._sequence = 0
        self._known = ""  # the digest that the server knows
        self._flight: tuple[Push, tuple[Series, ...]] | None = None  # it may have been taken, and its answer lost
        self.dropped_rows = 0
        self.dropped_findings = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def findings(self) -> int:
        return len(self._findings)

    def sample(self, at: float, points: Iterable[Point]) -> None:
        """A look at all series: those of them that the server keeps."""
        said: dict[Series, float] = {}
        for point in points:
            for one in canonical(point):
                series = Series(one.name, one.labels, one.type)
                if series not in said and len(said) < MAX_SERIES and place(series) is not None:
                    said[series] = one.value
                elif series in said and one.name in SUMMED:
                    said[series] += one.value
        row = self._table.row(at, said)
        if row is None:  # devices came and went until the table was full: it begins anew
            self._table = _Table()
            row = self._table.row(at, said)
            assert row is not None
        self._rows.append(_Kept(row, self._table.names))
        while len(self._rows) > MAX_ROWS:
            self._rows.popleft()
            self.dropped_rows += 1

    def tell(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self._findings.pop(finding.key, None)
            self._findings[finding.key] = finding
        while len(self._findings) > KEPT_FINDINGS:
            least = min(self._findings, key=lambda key: _ORDER.index(self._findings[key].severity))
            del self._findings[least]
            self.dropped_findings += 1

    def sources(self, problems: dict[str, str]) -> None:
        self._sources = problems

    def next(self, now: float) -> Push | None:
        """What is to be sent now; the same again until ``taken`` or ``refused`` is told of it."""
        if self._flight is None:
            self._flight = self._made(now)
        if self._flight is None:
            return None
        push, names = self._flight
        return replace(push, at=now, series=None if not push.rows or push.digest == self._known else names)

    def _made(self, now: float) -> tuple[Push, tuple[Series, ...]] | None:
        findings = tuple(self._findings.values())[:MAX_FINDINGS]
        rows: list[Row] = []
        names: tuple[Series, ...] = ()
        for kept in self._rows:
            if rows and (kept.series is not names or len(rows) >= ROWS_AT_ONCE):
                break
            names = kept.series
            rows.append(kept.row)
        if not rows and not findings:
            return None
        push = Push(
            *self._who,
            self._sequence + 1,
            now,
            digest(names) if rows else self._known,
            None,
            tuple(rows),
            findings,
            tuple(sorted(self._sources.items())),
            self._version,
        )
        return push, names

    def taken(self, push: Push, answer: Answer) -> None:
        """The server answered: what it took is done with; what it wants the names of is sent again."""
        if answer.series_wanted:
            self._known = ""
            return
        if push.rows:
            self._known = push.digest
        self._done(push)

    def refused(self, push: Push) -> None:
        """The server will never take this one: it makes room for the next."""
        self.dropped_rows += len(push.rows)
        self.dropped_findings += len(push.findings)
        self._done(push)

    def _done(self, push: Push) -> None:
        self._flight = None
        self._sequence = push.sequence
        sent = {id(row) for row in push.rows}
        while self._rows and id(self._rows[0].row) in sent:
            self._rows.popleft()
        for finding in push.findings:
            if self._findings.get(finding.key) is finding:
                del self._findings[finding.key]
