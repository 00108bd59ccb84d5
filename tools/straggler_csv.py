"""ByteDance's straggler traces as small tables: ``python -m tools.straggler_csv FOLDER`` (needs pyarrow, which nothing else here does).

Of each operator trace the backward passes alone are kept: what ``data/failures/README.md`` says.
"""

from __future__ import annotations

import csv
import importlib
import io
import lzma
import sys
from pathlib import Path

COLUMNS = ["dp_rank", "stage", "rank", "step", "mb_id", "duration"]
PLACE = Path(__file__).parent.parent / "data" / "failures"


def convert(source: Path) -> bytes:
    """One trace as compressed CSV, milliseconds to a hundredth."""
    read_table = importlib.import_module("pyarrow.parquet").read_table
    rows = [row for row in read_table(source).to_pylist() if row["optype"] == "backward-compute"]
    rows.sort(key=lambda row: (row["step"], row["mb_id"], row["rank"]))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS[:-1], "duration_ms"])
    writer.writerows([*(row[name] for name in COLUMNS[:-1]), round(1000 * row["duration"], 2)] for row in rows)
    return lzma.compress(text.getvalue().encode(), preset=9)


def main() -> None:
    for source in sorted(Path(sys.argv[1]).glob("trace-*.parquet")):
        name = source.stem.removeprefix("trace-").lower()
        (PLACE / f"bytedance_straggler_{name}.csv.xz").write_bytes(convert(source))


if __name__ == "__main__":
    main()
