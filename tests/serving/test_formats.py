"""Formats are told by content: a name says nothing."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.formats import tell
from penstock.serving.runtimes.spec import Format

ONNX = b"\x08\x08" + b"\x12\x03abc" + b"\x3a\x05\x12\x03net" + b"\x42\x02\x10\x11"
TENSORS = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
SAFE = len(TENSORS).to_bytes(8, "little") + TENSORS + bytes(4)


def torch_file() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02.")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "format_"),
    [
        ("m.onnx", ONNX, Format.ONNX),
        ("m.pt", ONNX, Format.ONNX),
        ("m.onnx", pickle.dumps({"a": 1}), Format.PICKLE),
        ("m.safetensors", torch_file(), Format.PICKLE),
        ("m.bin", SAFE, Format.SAFETENSORS),
        ("m.onnx", SAFE[:-1], Format.UNKNOWN),
        ("m.onnx", ONNX[:8], Format.UNKNOWN),
        ("m.onnx", b"", Format.UNKNOWN),
        ("m.onnx", b"<html>not found</html>", Format.UNKNOWN),
    ],
)
def test_a_file_is_told_by_its_content(tmp_path: Path, name: str, content: bytes, format_: Format) -> None:
    (tmp_path / name).write_bytes(content)
    assert tell(str(tmp_path / name)).format is format_


def test_onnx_that_breaks_off_says_where(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(ONNX[:9])
    assert tell(str(tmp_path / "m")).why == "begins as ONNX does and breaks off at byte 7"


def test_a_graph_that_is_none_is_seen(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(ONNX.replace(b"\x12\x03net", b"\x12\x09net"))
    found = tell(str(tmp_path / "m"))
    assert (found.format, found.why) == (Format.UNKNOWN, "begins as ONNX does and breaks off at byte 9")


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one/net.onnx").write_bytes(ONNX)
    found = tell(str(tmp_path / "one"))
    assert (found.format, found.path) == (Format.ONNX, str(tmp_path / "one/net.onnx"))
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/config.json").write_text("{}")
    (tmp_path / "hub/model.safetensors").write_bytes(SAFE)
    (tmp_path / "hub/training_args.bin").write_bytes(torch_file())  # no weights: nobody reads it
    assert tell(str(tmp_path / "hub")).format is Format.HUGGING_FACE
    (tmp_path / "hub/model.safetensors").unlink()
    assert tell(str(tmp_path / "hub")).format is Format.PICKLE
    (tmp_path / "repo/net").mkdir(parents=True)
    (tmp_path / "repo/net/config.pbtxt").write_text('name: "net"')
    assert tell(str(tmp_path / "repo")).format is Format.TRITON
    (tmp_path / "none").mkdir()
    assert tell(str(tmp_path / "none")).why == "no model is in this folder"


@given(st.binary(max_size=200))
def test_any_bytes_are_told(data: bytes) -> None:
    path = Path("/tmp/penstock-test-format")
    path.write_bytes(data)
    assert tell(str(path)).format in Format
