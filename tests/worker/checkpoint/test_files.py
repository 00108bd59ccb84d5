"""Shard files: what is written is what is read, by others' libraries too, and any change is found."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from xxhash import xxh3_128_hexdigest

from penstock.worker.checkpoint import memory
from penstock.worker.checkpoint.errors import Damaged
from penstock.worker.checkpoint.layout import PAGE, SIZES, Box, make_layout
from penstock.worker.checkpoint.loading import OnDevice
from penstock.worker.checkpoint.reading import Want, read_files
from penstock.worker.checkpoint.staging import Staging, streamed
from penstock.worker.checkpoint.tensors import DTYPES, place
from penstock.worker.checkpoint.writing import gathered, spoilt, whole, write_shard

CHUNK = 2 * PAGE


def written(path: Path, pieces: list[bytes], chunk: int = CHUNK) -> tuple[bytes, object]:
    arrays = [np.frombuffer(piece, np.uint8) for piece in pieces]
    return b"".join(pieces), write_shard(str(path), gathered(arrays), chunk)


@given(st.lists(st.binary(max_size=3 * CHUNK), max_size=6))
def test_what_is_written_is_there(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("shard") / "f"
    arrays = [np.frombuffer(piece, np.uint8) for piece in pieces if piece]
    data = b"".join(pieces)
    file = write_shard(str(path), gathered(arrays), CHUNK)
    assert path.read_bytes() == data
    assert (file.size, file.chunks) == (len(data), -(-len(data) // CHUNK))
    for index in range(file.chunks):
        assert file.digest(index) == xxh3_128_hexdigest(data[index * CHUNK : (index + 1) * CHUNK])
    into = np.zeros(len(data), np.uint8)
    read_files(str(path.parent), [file], {"f": [Want(0, into)]}, frozenset())
    assert into.tobytes() == data
    path.unlink()


def test_what_lies_elsewhere_is_brought_there_chunk_by_chunk(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 5 * CHUNK + 100, dtype=np.uint8)
    file = write_shard(str(tmp_path / "f"), gathered([data]), CHUNK)
    there = torch.zeros(3 * CHUNK, dtype=torch.uint8).view(torch.bfloat16)
    into = OnDevice(there, PAGE, PAGE + 2 * CHUNK)
    read_files(str(tmp_path), [file], {"f": [Want(CHUNK - 10, into)]}, frozenset())
    found = there.view(torch.uint8).numpy()
    assert found[PAGE : PAGE + 2 * CHUNK].tobytes() == data[CHUNK - 10 : 3 * CHUNK - 10].tobytes()
    assert not found[:PAGE].any()
    assert not found[PAGE + 2 * CHUNK :].any()


def test_a_buffer_goes_to_the_disk_from_where_it_is(tmp_path: Path) -> None:
    buffer = memory.aligned(5 * CHUNK + 100)
    buffer[:] = np.random.default_rng(0).integers(0, 256, len(buffer), dtype=np.uint8)
    write_shard(str(tmp_path / "f"), whole(buffer, 5 * CHUNK + 100), CHUNK)
    assert (tmp_path / "f").read_bytes() == buffer[: 5 * CHUNK + 100].tobytes()


def test_a_copy_that_fails_fails_the_write(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="staging"):
        write_shard(str(tmp_path / "f"), spoilt(CHUNK, ValueError("gone")), CHUNK)


@pytest.mark.parametrize("staging", [True, False])
def test_safetensors_reads_every_type(tmp_path: Path, staging: bool) -> None:
    tensors = {}
    for name, dtype in DTYPES.items():
        raw = torch.randint(0, 2 if name == "BOOL" else 120, (3 * 5 * SIZES[name],), dtype=torch.uint8)
        tensors[f"t.{name}"] = raw.view(dtype).reshape(3, 5)
    tensors |= {"scalar": torch.tensor(4.5), "empty": torch.empty(0, 4), "across": torch.arange(12.0).view(3, 4).t()}
    placed = sorted((place(name, t) for name, t in tensors.items()), key=lambda item: -item.local.element_size())
    layout = make_layout("f.safetensors", [item.box for item in placed])
    header = layout.header({"step": "5"})
    local = [item.local for item in placed]
    if staging:
        buffer = Staging(layout, pinned=False)
        buffer.copy(local, header)
        source = buffer.source()
    else:
        source = streamed(layout, local, header)
    write_shard(str(tmp_path / "f.safetensors"), source, CHUNK)
    found = load_file(tmp_path / "f.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        same = tensor.contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), same), name


def test_data_begin_on_a_page_however_many_tensors() -> None:
    for count in (0, 1, 50, 500):
        layout = make_layout("f", [Box(f"layers.{i}.weight", "F32", (4,), (0,), (4,)) for i in range(count)])
        assert layout.data_start % PAGE == 0
        assert len(layout.header({"save": "x" * 60})) == layout.data_start


def test_a_file_in_place_of_another_is_found(tmp_path: Path) -> None:
    one, file = tmp_path / "one", None
    one.mkdir()
    file = write_shard(str(one / "f"), gathered([np.arange(100, dtype=np.uint8)]), CHUNK)
    (one / "f").write_bytes(bytes(100))
    with pytest.raises(Damaged, match="not what was written"):
        read_files(str(one), [file], {}, frozenset({"f"}))
    (one / "f").unlink()
    with pytest.raises(Damaged, match="No such file"):
        read_files(str(one), [file], {}, frozenset({"f"}))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.needs("root")
def test_a_file_that_will_not_fit_is_refused_before_it_is_written(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left") as failure:
        write_shard(str(small_disk / "f"), gathered([np.zeros(5 << 20, np.uint8)]))
    assert failure.value.errno == errno.ENOSPC
    assert os.listdir(small_disk) == []


@pytest.mark.needs("root")
def test_a_file_system_of_memory_takes_files_too(small_disk: Path) -> None:
    data = np.arange(300_000, dtype=np.uint32).view(np.uint8)
    file = write_shard(str(small_disk / "f"), gathered([data]), CHUNK)
    read_files(str(small_disk), [file], {}, frozenset({"f"}))


def test_memory_that_is_short_is_told() -> None:
    assert memory.short_of_memory(4 << 30, 2, 1 << 30, 9 << 30) == ""
    told = memory.short_of_memory(4 << 30, 2, 1 << 30, 8 << 30)
    assert told.startswith("staging needs 8.00 GiB on this host (2 ranks), which has 8.00 GiB available")
    assert memory.short_of_memory(4 << 30, 2, 1 << 30, None) == ""


def test_a_control_group_limits_what_is_available(tmp_path: Path) -> None:
    proc, group = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (group / "job/step").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    (proc / "self/cgroup").write_text("0::/job/step\n")
    assert memory.available(str(proc), str(group)) == 8000 * 1024
    (group / "job/memory.max").write_text("5000000\n")
    (group / "job/memory.current").write_text("4000000\n")
    (group / "job/memory.stat").write_text("anon 3500000\ninactive_file 500000\n")
    (group / "job/step/memory.max").write_text("max\n")
    assert memory.available(str(proc), str(group)) == 1_500_000
    assert (memory.available() or 0) > 0
