"""Parsing is total: of any bytes it makes tensors that hold what shape and type say, or a refusal with a message."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.runtimes.onnx import rest
from penstock.serving.runtimes.onnx.errors import Refused
from penstock.serving.runtimes.onnx.exchange import Reader, aligned, pack
from penstock.serving.runtimes.onnx.plan import BACKOFF_MOST, Policy, backoff, take
from penstock.serving.runtimes.onnx.tensors import (
    DTYPES,
    SIZES,
    Tensor,
    TensorSpec,
    check_content,
    elements,
    from_numbers,
    join,
    rows_of,
    to_json,
)
from penstock.serving.runtimes.onnx.version import Limits, Version

INPUTS = (TensorSpec("x", "FP32", (-1, 4)), TensorSpec("n", "INT8", (-1,)), TensorSpec("t", "BYTES", (-1, 1)))
OUTPUTS = (TensorSpec("y", "FP32", (-1, 4)),)


def version(inputs: tuple[TensorSpec, ...] = INPUTS) -> Version:
    made = SimpleNamespace(inputs=inputs, outputs=OUTPUTS, label="m version 1", name="m", version="1", limits=Limits())
    made.check_outputs = lambda wanted: Version.check_outputs(cast(Version, made), wanted)
    return cast(Version, made)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["x", "n", "t", "FP32", "BYTES"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "n", "t"]) | ODD,
        "datatype": st.sampled_from([*DTYPES, "BYTES", "BF16"]) | ODD,
        "shape": st.lists(st.integers(-2, 6), max_size=3) | ODD,
        "data": st.lists(st.integers(-200, 200) | st.floats(), max_size=12) | ODD,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 40) | ODD}) | ODD,
    },
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(ENTRY, max_size=4) | ODD},
    optional={"outputs": st.lists(ENTRY, max_size=2) | ODD, "parameters": ODD, "id": ODD},
)


def holds(asked: rest.Asked, spoken: Version) -> None:
    assert [tensor.name for tensor in asked.tensors] == [spec.name for spec in spoken.inputs]
    for tensor, spec in zip(asked.tensors, spoken.inputs, strict=True):
        assert tensor.datatype == spec.datatype
        assert len(tensor.shape) == len(spec.shape)
        check_content(tensor.datatype, tensor.shape, tensor.content, "")


@given(REQUEST, st.binary(max_size=60), st.none() | st.integers(0, 400))
def test_any_request_is_parsed_or_refused(request: Any, more: bytes, cut: int | None) -> None:
    body = json.dumps(request).encode()
    length = None if cut is None else min(cut, len(body)) if cut % 3 else len(body)
    spoken = version()
    try:
        asked = rest.parse(body + (more if length is not None else b""), length, spoken)
    except Refused as error:
        refused = error
    else:
        holds(asked, spoken)
        return
    assert 400 <= refused.status < 500
    assert refused.message


@given(st.binary(max_size=300), st.none() | st.integers(0, 400))
def test_any_bytes_are_parsed_or_refused(body: bytes, length: int | None) -> None:
    with pytest.raises(Refused) as caught:
        rest.parse(body, length, version())
    assert caught.value.status == 400


@given(st.sampled_from(sorted(DTYPES)), st.integers(0, 5), st.integers(0, 4), st.data())
def test_what_comes_as_binary_goes_out_the_same(datatype: str, rows: int, width: int, data: st.DataObject) -> None:
    size = rows * width * SIZES[datatype]
    content = data.draw(st.binary(min_size=size, max_size=size))
    spec = TensorSpec("x", datatype, (-1, -1))
    entry = {"name": "x", "datatype": datatype, "shape": [rows, width], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [entry]}).encode()
    (tensor,) = rest.parse(head + content, len(head), version((spec,))).tensors
    assert bytes(tensor.content) == content


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_numbers_survive_json(values: list[float]) -> None:
    tensor = Tensor("x", "FP32", (len(values),), from_numbers("FP32", values, "x"))
    assert np.asarray(to_json(tensor)).tolist() == values


@given(st.lists(st.binary(max_size=9), max_size=12))
def test_words_survive(words: list[bytes]) -> None:
    content = join(words)
    assert [bytes(part) for part in elements(content, "t")] == words


@given(st.lists(st.lists(st.binary(max_size=5), min_size=1, max_size=3), min_size=1, max_size=5))
def test_a_batch_of_words_is_cut_where_it_was_joined(requests: list[list[bytes]]) -> None:
    whole = Tensor("t", "BYTES", (sum(map(len, requests)), 1), b"".join(map(join, requests)))
    cut = rows_of(whole, [len(one) for one in requests])
    assert [bytes(one.content) for one in cut] == [join(one) for one in requests]
    assert [one.shape for one in cut] == [(len(one), 1) for one in requests]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.integers(0, 3))
def test_a_batch_of_numbers_is_cut_where_it_was_joined(sizes: list[int], width: int) -> None:
    parts = [np.full((size, width), place, "<i4") for place, size in enumerate(sizes)]
    whole = Tensor("t", "INT32", (sum(sizes), width), np.concatenate(parts).tobytes())
    assert [bytes(one.content) for one in rows_of(whole, sizes)] == [part.tobytes() for part in parts]


@given(st.lists(st.dictionaries(st.text(max_size=4), st.integers(), max_size=3), max_size=6), st.integers(1, 7))
def test_messages_survive_any_pieces(messages: list[dict[str, Any]], step: int) -> None:
    stream, reader, found = b"".join(map(pack, messages)), Reader(), []
    for at in range(0, len(stream), step):
        found += reader.feed(stream[at : at + step])
    assert found == messages


@given(st.lists(st.integers(0, 500), max_size=8))
def test_pieces_in_shared_memory_do_not_overlap(sizes: list[int]) -> None:
    offsets, end = aligned(sizes)
    ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
    assert all(before <= after for before, after in zip(ends, [*offsets[1:], end], strict=False))


POLICIES = st.builds(
    lambda most, preferred, delay: Policy(most, tuple(sorted(one for one in preferred if one <= most)), delay),
    st.integers(1, 64),
    st.sets(st.integers(1, 64), max_size=4),
    st.sampled_from([0.0, 0.01]),
)


@given(st.lists(st.integers(1, 9), max_size=40), POLICIES, st.floats(0, 0.1))
def test_a_batch_is_of_the_oldest_and_bounded(rows: list[int], policy: Policy, waited: float) -> None:
    count = take(rows, policy, waited)
    assert 0 <= count <= len(rows)
    assert count <= 1 or sum(rows[:count]) <= policy.most
    if rows and (policy.delay == 0 or waited >= policy.delay):
        assert count >= 1  # work-conserving: who waits, runs
    if count == 0 and rows:
        assert sum(rows) < policy.enough  # only too few wait


@given(st.integers(1, 10_000))
def test_back_off_grows_and_is_bounded(crashes: int) -> None:
    assert 0 < backoff(crashes) <= backoff(crashes + 1) <= BACKOFF_MOST
