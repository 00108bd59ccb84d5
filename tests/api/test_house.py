"""Snapshots, backup and restore, metrics, health: what belongs to the server as a whole."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import json
import os
import re
import stat
import zipfile
from pathlib import Path

import pytest

from penstock.api import snapshots
from penstock.tenancy.snapshots import holds
from tests.api.rig import Answered, Rig, call
from tests.api.test_doors import run

CONTENT = gzip.compress(b"a work folder" * 100, mtime=0)
SHA = hashlib.sha256(CONTENT).hexdigest()
PATH = f"/api/v1/snapshots/{SHA}"


async def put(rig: Rig, user: str, path: str = PATH, body: bytes = CONTENT, **headers: str) -> Answered:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await call(rig.app, "PUT", path, token=rig.tokens[user], body=body, headers=named)


def partials(rig: Rig) -> list[str]:
    return os.listdir(os.path.join(snapshots.folder(rig.data_dir), ".partial"))


def test_a_snapshot_is_its_uploaders_alone(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        async def head(user: str) -> int:
            return (await call(rig.app, "HEAD", PATH, token=rig.tokens[user])).status

        assert await head("ann") == 404
        assert (await put(rig, "ann")).status == 201
        kept = Path(snapshots.folder(rig.data_dir)) / SHA
        assert kept.read_bytes() == CONTENT and stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert (await head("ann"), await head("bob"), await head("admin")) == (200, 404, 404)
        assert (await put(rig, "bob")).status == 201  # who has the content may have it too
        assert await head("bob") == 200
        assert (await put(rig, "ann")).status == 201  # twice is once
        assert await rig.store.read(lambda conn: holds(conn, "ann", SHA))
        assert not await rig.store.read(lambda conn: holds(conn, "vic", SHA))
        assert (await put(rig, "vic")).status == 403
        assert partials(rig) == []
        kept.unlink()
        assert await head("ann") == 404

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (PATH, CONTENT + b"x", 422),  # altered on the way
        (PATH, b"", 422),
        (PATH, b"PK not gzip", 422),
        (PATH, b"\x1f\x8b" + b"0" * (1 << 20), 413),
        ("/api/v1/snapshots/..%2f..%2fetc%2fpasswd", CONTENT, 422),
        ("/api/v1/snapshots/" + SHA.upper(), CONTENT, 422),
        ("/api/v1/snapshots/.partial", CONTENT, 422),
    ],
)
def test_a_bad_upload_leaves_nothing(tmp_path: Path, path: str, body: bytes, status: int) -> None:
    async def test(rig: Rig) -> None:
        assert (await put(rig, "ann", path, body)).status == status
        assert partials(rig) == []
        assert os.listdir(snapshots.folder(rig.data_dir)) == [".partial"]
        assert not await rig.store.read(lambda conn: holds(conn, "ann", SHA))

    run(tmp_path, test)


def test_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    partial = tmp_path / "snapshots" / ".partial"
    partial.mkdir(parents=True)
    (partial / "abc.123").write_bytes(b"half")
    snapshots.sweep(str(tmp_path))
    assert list(partial.iterdir()) == []


def test_a_bomb_is_kept_packed(tmp_path: Path) -> None:
    bomb = gzip.compress(b"\0" * (200 << 20), 9, mtime=0)  # 200 MiB in 200 KB
    path = f"/api/v1/snapshots/{hashlib.sha256(bomb).hexdigest()}"

    async def test(rig: Rig) -> None:
        assert (await put(rig, "ann", path, bomb)).status == 201
        sizes = [entry.stat().st_size for entry in os.scandir(snapshots.folder(rig.data_dir)) if entry.is_file()]
        assert sizes == [len(bomb)]

    run(tmp_path, test)


def test_backup_and_restore(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        admin = rig.tokens["admin"]
        dump = await call(rig.app, "GET", "/api/v1/backup", token=admin)
        assert dump.status == 200 and dump.headers["content-type"] == "application/zip"
        assert int(dump.headers["content-length"]) == len(dump.body)
        names = zipfile.ZipFile(io.BytesIO(dump.body)).namelist()
        assert "tables/users.jsonl" in names
        text = b"".join(zipfile.ZipFile(io.BytesIO(dump.body)).read(name) for name in names)
        for secret in rig.tokens.values():
            assert secret.encode() not in text and secret[30:].encode() not in text
        made = await call(rig.app, "POST", "/api/v1/users", token=admin, body=b'{"name": "later"}')
        assert made.status == 201
        restored = await call(rig.app, "POST", "/api/v1/restore", token=admin, body=dump.body)
        assert restored.status == 200, restored.body
        users = (await call(rig.app, "GET", "/api/v1/users", token=admin)).json()
        assert "later" not in [user["name"] for user in users["items"]]
        verified = await call(rig.app, "GET", "/api/v1/audit/verify", token=admin)
        assert verified.json()["ok"]
        broken = await call(rig.app, "POST", "/api/v1/restore", token=admin, body=dump.body[:-50])
        assert broken.status == 422
        left = [name for name in os.listdir(rig.data_dir) if name.startswith("tmp")]
        assert left == []

    run(tmp_path, test)


def test_metrics_are_in_prometheus_format(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        await call(rig.app, "GET", "/api/v1/whoami", token=rig.tokens["ann"])
        assert (await call(rig.app, "GET", "/metrics", token=rig.tokens["ann"])).status == 403
        answer = await call(rig.app, "GET", "/metrics", token=rig.tokens["admin"])
        assert answer.headers["content-type"].startswith("text/plain")
        text = answer.body.decode()
        assert 'penstock_build_info{version="0.0-test"} 1.0' in text
        assert re.search(r"penstock_events_total \d+\.0", text)
        row = r'penstock_http_request_duration_seconds_count\{method="GET",route="/api/v1/whoami",status="2xx"\} 1\.0'
        assert re.search(row, text)
        assert 'le="+Inf"' in text
        names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
        assert all(name.startswith("penstock_") for name in names)

    run(tmp_path, test)


def test_health_needs_no_token_and_tells_nothing_else(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        assert json.loads((await call(rig.app, "GET", "/healthz")).body) == {"status": "ok"}
        version = await call(rig.app, "GET", "/api/v1/version", token=rig.tokens["eve"])
        assert version.json()["version"] == "0.0-test"
        await rig.store.close()
        assert (await call(rig.app, "GET", "/healthz")).status == 503

    run(tmp_path, test)


def test_the_console_asks_with_the_callers_rights(tmp_path: Path) -> None:
    async def test(rig: Rig) -> None:
        ann, bob = [await rig.access(rig.tokens[name]) for name in ("ann", "bob")]
        assert ann and bob
        made = await rig.app.ask("POST", "/api/v1/projects/p1/things", ann, body={"name": "x"})
        assert made == {"name": "x", "user": "ann"}
        listed = await rig.app.ask("GET", "/api/v1/things", ann, {"phase": ["a", "b"], "project": None, "limit": 5})
        assert listed["phase"] == ["a", "b"] and listed["limit"] == 5
        results = await asyncio.gather(
            rig.app.ask("GET", "/api/v1/projects/p1/things/there", bob),
            rig.app.ask("GET", "/api/v1/nothing", bob),
            rig.app.ask("POST", "/api/v1/projects/p1/things", ann, body={"name": 1, "x": 2}),
            return_exceptions=True,
        )
        assert [type(result).__name__ for result in results] == ["NotFound", "NotFound", "InvalidInput"]

    run(tmp_path, test)
