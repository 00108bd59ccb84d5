"""What a start-up may import. Each of these runs in a fresh process; the bars in benchmarks/ measure its CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.client.snapshot import take
from tests.client.standin import Reply, StandIn, job

HEAVY = {
    "alembic", "anyio", "asyncio", "click", "concurrent", "email", "fastapi", "http.client", "httpx", "jinja2", "logging",
    "pathspec", "pydantic", "rich", "sqlalchemy", "ssl", "starlette", "subprocess", "tarfile", "tempfile", "torch", "typer",
    "urllib.parse", "uvicorn", "uvloop", "websockets", "yaml",
}  # fmt: skip
PROBE = """
import json, sys
before = set(sys.modules)
{body}
sys.stdout.flush()
print("\\n#" + json.dumps(sorted(set(sys.modules) - before)))
"""


def imported(body: str, folder: Path, **environ: str) -> set[str]:
    """What running ``body`` imports, in a process that knows nothing of ours."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(body=body)],
        env={"PATH": os.environ["PATH"], "PENSTOCK_DATA_DIR": str(folder / "none"), **environ},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(json.loads(done.stdout.rpartition("#")[2]))


def command(*argv: str) -> str:
    return f"from penstock.app import main; assert main({list(argv)!r}) == 0"


def heavy(modules: set[str]) -> set[str]:
    return {name for name in modules for bad in HEAVY if name == bad or name.startswith(bad + ".")}


def test_import_penstock_imports_nothing_else(tmp_path: Path) -> None:
    assert imported("import penstock", tmp_path) == {"penstock"}


def test_the_public_face(tmp_path: Path) -> None:
    body = "import penstock; penstock.Client; penstock.report; assert {'Client', 'report'} <= set(dir(penstock))"
    modules = imported(body, tmp_path)
    assert not heavy(modules)
    assert not {name for name in modules if name.startswith(("penstock.cli.", "penstock.api", "penstock.store"))}
    with pytest.raises(subprocess.CalledProcessError):
        imported("import penstock; penstock.nothing", tmp_path)


def test_the_first_help_imports_the_table_and_nothing_else(tmp_path: Path) -> None:
    modules = imported(command("--help"), tmp_path)
    assert not heavy(modules)
    assert not modules & {"argparse", "socket", "httptools", "hashlib", "zlib", "threading"}
    assert {name for name in modules if name.startswith("penstock")} == {
        "penstock", "penstock.app", "penstock.base", "penstock.base.errors", "penstock.base.settings", "penstock.base.text",
        "penstock.cli", "penstock.cli.catalogue", "penstock.cli.main", "penstock.cli.output",
    }  # fmt: skip


def test_run_detached(tmp_path: Path, server: StandIn) -> None:
    server.answers["POST /api/v1/projects/default/jobs"] = Reply(201, job())
    (tmp_path / "train.py").write_text("print(1)")
    server.answers["GET /healthz"] = Reply()
    for request in ("HEAD", "PUT"):
        server.answers |= {f"{request} /api/v1/snapshots/{_digest(tmp_path)}": Reply(404 if request == "HEAD" else 201)}
    argv = command("run", "--detach", "--procs", "2", "--env", "A=1", "--", "python", "train.py")
    modules = imported(argv, tmp_path, PENSTOCK_URL=server.url, PENSTOCK_TOKEN="pk_t")
    assert len(server.requests) == 3
    assert not heavy(modules)
    rooms = {name.split(".")[1] for name in modules if name.count(".") > 1 and name.startswith("penstock.")}
    assert rooms == {"base", "cli", "client", "jobs"}
    assert {name for name in modules if name.startswith("penstock.jobs.")} == {
        "penstock.jobs.commands",
        "penstock.jobs.commands.run",
    }


def _digest(folder: Path) -> str:
    return take(str(folder)).digest


@pytest.mark.parametrize("argv", [["get"], ["logs", "digits"], ["nodes"], ["cancel", "digits"], ["why", "digits"]])
def test_light_verbs(tmp_path: Path, server: StandIn, argv: list[str]) -> None:
    digits = "/api/v1/projects/default/jobs/digits"
    page = Reply(body={"items": [], "next_cursor": None})
    why = {"project": "default", "name": "digits", "phase": "Running", "reason": "Started", "message": ""}
    server.answers |= {
        "GET /api/v1/jobs": page,
        "GET /api/v1/nodes": page,
        f"GET {digits}/logs": Reply(body=[b"x\n"]),
        f"POST {digits}/cancel": Reply(body=job()),
        f"GET {digits}/why": Reply(body=why),
    }
    assert not heavy(imported(command(*argv), tmp_path, PENSTOCK_URL=server.url, PENSTOCK_TOKEN="pk_t"))


def test_yaml_and_https_and_ignore_files_pay_for_themselves(tmp_path: Path, server: StandIn) -> None:
    server.answers["GET /api/v1/nodes"] = Reply(body={"items": [], "next_cursor": None})
    modules = imported(command("nodes", "-o", "yaml"), tmp_path, PENSTOCK_URL=server.url, PENSTOCK_TOKEN="pk_t")
    assert {name.split(".")[0] for name in heavy(modules)} == {"yaml"}
