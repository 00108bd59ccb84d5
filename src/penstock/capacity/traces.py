"""Trace files -> jobs in order of submission. Nothing is dropped in silence: every row that is left out is counted
under its reason, and the first ten are kept with their lines. Memory is bounded: long files are sorted on disk.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, Literal, TextIO

from penstock.base.errors import InvalidInput, Problem
from penstock.base.text import one_line
from penstock.capacity import presets
from penstock.capacity.presets import BadRow, Preset, Row
from penstock.capacity.replay import TraceJob

SHOWN = 10  # problems kept with their lines
NAMED = 20  # clusters kept to be named where the one asked for is not there
CHUNK = 100_000  # rows sorted in memory at once
WATCHED = 10_000  # rows between two words on how far it is
_ORDER = attrgetter("submit", "line")
_FIELDS = attrgetter(*TraceJob.__slots__)
_MODELS = TraceJob.__slots__.index("models")
_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
Watch = Callable[[int, float | None], None]  # rows read, and the fraction of the file where that is known


@dataclass(slots=True)
class Findings:
    """What was odd about a trace. ``rejected`` rows are not replayed; ``noted`` ones are."""

    rows: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    noted: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)  # the first rejected rows
    oddities: list[Problem] = field(default_factory=list)  # the first noted ones
    clusters: set[str] = field(default_factory=set)  # others than the one that was selected, some of them

    def reject(self, why: str, line: int, what: str) -> None:
        self.rejected[why] = self.rejected.get(why, 0) + 1
        self._show(self.problems, line, why, what)

    def note(self, why: str, line: int, what: str) -> None:
        self.noted[why] = self.noted.get(why, 0) + 1
        self._show(self.oddities, line, why, what)

    @staticmethod
    def _show(shown: list[Problem], line: int, why: str, what: str) -> None:
        if len(shown) < SHOWN:
            shown.append(Problem(why, one_line(what, 200), line))

    @property
    def left_out(self) -> int:
        return sum(self.rejected.values())

    def to_dict(self) -> dict[str, object]:
        return {
            "rows": self.rows,
            "rejected": sum(self.rejected.values()),
            "rejected_by_reason": dict(self.rejected),
            "noted_by_reason": dict(self.noted),
            "problems": [problem.to_dict() for problem in self.problems],
            "oddities": [problem.to_dict() for problem in self.oddities],
        }


class NothingToReplay(InvalidInput):
    """Not one row of a trace is a job that was asked for."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which jobs of a trace: of one cluster, the first of those, of these the ones up to a size."""

    cluster: str | None = None
    first: int | None = None
    max_gpus: int | None = None
    pool_gpus: int | None = None  # jobs larger than this can never start


def nothing(findings: Findings, select: Selection) -> NothingToReplay:
    """Why there is no job: no such cluster, or no row that can be used."""
    if findings.clusters:
        return NothingToReplay(
            f"no job of the trace is of the cluster {one_line(select.cluster or '', 100)!r}",
            hint=f"It has {', '.join(one_line(name, 60) for name in sorted(findings.clusters))}"
            + (" and others." if len(findings.clusters) == NAMED else "."),
        )
    why = [*findings.rejected.items(), *findings.noted.items()]
    told = "".join(f"; {count} of {findings.rows} left out: {reason}" for reason, count in why)
    return NothingToReplay(f"the trace has no row that can be replayed{told}", details=findings.problems)


def preset_names() -> tuple[str, ...]:
    return tuple(presets.PRESETS)


@contextmanager
def opened(path: str, far: Callable[[Callable[[], float]], None] | None = None) -> Iterator[TextIO]:
    """The file's text; ``-`` is standard input. ``far`` is given what tells the fraction read. Raises InvalidInput."""
    if path == "-":
        yield sys.stdin
        return
    try:
        raw = Path(path).open("rb")  # noqa: SIM115 - closed below
        size = os.fstat(raw.fileno()).st_size
    except OSError as exc:
        raise InvalidInput(f"the trace cannot be read: {exc}") from exc
    if far is not None and size:
        far(lambda: raw.tell() / size)
    opener = next((known for end, known in _OPENERS.items() if path.endswith(end)), None)
    with raw, opener(raw) if opener else raw as binary:
        yield io.TextIOWrapper(binary, "utf-8", errors="replace", newline="")


def read(
    path: str, preset: str, select: Selection, findings: Findings, *, watch: Watch | None = None
) -> Iterator[TraceJob]:
    """Jobs by submission, then by line. Raises InvalidInput where the file as a whole cannot be understood."""
    form = presets.PRESETS.get(preset)
    if form is None:
        raise InvalidInput(f"--preset {preset!r} is not known; known are {', '.join(presets.PRESETS)}")
    fraction: list[Callable[[], float]] = []
    with opened(path, fraction.append) as text, ExitStack() as files:
        rows = _rows(text, form, path)
        if watch is not None:
            rows = _watched(rows, watch, fraction[0] if fraction else lambda: None)
        jobs = _parsed(rows, form, findings)
        if form.joined is not None:
            jobs = _joined(jobs, form.joined, findings)
        yield from _selected(_ordered(jobs, findings, files), select, form, findings)


