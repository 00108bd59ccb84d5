"""Paths to endpoints: a tree of segments, so that the cost does not grow with the number of routes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import unquote_to_bytes

from penstock.api.answers import Refused, Scope

T = TypeVar("T")
_LONGEST = 4096  # bytes


@dataclass(slots=True)
class _Node(Generic[T]):
    fixed: dict[str, _Node[T]] = field(default_factory=dict)
    free: _Node[T] | None = None
    methods: dict[str, T] = field(default_factory=dict)
    names: tuple[str, ...] = ()


class Paths(Generic[T]):
    """``add`` templates like ``/a/{b}/c``, then ``find``. A fixed segment wins over a free one."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._known: dict[str, _Node[T]] = {}  # templates without a free segment, by their whole path

    def add(self, method: str, template: str, value: T) -> None:
        node = self._root
        names = []
        for segment in template.split("/")[1:]:
            if segment.startswith("{"):
                names.append(segment.strip("{}"))
                node.free = node.free or _Node()
                node = node.free
            else:
                node = node.fixed.setdefault(segment, _Node())
        if method in node.methods:
            raise ValueError(f"two endpoints for {method} {template}")
        if node.names and node.names != tuple(names):
            raise ValueError(f"{template} names its segments otherwise than its sister: {node.names}")
        node.methods[method] = value
        node.names = tuple(names)
        if not names:
            self._known[template] = node

    def find(self, raw: bytes) -> tuple[dict[str, T], dict[str, str]] | None:
        """The methods of the path as it was sent (percent-encoded, decoded here once), and its free segments."""
        try:
            known = self._known.get(raw.decode("ascii"))
        except UnicodeDecodeError as exc:
            raise Refused(400, "the path holds bytes that are not percent-encoded") from exc
        if known is not None:
            return known.methods, {}
        segments = [_decoded(segment) for segment in raw.split(b"/")[1:]]
        values: list[str] = []
        node = _walk(self._root, segments, 0, values)
        return (node.methods, dict(zip(node.names, values, strict=True))) if node else None


def _walk(node: _Node[T], segments: list[str], at: int, values: list[str]) -> _Node[T] | None:
    if at == len(segments):
        return node if node.methods else None
    fixed = node.fixed.get(segments[at])
    if fixed is not None and (found := _walk(fixed, segments, at + 1, values)):
        return found
    if node.free is None or not segments[at]:
        return None
    values.append(segments[at])
    found = _walk(node.free, segments, at + 1, values)
    if found is None:
        values.pop()
    return found


def _decoded(segment: bytes) -> str:
    try:
        text = unquote_to_bytes(segment).decode("utf-8") if b"%" in segment else segment.decode("ascii")
    except UnicodeDecodeError as exc:
        raise Refused(400, "the path is not UTF-8") from exc
    if "\x00" in text:
        raise Refused(400, "the path holds a NUL")
    return text


def raw_path(scope: Scope) -> bytes:
    """The path as it was sent. Raises Refused for one that is too long."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode("utf-8")
    raw = raw.partition(b"?")[0]
    if len(raw) > _LONGEST:
        raise Refused(414, f"the path is longer than {_LONGEST} bytes")
    return raw
