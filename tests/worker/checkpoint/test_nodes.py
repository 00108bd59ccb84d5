"""Folders that each node has for itself: one commit for all, copies at the neighbour, the whole put together in a tier."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.reading import verify
from tests.worker.checkpoint.s3_server import KEY, S3Server

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[3]


def run(base: Path, steps: int, ranks: int = 2, **options: Any) -> list[dict[str, Any]]:
    """What each rank said. Each is a node with a folder of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
    command = [sys.executable, "-m", "tests.worker.checkpoint.apart", str(base), str(steps), json.dumps(options)]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in range(ranks)
    ]
    told = []
    try:
        for process in started:
            out, err = process.communicate(timeout=90)
            told.append({**(json.loads(out) if out.strip() else {}), "err": err.decode()})
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    return told


def newest(base: Path, node: int) -> Path:
    return Path(folder.entries(str(base / f"node-{node}"))[-1].path)


def files(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.glob("*.safetensors"))


def test_each_node_has_its_own_and_all_of_them_the_whole(tmp_path: Path) -> None:
    first = run(tmp_path, 8, keep=2)
    assert [told.get("error") for told in first] == [None, None], first
    assert files(newest(tmp_path, 0)) == ["rank-00000.safetensors"]
    assert files(newest(tmp_path, 1)) == ["rank-00001.safetensors"]
    for node in (0, 1):
        assert [one.step for one in folder.entries(str(tmp_path / f"node-{node}"))] == [5, 7]
    again = run(tmp_path, 8, seed=1)
    assert [(told["start"], told["loaded"]) for told in again] == [(8, told["end"]) for told in first]


def test_a_node_that_did_not_get_to_its_commit_goes_forward(tmp_path: Path) -> None:
    first = run(tmp_path, 4)
    path = newest(tmp_path, 1)
    path.rename(path.parent / f".tmp-{path.name.split('-', 1)[1]}")
    again = run(tmp_path, 4, seed=1)
    assert [(told["start"], told["loaded"]) for told in again] == [(4, told["end"]) for told in first]
    assert newest(tmp_path, 1) == path


def test_damage_at_one_node_sends_all_to_the_one_before(tmp_path: Path) -> None:
    run(tmp_path, 4)
    shard = newest(tmp_path, 1) / "rank-00001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    again = run(tmp_path, 4, seed=1)
    assert [told["start"] for told in again] == [2, 2]
    assert "step 3 is damaged and not used" in again[0]["err"]
    assert again[0]["loaded"] == again[1]["loaded"]


def test_a_lost_node_is_loaded_from_its_neighbour(tmp_path: Path) -> None:
    first = run(tmp_path, 4, neighbour=True)
    for node in (0, 1):
        assert files(newest(tmp_path, node)) == ["rank-00000.safetensors", "rank-00001.safetensors"]
    shutil.rmtree(tmp_path / "node-0")
    again = run(tmp_path, 6, seed=1, neighbour=True)
    assert [(told["start"], told["loaded"]) for told in again] == [(4, told["end"]) for told in first], again
    assert newest(tmp_path, 0).name.startswith("5-")
    shard = newest(tmp_path, 1) / "rank-00001.safetensors"  # damaged at one, whole at the other
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 8
    shard.write_bytes(data)
    third = run(tmp_path, 6, seed=2)
    assert [(told["start"], told["loaded"]) for told in third] == [(6, told["end"]) for told in again], third
    alone = run(tmp_path / "x", 0, ranks=1, seed=3)
    assert alone[0]["start"] == 0
    (tmp_path / "y").mkdir()
    shutil.copytree(tmp_path / "node-1", tmp_path / "y/node-0")
    shrunk = run(tmp_path / "y", 6, ranks=1, seed=3)  # the position of two ranks is the same here
    assert (shrunk[0]["start"], shrunk[0]["loaded"]) == (6, again[0]["end"])