def _rows(text: Iterable[str], form: Preset, path: str) -> Iterator[tuple[int, Row]]:
    try:
        quoting: Literal[0, 3] = csv.QUOTE_NONE if form.delimiter == "|" else csv.QUOTE_MINIMAL  # sacct quotes nothing
        reader = csv.reader(_clean(text), delimiter=form.delimiter, quoting=quoting)
        header = [name.strip() for name in next(reader, [])]
        missing = form.missing(header)
        if missing:
            found = ", ".join(header[:30]) or "nothing"
            details = [Problem(name, "this column is missing", 1) for name in missing]
            raise InvalidInput(f"{path} is no {form.name} trace: its first line has {found}", details=details)
        for values in reader:
            if values:
                yield reader.line_num, dict(zip(header, values, strict=False)) if _whole(values, header) else {}
    except (OSError, EOFError, lzma.LZMAError) as exc:
        raise InvalidInput(f"{path} cannot be read to its end: {exc}") from exc
    except csv.Error as exc:
        raise InvalidInput(f"{path} is no CSV: {exc}") from exc


def _watched(
    rows: Iterable[tuple[int, Row]], watch: Watch, fraction: Callable[[], float | None]
) -> Iterator[tuple[int, Row]]:
    for n, row in enumerate(rows):
        if n % WATCHED == WATCHED - 1:
            watch(n + 1, fraction())
        yield row


def _whole(values: Sequence[str], header: Sequence[str]) -> bool:
    return len(values) >= len(header) and not any(values[len(header) :])


def _clean(text: Iterable[str]) -> Iterator[str]:
    """Without NUL bytes, which the csv module refuses without a line number."""
    for n, line in enumerate(text):
        yield (line.lstrip("\ufeff") if n == 0 else line).replace("\0", "")


def _parsed(rows: Iterable[tuple[int, Row]], form: Preset, findings: Findings) -> Iterator[TraceJob]:
    for line, row in rows:
        findings.rows += 1
        try:
            if not row:
                raise BadRow("wrong number of columns", "the row has fewer or more columns than the first line")
            job = form.job(row, line)
            presets.check_times(job)
        except BadRow as bad:
            if bad.skip:
                findings.noted[bad.why] = findings.noted.get(bad.why, 0) + 1
            else:
                findings.reject(bad.why, line, bad.what)
            continue
        if job.ongoing:
            findings.noted["still running: its run time so far is taken"] = (
                findings.noted.get("still running: its run time so far is taken", 0) + 1
            )
        yield job


def _joined(
    jobs: Iterator[TraceJob], joined: Callable[[TraceJob, TraceJob], TraceJob | None], findings: Findings
) -> Iterator[TraceJob]:
    """Rows that are one job together, where they stand one behind the other."""
    held: TraceJob | None = None
    for job in jobs:
        both = joined(held, job) if held is not None else None
        if both is not None:
            findings.noted["part of the job above"] = findings.noted.get("part of the job above", 0) + 1
        elif held is not None:
            yield held
        held = both or job
    if held is not None:
        yield held


def _ordered(jobs: Iterator[TraceJob], findings: Findings, files: ExitStack) -> Iterator[TraceJob]:
    """Sorted; in memory while they fit one chunk, else merged from sorted files."""
    spilled: list[Iterator[TraceJob]] = []
    last: TraceJob | None = None
    while chunk := list(islice(jobs, CHUNK)):
        for job in chunk:
            if last is not None and job.submit < last.submit:
                findings.note("unsorted", job.line, "submitted before the row above it; rows are sorted first")
            last = job
        chunk.sort(key=_ORDER)
        if len(chunk) < CHUNK and not spilled:
            return iter(chunk)
        file = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        for job in chunk:
            file.write(json.dumps(_FIELDS(job)).encode() + b"\n")
        file.seek(0)
        spilled.append(_spilled(file))
    return merge(*spilled, key=_ORDER)


def _spilled(file: IO[bytes]) -> Iterator[TraceJob]:
    for line in file:
        values = json.loads(line)
        values[_MODELS] = tuple(values[_MODELS])
        yield TraceJob(*values)


def _selected(jobs: Iterable[TraceJob], select: Selection, form: Preset, findings: Findings) -> Iterator[TraceJob]:
    taken, at, seen = 0, -1.0, set[object]()
    for job in jobs:
        if select.cluster is not None and select.cluster not in (job.queue, job.partition):
            if len(findings.clusters) < NAMED:
                findings.clusters.update(filter(None, (job.queue, job.partition)))
            continue
        if select.first is not None and taken >= select.first:
            return
        taken += 1
        if job.submit != at:
            at, seen = job.submit, set()
        same = job.id if form.has_ids else (job.queue, job.user, job.duration, job.gpus)
        if same in seen:
            if form.has_ids:
                findings.reject("duplicate", job.line, f"job {job.id} stands here a second time")
                continue
            findings.note("duplicate", job.line, "the same as another row; both are replayed")
        seen.add(same)
        if select.max_gpus is not None and job.gpus > select.max_gpus:
            findings.noted["above --max-gpus"] = findings.noted.get("above --max-gpus", 0) + 1
            continue
        if select.pool_gpus is not None and job.gpus > select.pool_gpus:
            findings.reject("larger than the pool", job.line, f"asks {job.gpus} GPUs of {select.pool_gpus}")
            continue
        yield job
