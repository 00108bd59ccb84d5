"""Metrics pages of programs that run on the node already: names kept, and no more of a page read than is asked for.

A page is held to its bounds (bytes, samples, series of one name, length of a label). One that is cut off in the middle is told
of, and its whole lines are used; so are the good lines of a page that has bad ones.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Literal
from urllib.parse import urlsplit

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from penstock.base.text import one_line
from penstock.telemetry.spec import Point, Reading

MAX_BODY = 8 << 20
MAX_SAMPLES = 20_000
MAX_SERIES = 2_000  # of one name
MAX_LABEL = 256
MAX_LABELS = 32
TIMEOUT_S = 5.0
_NAME = re.compile(r"[^{\s]+")


class Page:
    """``keep``: the beginnings of names that are read; () reads all."""

    def __init__(self, name: str, url: str, keep: tuple[str, ...] = (), every_s: float = 15.0) -> None:
        self.name = name
        self.every_s = every_s
        self._url = url
        self._keep = keep

    def read(self, now: float) -> Reading:
        text, problem = fetch(self._url)
        points, wrong = parse(text, self._keep)
        return Reading(self.name, now, points, problem="; ".join(filter(None, (problem, wrong))))

    def close(self) -> None:
        return


def fetch(url: str, timeout_s: float = TIMEOUT_S) -> tuple[str, str]:
    """The page's text, and what was wrong: what came before it went wrong is kept."""
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    body = b""
    try:
        connection = kind(parts.hostname or "127.0.0.1", parts.port, timeout=timeout_s)
        try:
            target = parts._replace(scheme="", netloc="").geturl() or "/"
            connection.request("GET", target, headers={"Accept": "text/plain;version=0.0.4"})
            response = connection.getresponse()
            if response.status != 200:
                return "", f"{url}: {response.status} {one_line(response.reason, 80)}"
            while len(body) <= MAX_BODY and (chunk := response.read1(1 << 16)):
                body += chunk
            if response.length and len(body) <= MAX_BODY:
                return _text(body), f"{url}: the page breaks off {response.length} bytes before its end"
        finally:
            connection.close()
    except (OSError, HTTPException, ValueError) as error:
        return _text(body), f"{url}: {one_line(str(error)) or type(error).__name__}"
    if len(body) > MAX_BODY:
        return _text(body[:MAX_BODY]), f"{url}: the page is longer than {MAX_BODY} bytes"
    return _text(body), ""


def parse(text: str, keep: tuple[str, ...] = ()) -> tuple[tuple[Point, ...], str]:
    """The points of a page in Prometheus' text format, and what was wrong with it."""
    problems: list[str] = []
    if text and not text.endswith("\n"):
        text, _, rest = text.rpartition("\n")
        problems.append(f"the page is cut off in the middle of a line: {one_line(rest, 60)!r}")
    lines, left_out = _bounded(text.split("\n"), keep)
    families, bad = _families(lines)
    if bad:
        problems.append(f"{bad} lines are no samples")
    if left_out:
        problems.append(f"{left_out} samples are left out: more than {MAX_SERIES} of a name or {MAX_SAMPLES} in all")
    points: dict[tuple[str, tuple[tuple[str, str], ...]], Point] = {}
    for point in _points(families):
        points.setdefault((point.name, point.labels), point)
    return tuple(points.values()), "; ".join(problems)


def _bounded(lines: list[str], keep: tuple[str, ...]) -> tuple[list[str], int]:
    """The lines that are read, and how many samples are left out; before the parser, whose time they would take."""
    found: list[str] = []
    of_name: Counter[str] = Counter()
    left_out = 0
    for line in lines:
        if line.startswith("# TYPE "):
            if not keep or line.startswith(keep, 7):
                found.append(line)
        elif line.strip() and not line.startswith("#") and (not keep or line.startswith(keep)):
            name = _NAME.match(line)
            of_name[name[0] if name else ""] += 1
            if of_name[name[0] if name else ""] > MAX_SERIES or len(found) >= MAX_SAMPLES:
                left_out += 1
            else:
                found.append(line)
    return found, left_out


def _families(lines: list[str]) -> tuple[list[Metric], int]:
    """Of a page with bad lines each line is read by itself, below its TYPE."""
    try:
        return list(text_string_to_metric_families("\n".join(lines))), 0
    except ValueError:
        pass
    found: list[Metric] = []
    bad, kind = 0, ""
    for line in lines:
        if line.startswith("#"):
            kind = line
            continue
        try:
            found += text_string_to_metric_families(f"{kind}\n{line}")
        except ValueError:
            bad += 1
    return found, bad


def _points(families: Iterable[Metric]) -> Iterator[Point]:
    for family in families:
        for sample in family.samples:
            if not math.isfinite(sample.value) or len(sample.labels) > MAX_LABELS:
                continue
            labels = tuple(sorted((name, one_line(value, MAX_LABEL)) for name, value in sample.labels.items()))
            grows = family.type == "counter" or sample.name.endswith(("_bucket", "_count", "_sum", "_total"))
            kind: Literal["gauge", "counter"] = "counter" if grows else "gauge"
            yield Point(sample.name, sample.value, labels, kind)


def _text(body: bytes) -> str:
    return body.decode("utf-8", "replace")
