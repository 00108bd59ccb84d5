"""Every byte of a manifest is covered, and pieces that do not make whole tensors make no checkpoint."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.worker.checkpoint.errors import CheckpointError, Damaged, NewerFormat
from penstock.worker.checkpoint.manifest import (
    FORMAT,
    File,
    Manifest,
    Part,
    Piece,
    Tensor,
    manifest_bytes,
    merged,
    part_bytes,
    read_manifest,
    read_part,
)

FILE = File("rank-00000.safetensors", 9000, 4096, "0" * 96)
TENSOR = Tensor("model.w", "F32", (4, 2), (Piece(FILE.name, 4096, (0, 0), (4, 2)),))
WHOLE = Manifest("id", 7, 1, 1.5, (FILE,), (TENSOR,), {"a": [1]}, ({"random": {}},), {"job": ""})


def test_it_comes_back() -> None:
    assert read_manifest(manifest_bytes(WHOLE), "m") == WHOLE
    part = Part(1, (FILE,), (TENSOR,), {"x": 1}, {"y": None})
    assert read_part(part_bytes(part), "p") == part


@given(st.integers(0, len(manifest_bytes(WHOLE)) * 8 - 1))
def test_any_flipped_bit_is_found(bit: int) -> None:
    data = bytearray(manifest_bytes(WHOLE))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Damaged):
        read_manifest(bytes(data), "m")


@given(st.integers(0, len(manifest_bytes(WHOLE)) - 1))
def test_any_truncation_is_found(size: int) -> None:
    with pytest.raises(Damaged):
        read_manifest(manifest_bytes(WHOLE)[:size], "m")


def test_a_newer_format_is_refused_with_words() -> None:
    newer = Manifest("id", 7, 1, 1.5, (), (), {}, (), {}, format=FORMAT + 1)
    with pytest.raises(NewerFormat, match=f"format {FORMAT + 1}; this Penstock reads up to {FORMAT}"):
        read_manifest(manifest_bytes(newer), "m")


def test_a_pickle_is_named_and_not_read() -> None:
    with pytest.raises(Damaged, match="pickle"):
        read_manifest(pickle.dumps({"format": 1}), "m")


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([((0, 0), (2, 2))], "do not add up"),
        ([((0, 0), (4, 2)), ((2, 0), (2, 2))], "do not add up"),
        ([((0, 0), (2, 2)), ((3, 0), (2, 2))], "outside"),
        ([((0, 0), (2, 2)), ((0, 0), (1, 4))], "at one place"),
    ],
)
def test_pieces_that_make_no_whole_tensor(pieces: list[tuple[tuple[int, ...], tuple[int, ...]]], reason: str) -> None:
    parts = [
        Part(rank, (), (Tensor("w", "F32", (4, 2), (Piece("f", 0, offsets, shape),)),))
        for rank, (offsets, shape) in enumerate(pieces)
    ]
    with pytest.raises(CheckpointError, match=reason):
        merged("id", 1, 0.0, parts, {})


def test_ranks_that_disagree_about_a_tensor() -> None:
    parts = [Part(r, (), (Tensor("w", "F32", (n,), (Piece("f", 0, (0,), (n,)),)),)) for r, n in enumerate((3, 4))]
    with pytest.raises(CheckpointError, match=r"w is F32 \[3\] on one rank and F32 \[4\] on rank 1"):
        merged("id", 1, 0.0, parts, {})
