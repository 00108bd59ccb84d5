"""Write the next revision of the database's schema from the rooms' tables, or the first one anew.

    .venv/bin/python tools/make_migration.py "what changes"     # the next revision; then look at it and add it to store/schema.py
    .venv/bin/python tools/make_migration.py --initial          # 0001 anew: only as long as no release has it

Rooms register their tables in src/penstock/<room>/tables.py.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from alembic import command

from penstock.store import schema
from penstock.store.connect import parse_url, writing_engine
from penstock.store.migrations.run import config, upgrade

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ROOT / "src/penstock/store/migrations/versions"

_CHAIN = """    # The chain of events begins here.
    op.execute("INSERT INTO heads (chain, seq, hash) VALUES ('events', 0, '" + "0" * 64 + "')")
"""


def import_tables() -> None:
    """Have every room register its tables on the shared metadata."""
    for path in sorted((ROOT / "src/penstock").glob("*/tables.py")):
        importlib.import_module(f"penstock.{path.parent.name}.tables")


def by_table(text: str) -> str:
    """One function per table, which a person can read, in place of one of hundreds of lines."""
    head, body = text.split("def upgrade() -> None:\n")
    body = "".join(line for line in body.splitlines(keepends=True) if not line.startswith("    # ###"))
    parts = [part for part in re.split(r"^(?=    op\.create_table\()", body, flags=re.MULTILINE) if part.strip()]
    names = [re.search(r"create_table\(\s*['\"](\w+)", part) for part in parts]
    functions = [f"_{name[1]}" for name in names if name]
    assert len(functions) == len(parts), "something but tables was generated"
    made = "\n\n".join(f"def {name}() -> None:\n{part.rstrip()}\n" for name, part in zip(functions, parts, strict=True))
    calls = "".join(f"    {name}()\n" for name in functions)
    return f"{head}def upgrade() -> None:\n{calls}{_CHAIN}\n\n{made}"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write(__doc__ or "")
        return 2
    import_tables()
    initial = arguments[0] == "--initial"
    number = "0001" if initial else f"{len(schema.REVISIONS) + 1:04d}"
    if initial:
        for old in VERSIONS.glob("0001_*.py"):
            old.unlink()
    with tempfile.TemporaryDirectory() as folder:
        engine = writing_engine(parse_url(f"sqlite:///{folder}/empty.db"))
        with engine.connect() as conn:
            if not initial:
                upgrade(conn)
            message = "initial" if initial else arguments[0]
            command.revision(config(conn), message=message, autogenerate=True, rev_id=number)
    written = next(VERSIONS.glob(f"{number}_*.py"))
    if initial:
        written.write_text(by_table(written.read_text()))
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run([*ruff, "check", "--fix", "--quiet", str(written)], check=True)
    subprocess.run([*ruff, "format", "--quiet", str(written)], check=True)
    sys.stdout.write(f"{written.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
