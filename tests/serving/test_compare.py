"""When two answers agree: exact, within a tolerance, by the largest of a row; and what is said of those that do not."""

from __future__ import annotations

import gzip
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.answers import Text, read
from penstock.serving.compare import How, Rule, replies
from penstock.serving.reply import Reply

JSON = {"content-type": "application/json"}
EXACT, TOP1 = Rule("exact"), Rule("top1")


def reply(value: Any, status: int = 200) -> Reply:
    return Reply(status, JSON, json.dumps(value).encode())


def tensors(*outputs: tuple[str, str, Any], binary: bool = False) -> Reply:
    """OIP outputs: name, type, values of one shape."""
    told: list[dict[str, Any]] = []
    content = b""
    for name, datatype, values in outputs:
        array = np.array(values, dtype={"FP32": "<f4", "FP64": "<f8", "INT64": "<i8", "FP16": "<f2"}[datatype])
        one: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if binary:
            one["parameters"] = {"binary_data_size": array.nbytes}
            content += array.tobytes()
        else:
            one["data"] = array.ravel().tolist()
        told.append(one)
    head = json.dumps({"model_name": "m", "model_version": "1", "id": "x", "outputs": told}).encode()
    if not binary:
        return Reply(200, JSON, head)
    return Reply(200, {"inference-header-content-length": str(len(head))}, head + content)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
hows = st.sampled_from(["exact", "tolerance", "top1"])
rows = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.floats(width=32), min_size=width, max_size=width), min_size=1, max_size=3)
)


@given(values, hows)
def test_everything_agrees_with_itself(value: Any, how: How) -> None:
    assert replies(reply(value), reply(value), Rule(how)) == ""


@given(values, values, hows)
def test_agreeing_is_symmetric(a: Any, b: Any, how: How) -> None:
    assert bool(replies(reply(a), reply(b), Rule(how))) == bool(replies(reply(b), reply(a), Rule(how)))


@given(values, values)
def test_what_is_exact_is_within_any_tolerance(a: Any, b: Any) -> None:
    if replies(reply(a), reply(b), EXACT) == "":
        assert replies(reply(a), reply(b), Rule("tolerance", 0.0)) == ""


@given(rows, rows, st.floats(0, 10), st.floats(0, 10), st.booleans())
def test_a_wider_tolerance_takes_what_a_narrower_took(a: Any, b: Any, x: float, y: float, binary: bool) -> None:
    one, two = tensors(("o", "FP32", a), binary=binary), tensors(("o", "FP32", b))
    narrow, wide = sorted((x, y))
    if replies(one, two, Rule("tolerance", narrow)) == "":
        assert replies(one, two, Rule("tolerance", wide)) == ""


@given(rows, hows, st.booleans())
def test_the_same_tensors_agree_however_they_are_sent(a: Any, how: How, first: bool) -> None:
    assert replies(tensors(("o", "FP32", a), binary=first), tensors(("o", "FP32", a), binary=True), Rule(how)) == ""


@given(rows, st.data())
def test_nan_agrees_with_nan_alone(a: Any, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(a) - 1))
    column = data.draw(st.integers(0, len(a[0]) - 1))
    there = [list(one) for one in a]
    there[row][column] = math.nan
    clean = [[0.0 if math.isnan(one) else one for one in line] for line in a]
    for how in ("exact", "tolerance", "top1"):
        assert replies(tensors(("o", "FP32", there)), tensors(("o", "FP32", clean)), Rule(how, 1e9)) != ""


@given(st.binary(max_size=200), st.dictionaries(st.sampled_from(["content-type", "content-encoding", "inference-header-content-length"]), st.sampled_from(["application/json", "gzip", "deflate", "br", "12", "text/event-stream", "-1"])), hows)  # fmt: skip
def test_nothing_raises(body: bytes, headers: dict[str, str], how: How) -> None:
    one = Reply(200, headers, body)
    assert replies(one, one, Rule(how)) == ""
    assert isinstance(replies(one, tensors(("o", "FP32", [1.0])), Rule(how)), str)


