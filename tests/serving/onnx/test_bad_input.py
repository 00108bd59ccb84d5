"""Whatever is sent: a clear refusal, and the server goes on for everybody else."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving.onnx import models
from tests.serving.onnx.running import Onnx, onnx

MAX_BODY = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Onnx]:
    folder = tmp_path_factory.mktemp("models")
    models.doubled(folder / "double/1/model.onnx")
    models.two(folder / "two/1/model.onnx")
    models.words(folder / "words/1/model.onnx")
    with onnx("--models", str(folder), "--max-body", str(MAX_BODY), "--request-timeout", "2s") as started:
        yield started
        assert started.infer("double", x=("FP32", [1, 4], [1, 2, 3, 4])).json["outputs"][0]["data"] == [2, 4, 6, 8]
        assert started.stop() == 0


def tensor(**changed: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]} | changed


BAD = {
    "no list": ({"inputs": 3}, "inputs: is a list"),
    "no inputs": ({}, "inputs: is a list"),
    "empty": ({"inputs": []}, "at least one"),
    "no object": ({"inputs": [3]}, r"inputs[0]: is an object"),
    "unknown name": ({"inputs": [tensor(name="z")]}, "inputs[0]: name: 'z'"),
    "name that is no text": ({"inputs": [tensor(name=[1])]}, "inputs[0]: name"),
    "twice": ({"inputs": [tensor(), tensor()]}, "is named twice"),
    "wrong type": ({"inputs": [tensor(datatype="INT64")]}, "datatype: is INT64, the model takes FP32"),
    "unknown type": ({"inputs": [tensor(datatype={"a": 1})]}, "datatype: is"),
    "wrong shape": ({"inputs": [tensor(shape=[1, 5], data=[0] * 5)]}, "shape: is [1, 5], the model takes [-1, 4]"),
    "shape of text": ({"inputs": [tensor(shape=["1", 4])]}, "shape: '1' is no size"),
    "negative shape": ({"inputs": [tensor(shape=[-1, 4])]}, "shape: -1 is no size"),
    "huge shape": ({"inputs": [tensor(shape=[1 << 62, 4])]}, "is no size"),
    "huge product": ({"inputs": [tensor(shape=[1 << 39, 1 << 39])]}, "too many elements"),
    "no rows": ({"inputs": [tensor(shape=[0, 4], data=[])]}, "nothing to compute"),
    "too few": ({"inputs": [tensor(data=[1, 2])]}, "data: has 2 elements; shape [1, 4] has 4"),
    "ragged": ({"inputs": [tensor(shape=[2, 4], data=[[1, 2, 3, 4], [1]])]}, "1 elements at depth 1"),
    "text": ({"inputs": [tensor(data=[1, 2, 3, "4"])]}, "data: '4' is no FP32"),
    "null": ({"inputs": [tensor(data=[1, 2, 3, None])]}, "data: None is no FP32"),
    "truth": ({"inputs": [tensor(data=[1, 2, 3, True])]}, "data: True is no FP32"),
    "beyond the type": ({"inputs": [tensor(data=[1, 2, 3, 1e300])]}, "data: 1e+300 is beyond FP32"),
    "no data": ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}]}, "data: is a list"),
    "unknown output": ({"inputs": [tensor()], "outputs": [{"name": "q"}]}, "outputs: 'q'"),
    "classification": (
        {"inputs": [tensor()], "outputs": [{"name": "y", "parameters": {"classification": 3}}]},
        "classification: is not served",
    ),
    "shared memory": (
        {"inputs": [tensor(parameters={"shared_memory_region": "r"})]},
        "shared_memory_region: is not served",
    ),
    "timeout of text": ({"inputs": [tensor()], "parameters": {"timeout": "soon"}}, "timeout: is a number"),
    "id": ({"inputs": [tensor()], "id": 3}, "id: is text"),
}


@pytest.mark.parametrize("case", BAD)
def test_json_that_is_wrong_is_refused_with_its_place(server: Onnx, case: str) -> None:
    body, message = BAD[case]
    answer = server.ask("/v2/models/double/infer", body)
    assert answer.status == 400
    assert message in answer.json["error"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"inputs": [NaN]}', b"[" * 100_000, b'{"inputs":' * 5000, b'{"a":1' + b"0" * 5000],
    ids=["empty", "cut", "list", "null", "not UTF-8", "NaN", "deep list", "deep object", "long number"],
)  # fmt: skip
def test_what_is_no_json_is_refused(server: Onnx, body: bytes) -> None:
    answer = server.ask("/v2/models/double/infer", body)
    assert answer.status == 400
    assert answer.json["error"]


def binary(size: int, content: bytes, **changed: Any) -> tuple[bytes, dict[str, str]]:
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": size}} | changed
    head = json.dumps({"inputs": [entry]}).encode()
    return head + content, {"Inference-Header-Content-Length": str(len(head))}


@pytest.mark.parametrize(
    ("size", "content", "message"),
    [
        (16, b"\0" * 15, "is 16, but only 15 bytes are left"),
        (16, b"\0" * 17, "1 bytes of binary data belong to no input"),
        (12, b"\0" * 12, "has 12 bytes of data; FP32 of shape [1, 4] has 16"),
        (-1, b"", "is a number of bytes"),
        (True, b"\0", "is a number of bytes"),
    ],
)
def test_binary_tensors_that_are_cut_off_are_refused(server: Onnx, size: int, content: bytes, message: str) -> None:
    body, headers = binary(size, content)
    answer = server.ask("/v2/models/double/infer", body, headers)
    assert answer.status == 400
    assert message in answer.json["error"]


@pytest.mark.parametrize("length", ["-1", "x", "99999", "0", "9" * 30])
def test_a_header_length_that_cannot_be_is_refused(server: Onnx, length: str) -> None:
    body, headers = binary(16, b"\0" * 16)
    answer = server.ask("/v2/models/double/infer", body, headers | {"Inference-Header-Content-Length": length})
    assert answer.status == 400
    assert "Inference-Header-Content-Length" in answer.json["error"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<I", 100) + b"ab", "an element of 100 bytes begins 2 bytes before the end"),
        (b"\1\0", "in the middle of an element's length"),
        (struct.pack("<I", 0) * 3, "has 3 elements; shape [1, 2] has 2"),
    ],
)
def test_text_tensors_that_are_cut_off_are_refused(server: Onnx, content: bytes, message: str) -> None:
    body, headers = binary(len(content), content, datatype="BYTES", shape=[1, 2])
    answer = server.ask("/v2/models/words/infer", body, headers)
    assert answer.status == 400
    assert message in answer.json["error"]


def test_an_input_that_lacks_is_named(server: Onnx) -> None:
    answer = server.infer("two", a=("FP32", [1, 2], [1, 2]))
    assert (answer.status, answer.json["error"]) == (400, "inputs: b is missing; two version 1 takes a, b")


def test_inputs_whose_rows_differ_are_refused(server: Onnx) -> None:
    answer = server.infer("two", a=("FP32", [1, 2], [1, 2]), b=("INT32", [2, 2], [1, 2, 3, 4]))
    assert answer.status == 400
    assert "first axes differ: [1, 2]" in answer.json["error"]


def test_nan_goes_in_and_out_as_binary_alone(server: Onnx) -> None:
    body, headers = binary(16, struct.pack("<4f", float("nan"), float("inf"), 1, 2))
    answer = server.ask("/v2/models/double/infer", body, headers)
    assert answer.status == 500
    assert "element 0 is nan, which JSON has no word for: ask for binary_data" in answer.json["error"]
    head = json.loads(body[: int(headers["Inference-Header-Content-Length"])])
    head["parameters"] = {"binary_data_output": True}
    text = json.dumps(head).encode()
    answer = server.ask(
        "/v2/models/double/infer", text + body[-16:], {"Inference-Header-Content-Length": str(len(text))}
    )
    assert answer.status == 200
    assert struct.unpack("<4f", answer.body[-16:])[2:] == (2, 4)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/../../etc/passwd/infer", "/v2/models/..%2f..%2fetc/infer", "/v2/models//infer", "/v2/models/%00/infer",
        "/v2/models/a b/infer".replace(" ", "%20"), "/v2/models/nobody/infer", "/v2/models/double/versions/9/infer",
        "/v2/models/double/versions/../infer", "/v2/repository/models/..%2f../load", "/v2/repository/models/nobody/load",
        "/v2/repository/models/../load", "/infer", "/v2/models/double/other",
    ],
)  # fmt: skip
def test_names_lead_nowhere_else(server: Onnx, path: str) -> None:
    answer = server.ask(path, {"inputs": [tensor()]})
    assert answer.status in (400, 404, 405)
    assert answer.json["error"]


def test_a_huge_body_is_refused_before_it_is_read(server: Onnx) -> None:
    with socket.create_connection(("127.0.0.1", server.http), 10) as link:
        link.sendall(b"POST /v2/models/double/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 99999999999\r\n\r\n")
        assert link.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_huge_body_in_chunks_is_refused_at_its_bound(server: Onnx) -> None:
    with socket.create_connection(("127.0.0.1", server.http), 10) as link:
        link.sendall(b"POST /v2/models/double/infer HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
        try:
            for _ in range(3 * MAX_BODY // 65536):
                link.sendall(chunk)
        except ConnectionError:
            pass
        else:
            assert link.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_unfolds_to_more_is_refused(server: Onnx) -> None:
    body = gzip.compress(b" " * (50 * MAX_BODY))
    answer = server.ask("/v2/models/double/infer", body, {"Content-Encoding": "gzip"})
    assert (answer.status, answer.json["error"]) == (413, f"the body unfolds to more than {MAX_BODY} bytes")


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", b"nonsense", 400),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-5], 400),
        ("br", b"{}", 415),
        ("deflate", b"x", 400),
    ],
    ids=["no gzip", "cut gzip", "brotli", "no deflate"],
)
def test_compressed_bodies_that_are_none_are_refused(server: Onnx, encoding: str, body: bytes, status: int) -> None:
    assert server.ask("/v2/models/double/infer", body, {"Content-Encoding": encoding}).status == status


@pytest.mark.parametrize("last", [b"\r\n", b""])
def test_a_hundred_thousand_headers_are_refused(server: Onnx, last: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.http), 10) as link:
        try:
            link.sendall(b"GET /v2 HTTP/1.1\r\n" + b"".join(b"h%d: v\r\n" % at for at in range(100_000)) + last)
            answer = link.recv(100)
        except ConnectionError:
            answer = b"HTTP/1.1 431 "  # it was closed while we still sent
        assert answer.startswith(b"HTTP/1.1 431 ")


def test_a_caller_that_is_slow_with_its_body_is_told_so(server: Onnx) -> None:
    with socket.create_connection(("127.0.0.1", server.http), 10) as link:
        link.sendall(b"POST /v2/models/double/infer HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n{")
        began = time.monotonic()
        assert link.recv(100).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 30


def test_a_refusal_counts(server: Onnx) -> None:
    server.ask("/v2/models/double/infer", {"inputs": [tensor(name="z")]})
    page = server.ask("/metrics").body.decode()
    line = next(one for one in page.splitlines() if 'model="double"' in one and 'outcome="invalid"' in one)
    assert float(line.split()[-1]) >= 1