def test_shards_of_fsdp_are_kept_by_the_neighbour_too(tmp_path: Path) -> None:
    first = run(tmp_path, 4, neighbour=True, fsdp=True)
    assert [told.get("error") for told in first] == [None, None], first
    for node in (0, 1):
        assert files(newest(tmp_path, node)) == ["rank-00000.safetensors", "rank-00001.safetensors"]
    shutil.rmtree(tmp_path / "node-1")
    again = run(tmp_path, 6, seed=1, neighbour=True, fsdp=True)
    assert [(told["start"], told["loaded"]) for told in again] == [(4, told["end"]) for told in first], again
    (tmp_path / "y").mkdir()
    shutil.copytree(tmp_path / "node-0", tmp_path / "y/node-0")
    shrunk = run(tmp_path / "y", 6, ranks=1, seed=3, fsdp=True)
    assert (shrunk[0]["start"], shrunk[0]["loaded"]) == (6, again[0]["end"])


def test_who_does_not_know_the_jobs_secret_keeps_and_sends_nothing(tmp_path: Path) -> None:
    told = run(tmp_path, 4, neighbour=True, stranger=1)
    for one in told:
        assert "is no rank of this job: it does not know the job's secret" in one["error"], told
    assert not (tmp_path / "node-0").exists() or folder.entries(str(tmp_path / "node-0")) == []


def test_without_a_copy_a_lost_node_is_named(tmp_path: Path) -> None:
    run(tmp_path, 4)
    shutil.rmtree(tmp_path / "node-0")
    again = run(tmp_path, 4, seed=1)
    for told in again:
        assert "CheckpointDamaged: none of the 2 checkpoints" in told["error"]
        assert "no node has rank-00000.safetensors" in told["error"]


def test_a_tier_gets_the_whole_and_gives_it_back(tmp_path: Path) -> None:
    tier = tmp_path / "tier"
    first = run(tmp_path, 6, tiers=[str(tier)])
    entry = folder.entries(str(tier))[-1]
    assert entry.step == 5, first
    manifest = verify(entry.path)
    assert [file.name for file in manifest.files] == ["rank-00000.safetensors", "rank-00001.safetensors"]
    for node in (0, 1):
        shutil.rmtree(tmp_path / f"node-{node}")
    again = run(tmp_path, 6, seed=1, tiers=[str(tier)])
    assert [(told["start"], told["loaded"]) for told in again] == [(6, told["end"]) for told in first]


def test_a_tier_in_s3_gets_the_whole_and_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ACCESS_KEY_ID", KEY[0]), ("SECRET_ACCESS_KEY", KEY[1]), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with closing(S3Server("rclone", tmp_path / "s3")) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        base, tier = tmp_path / "n", "s3://models/run/9"
        first = run(base, 6, tiers=[tier])
        assert [told.get("error") for told in first] == [None, None], first
        parts = {path.split("/")[-2] for path in server.puts() if "rank-" in path}
        assert parts == {"rank-00000.safetensors", "rank-00001.safetensors"}
        assert any(path.endswith("/manifest.json") for path in server.puts())
        shutil.rmtree(base / "node-1")
        one_left = run(base, 6, seed=1, tiers=[tier])
        assert [(told["start"], told["loaded"]) for told in one_left] == [(6, told["end"]) for told in first], one_left
        for node in (0, 1):
            shutil.rmtree(base / f"node-{node}")
        again = run(base, 8, seed=2, tiers=[tier])
        assert [(told["start"], told["loaded"]) for told in again] == [(6, told["end"]) for told in first], again
        assert newest(base, 1).name.startswith("7-")


def test_a_node_that_cannot_write_is_named_and_nobody_commits(tmp_path: Path) -> None:
    (tmp_path / "node-1").write_text("no folder")
    told = run(tmp_path, 4)
    assert folder.entries(str(tmp_path / "node-0")) == []
    for one in told:
        assert "SaveFailed" in one["error"], told
        assert "rank 1: FileExistsError" in one["error"], told
    assert not [name for name in os.listdir(tmp_path / "node-0") if name.startswith(".tmp")]
