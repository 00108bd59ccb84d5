"""Words on a screen, lines in a pipe: tables, JSON, YAML, errors. Strangers' text is made harmless here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from penstock.base.errors import PenstockError
from penstock.base.text import one_line, sanitize

if TYPE_CHECKING:
    from penstock.base.settings import Settings
    from penstock.cli.live import Bar
    from penstock.client.verb import Column

RED, DIM, RESET = "\x1b[31m", "\x1b[2m", "\x1b[0m"
CELL = 60  # characters of a cell, but for the last, where output goes to a pipe; a terminal's tables fold instead


class Screen:
    """Standard output and standard error of one call. ``format`` is "table", "json" or "yaml"."""

    def __init__(self, format_: str, settings: Settings, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.format = format_
        self.out = out or sys.stdout
        self.err = err or sys.stderr
        self.terminal = self.out.isatty()
        self.color = settings.color
        self.width = settings.width

    def document(self, body: object) -> None:
        """Plain ASCII, so that nothing in it can be a control sequence."""
        if self.format == "yaml":
            import yaml  # noqa: PLC0415 - for `-o yaml` only

            self.out.write(yaml.safe_dump(_plain(body), sort_keys=False, allow_unicode=False, width=120))
        else:
            self.out.write(json.dumps(body, indent=2) + "\n")

    def table(self, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]], now: float) -> None:
        cells = [[one_line(column.value(row, now), 2000) for column in columns] for row in rows]
        if self.terminal and self.color:
            from penstock.cli.pretty import draw  # noqa: PLC0415 - brings rich, for terminals only

            draw(columns, cells, self.out, self.width)
        else:
            self.out.write("".join(line + "\n" for line in aligned(columns, cells)))

    def line(self, text: str = "") -> None:
        self.out.write(sanitize(text) + "\n")

    def note(self, text: str) -> None:
        self.out.flush()
        self.err.write(sanitize(text) + "\n")
        self.err.flush()

    def raw(self, data: bytes) -> None:
        self.out.flush()
        self.out.buffer.write(data)
        self.out.buffer.flush()

    def live(self) -> Bar:
        from penstock.cli.live import Bar  # noqa: PLC0415 - for a followed job only

        return Bar(self.out, self.err, self.width)


def aligned(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[str]:
    """Plain lines, two blanks between columns; an empty cell reads ``-`` so that `awk` counts columns right."""
    table = [[column.title for column in columns]]
    table += [[*(_cut(cell) or "-" for cell in row[:-1]), *(cell or "-" for cell in row[-1:])] for row in cells]
    widths = [max(len(row[at]) for row in table) for at in range(len(columns))]
    return [
        "  ".join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in table
    ]


def print_error(error: PenstockError, err: TextIO, *, color: bool) -> None:
    """``error: message``, each detail with its line and path, and the hint."""
    red, dim, reset = (RED, DIM, RESET) if color and err.isatty() else ("", "", "")
    lines = [f"{red}error:{reset} {sanitize(error.message)}"]
    lines += [f"  {one_line(str(problem), 500)}" for problem in error.details]
    if error.advice:
        lines.append(f"{dim}hint: {sanitize(error.advice)}{reset}")
    err.write("\n".join(lines) + "\n")


def _cut(text: str) -> str:
    return text if len(text) <= CELL else text[: CELL - 3] + "..."


def _plain(body: object) -> object:
    """YAML's safe dumper knows dicts and lists only, not what is derived from them."""
    if isinstance(body, Mapping):
        return {str(key): _plain(value) for key, value in body.items()}
    if isinstance(body, list | tuple):
        return [_plain(item) for item in body]
    return body