@pytest.mark.parametrize(
    ("a", "b", "rule", "said"),
    [
        (tensors(("p", "FP32", [[1.0, 2.0]])), tensors(("p", "FP32", [1.0, 2.0])), EXACT, "output 'p': shape [1, 2] against [2]"),
        (tensors(("p", "FP32", [1.0])), tensors(("p", "FP64", [1.0])), Rule(), "output 'p': type FP32 against FP64"),
        (tensors(("p", "FP32", [1.0])), tensors(("q", "FP32", [1.0])), Rule(), "outputs ['p'] against ['q']"),
        (
            tensors(("p", "FP32", [[0.1, 0.9], [0.2, 0.8]])),
            tensors(("p", "FP32", [[0.1, 0.9], [0.5, 0.25]]), binary=True),
            Rule("tolerance", 0.01),
            "output 'p'[1, 0]: 0.2 against 0.5 (and 1 more of 4)",
        ),
        (
            tensors(("p", "FP32", [[0.1, 0.9], [0.2, 0.8]])),
            tensors(("p", "FP32", [[0.4, 0.6], [0.9, 0.1]])),
            TOP1,
            "output 'p', row 1: the largest is number 1 against number 0 (1 of 2 rows)",
        ),
        (tensors(("n", "INT64", [3])), tensors(("n", "INT64", [4])), TOP1, "output 'n'[0]: 3 against 4"),
        (reply({"a": 1, "b": 2}), reply({"a": 1}), Rule(), "$: 'b' is in the stable version's alone"),
        (reply({"a": [1, {"x": "y"}]}), reply({"a": [1, {"x": "z"}]}), Rule(), "$.a[1].x: 'y' against 'z'"),
        (reply(True), reply(1), Rule(), "$: True against 1"),
        (reply({"p": [0.1, 0.9]}), reply({"p": [0.9, 0.1]}), TOP1, "$.p, row 0: the largest is number 1 against number 0"),
        (reply({}), reply({}, 422), Rule(), "status 200 against 422"),
        (Reply(200, {}, b"one"), Reply(200, {}, b"two"), EXACT, "text 0, character 0: 'one' against 'two'"),
        (Reply(200, {}, b"\xff"), Reply(200, {}, b"\xfe\xfe"), EXACT, "1 bytes against other 2 bytes"),
        (reply({}), Reply(200, JSON, b"{"), Rule(), "the candidate's answer cannot be read: it is no JSON"),
    ],
)  # fmt: skip
def test_the_first_difference_is_named(a: Reply, b: Reply, rule: Rule, said: str) -> None:
    assert replies(a, b, rule).startswith(said)


def test_gzip_is_unpacked_and_a_bomb_is_not() -> None:
    plain = reply({"a": 1})
    packed = Reply(200, {**JSON, "content-encoding": "gzip"}, gzip.compress(plain.body))
    assert replies(plain, packed, EXACT) == ""
    bomb = Reply(200, {**JSON, "content-encoding": "gzip"}, gzip.compress(bytes(80 << 20)))
    assert "more than" in replies(plain, bomb, EXACT)
    cut = Reply(200, packed.headers, packed.body[:-9])
    assert "cut off" in replies(plain, cut, EXACT)


def test_what_a_version_says_of_itself_is_no_difference() -> None:
    one, two = tensors(("o", "FP32", [1.0])), tensors(("o", "FP32", [1.0]))
    other = Reply(200, JSON, two.body.replace(b'"model_version": "1"', b'"model_version": "2"').replace(b'"x"', b'"y"'))
    assert replies(one, other, EXACT) == ""


def chat(*pieces: str, ident: str = "a") -> Reply:
    events = [
        {"id": ident, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": piece}}]}
        for piece in pieces
    ]
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return Reply(200, {"content-type": "text/event-stream; charset=utf-8"}, lines.encode())


def test_a_stream_is_the_text_it_ends_with() -> None:
    assert read(chat("Hel", "lo")) == Text(("Hello",))
    assert replies(chat("Hel", "lo"), chat("H", "ello", ident="b"), EXACT) == ""
    whole = {"object": "chat.completion", "id": "c", "created": 7, "choices": [{"message": {"content": "Hello"}}]}
    assert replies(chat("Hello"), reply(whole), EXACT) == ""
    assert replies(chat("Hello you"), chat("Hello me"), Rule()) == "text 0, character 6: 'you' against 'me'"
    plain = Reply(200, {"content-type": "text/event-stream"}, b"data: 1\n\ndata: 2\n\n")
    assert read(plain) == Text(("1", "2"))


def test_strings_in_binary_tensors() -> None:
    def told(*words: bytes) -> Reply:
        content = b"".join(len(word).to_bytes(4, "little") + word for word in words)
        one = {
            "name": "s",
            "datatype": "BYTES",
            "shape": [len(words)],
            "parameters": {"binary_data_size": len(content)},
        }
        head = json.dumps({"outputs": [one]}).encode()
        return Reply(200, {"inference-header-content-length": str(len(head))}, head + content)

    assert replies(told(b"cat", b"\xff"), told(b"cat", b"\xff"), EXACT) == ""
    assert replies(told(b"cat", b"a"), told(b"cat", b"dog"), Rule()) == "output 's'[1]: 'a' against 'dog'"
