"""Files of tokens become what litdata reads, or are refused by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from litdata import StreamingDataset, TokensLoader
from litdata.streaming.writer import BinaryWriter

from penstock.worker.data.errors import DataDamaged, DataError
from penstock.worker.data.index import chunk_fault, read_index
from penstock.worker.data.prepare import CODES, Options, prepare

TOKENS = np.arange(1000, dtype=np.uint16)


def npy(folder: Path) -> str:
    np.save(folder / "a.npy", TOKENS.reshape(10, 100))
    return str(folder / "a.npy")


def plain(folder: Path) -> str:
    TOKENS.tofile(folder / "a.bin")
    return str(folder / "a.bin")


def megatron(folder: Path, lengths: tuple[int, ...] = (300, 0, 650, 50)) -> str:
    """As Megatron's builder writes it: lengths, byte offsets, and which sequences are a document's."""
    offsets = np.cumsum((0, *lengths[:-1])) * 2
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(lengths), len(lengths) + 1)
    documents = np.arange(len(lengths) + 1)
    body = np.array(lengths, "<i4").tobytes() + offsets.astype("<i8").tobytes() + documents.astype("<i8").tobytes()
    (folder / "a.idx").write_bytes(head + body)
    return plain(folder)


@pytest.mark.parametrize("source", [npy, plain, megatron])
def test_litdata_reads_it(tmp_path: Path, source: Callable[[Path], str]) -> None:
    path = source(tmp_path)
    done = prepare([path, path], str(tmp_path / "out"), Options(dtype="uint16", block_size=16, chunk_bytes=700))
    assert (done.tokens, done.chunks, done.dtype) == (2000, 6, "uint16")  # 336 tokens a chunk: 21 blocks
    dataset = StreamingDataset(str(tmp_path / "out"), item_loader=TokensLoader(block_size=16))
    assert len(dataset) == 125
    found = np.concatenate([np.asarray(dataset[number]) for number in range(125)])
    assert np.array_equal(found, np.concatenate([TOKENS, TOKENS]))


@pytest.mark.parametrize("dtype", list(CODES))
def test_the_index_speaks_as_litdatas_own_writer(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.arange(100, dtype=dtype))
    prepare([str(tmp_path / "a.npy")], str(tmp_path / "ours"))
    (tmp_path / "theirs").mkdir()
    writer = BinaryWriter(str(tmp_path / "theirs"), chunk_size=1, item_loader=TokensLoader())
    writer.add_item(0, np.arange(100, dtype=dtype))
    writer.done()
    writer.merge(1)
    ours, theirs = (json.loads((tmp_path / side / "index.json").read_text()) for side in ("ours", "theirs"))
    assert ours["chunks"] == theirs["chunks"]
    assert {key: theirs["config"][key] for key in ours["config"]} == ours["config"]
    assert (tmp_path / "ours/chunk-0-0.bin").read_bytes() == (tmp_path / "theirs/chunk-0-0.bin").read_bytes()


def test_bytes_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("héllo")
    assert prepare([str(tmp_path / "a.txt")], str(tmp_path / "out"), Options(as_bytes=True)).tokens == 6


def test_what_was_altered_is_found(tmp_path: Path) -> None:
    prepare([npy(tmp_path)], str(tmp_path / "out"), Options(chunk_bytes=700))
    index = read_index(str(tmp_path / "out"))
    assert [chunk_fault(index, chunk, read=True) for chunk in index.chunks] == [""] * 3
    path = tmp_path / "out" / index.chunks[1].name
    whole = path.read_bytes()
    for place, what in ((0, "its header does not speak of 1 items"), (5, "offsets"), (200, "its bytes are not those")):
        body = bytearray(whole)
        body[place] ^= 4
        path.write_bytes(body)
        assert what in chunk_fault(index, index.chunks[1], read=True)
    path.write_bytes(whole[:-2])
    assert f"it has {len(whole) - 2} bytes" in chunk_fault(index, index.chunks[1])


def refused(folder: Path, name: str, **options: object) -> str:
    with pytest.raises(DataError) as raised:
        prepare([str(folder / name)], str(folder / "out"), Options(**options))  # type: ignore[arg-type]  # one of its fields
    assert not (folder / "out").exists()
    assert not list(folder.glob("*.tmp-*"))
    return raised.value.message


def test_what_cannot_be_read_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    plain(tmp_path)
    assert "does not say what its tokens are" in refused(tmp_path, "a.bin")
    assert "No such file" in refused(tmp_path, "b.npy")
    (tmp_path / "a.txt").write_text("text")
    assert "is no file of tokens" in refused(tmp_path, "a.txt")
    np.save(tmp_path / "f.npy", np.zeros(3))
    assert "float64" in refused(tmp_path, "f.npy")
    assert "no whole numbers" in refused(tmp_path, "f.npy", dtype="int32")
    np.save(tmp_path / "e.npy", np.zeros(0, np.uint16))
    assert "not one token" in refused(tmp_path, "e.npy")
    np.save(tmp_path / "big.npy", np.array([1, 70000]))
    assert "token 1 is 70000, which uint16 does not hold" in refused(tmp_path, "big.npy", dtype="uint16")
    assert "does not hold one block of 400" in refused(tmp_path, "big.npy", block_size=400, chunk_bytes=100)
    (tmp_path / "odd.bin").write_bytes(b"123")
    assert "no whole number of uint16" in refused(tmp_path, "odd.bin", dtype="uint16")
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04N.")
    assert "pickle" in refused(tmp_path, "pickle.npy")


def test_a_megatron_index_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    megatron(tmp_path, (300, 600))
    with pytest.raises(DataDamaged, match="speaks of 900 tokens"):
        prepare([str(tmp_path / "a.bin")], str(tmp_path / "out"))
    (tmp_path / "a.idx").write_bytes(b"something else")
    with pytest.raises(DataDamaged, match="not one of Megatron's"):
        prepare([str(tmp_path / "a.idx")], str(tmp_path / "out"))


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert prepare([npy(tmp_path)], str(tmp_path / "out")).chunks == 1
    with pytest.raises(DataError, match="is there already"):
        prepare([npy(tmp_path)], str(tmp_path / "out"))
