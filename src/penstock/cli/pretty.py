"""Tables on a terminal, drawn by rich."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from penstock.client.verb import Column


def draw(columns: Sequence[Column], cells: Sequence[Sequence[str]], out: TextIO, width: int | None) -> None:
    """Cells are text already made harmless, and never markup."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=number == 0,
            overflow="fold",
        )
    for row in cells:
        table.add_row(
            *(
                Text(cell, style=column.style(cell) if column.style else "")
                for cell, column in zip(row, columns, strict=True)
            )
        )
    Console(file=out, width=width, highlight=False, markup=False, emoji=False).print(table)
