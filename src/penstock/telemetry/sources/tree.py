"""Files of /proc and /sys below a root folder: this machine's, or a recorded one's. What is not there is empty, never an error."""

from __future__ import annotations

import os

from penstock.telemetry.spec import Labels, Point

MAX_FILE = 1 << 20
MAX_NAMES = 1024


class Tree:
    def __init__(self, root: str = "/") -> None:
        self.root = root.rstrip("/") + "/"

    def text(self, path: str) -> str:
        """The file's text, without the white space at its ends."""
        try:
            with open(self.root + path, "rb") as file:
                return file.read(MAX_FILE).decode("utf-8", "replace").strip()
        except OSError:  # not there, not ours, or a device that does not answer (EINVAL, EIO, ENODEV)
            return ""

    def lines(self, path: str) -> list[str]:
        return self.text(path).splitlines()

    def number(self, path: str) -> float | None:
        return number(self.text(path))

    def names(self, path: str) -> list[str]:
        try:
            return sorted(os.listdir(self.root + path))[:MAX_NAMES]
        except OSError:
            return []

    def has(self, path: str) -> bool:
        return os.path.exists(self.root + path)


def number(text: str) -> float | None:
    """The first word as a number, decimal or 0x...; None where it is none."""
    word = text.split(None, 1)[0] if text.strip() else ""
    try:
        return float(int(word, 16)) if word.startswith("0x") else float(word)
    except ValueError:
        return None


def gauge(name: str, value: float | None, *labels: tuple[str, str]) -> list[Point]:
    """A point in a list; none where there is no value. So are lists of points written in one piece."""
    return [] if value is None else [Point(name, value, _labels(labels))]


def counter(name: str, value: float | None, *labels: tuple[str, str]) -> list[Point]:
    return [] if value is None else [Point(name, value, _labels(labels), "counter")]


def _labels(labels: tuple[tuple[str, str], ...]) -> Labels:
    return tuple(sorted(labels))
