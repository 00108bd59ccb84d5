"""`penstock data`: from files of tokens to a data set, listed and verified."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from penstock.base.errors import InvalidInput, NotFound
from tests.cli.conftest import Cli
from tests.cli.test_startup import imported


@pytest.fixture
def prepared(tmp_path: Path, cli: Cli) -> Path:
    np.save(tmp_path / "a.npy", np.arange(1000, dtype=np.uint16))
    done = cli(
        "data", "prepare", str(tmp_path / "a.npy"), str(tmp_path / "sets" / "a"), "--chunk", "1Ki", "--block-size", "50"
    )
    assert done.out == f"1000 tokens of uint16 in 2 chunks -> {tmp_path}/sets/a\n"
    return tmp_path / "sets"


def test_list_and_verify(prepared: Path, cli: Cli) -> None:
    listed = cli("data", "ls", str(prepared), "--block-size", "64")
    assert listed.code == 0
    assert listed.out.splitlines()[1].split()[:3] == ["2", "1000", "14"]  # a chunk's rest is no sample
    assert "verified" in cli("data", "verify", str(prepared / "a")).out
    chunk = prepared / "a" / "chunk-0-1.bin"
    body = bytearray(chunk.read_bytes())
    body[500] ^= 1
    chunk.write_bytes(body)
    broken = cli("data", "verify", str(prepared))
    assert broken.code == 1
    assert "1 of 2 chunks broken" in broken.out
    assert "chunk-0-1.bin: its bytes are not those that were written" in broken.out
    (row,) = json.loads(cli("data", "verify", str(prepared), "-o", "json").out)["items"]
    assert row["broken"] == ["chunk-0-1.bin: its bytes are not those that were written"]


def test_what_is_no_data_set(tmp_path: Path, cli: Cli) -> None:
    listed = cli("data", "ls", str(tmp_path))
    assert listed.code == 1
    assert "no index.json" in listed.out
    assert cli("data", "ls", str(tmp_path / "nowhere")).code == NotFound.exit_code
    assert cli("data", "ls", str(tmp_path), "--block-size", "0").code == InvalidInput.exit_code
    assert "not an amount of memory" in cli("data", "prepare", "a.npy", str(tmp_path / "out"), "--chunk", "much").err
    missing = cli("data", "prepare", str(tmp_path / "a.npy"), str(tmp_path / "out"))
    assert (missing.code, "No such file" in missing.err) == (2, True)


def test_without_torch(prepared: Path) -> None:
    argv = ["data", "verify", str(prepared)]
    modules = imported(f"from penstock.app import main; assert main({argv!r}) == 0", prepared)
    assert not {name for name in modules if name.split(".")[0] in {"torch", "litdata", "sqlalchemy", "starlette"}}


def test_a_store_is_not_taken_for_a_folder_here(prepared: Path, cli: Cli) -> None:
    done = cli("data", "prepare", str(prepared.parent / "a.npy"), "s3://bucket/tokens")
    assert (done.code, "no folder of this machine" in done.err) == (InvalidInput.exit_code, True)
