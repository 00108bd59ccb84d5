"""What an agent sends is what the server reads; what is no push is refused by name, whatever it is."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput
from penstock.telemetry.push import (
    MAX_FINDINGS,
    MAX_ROWS,
    MAX_SERIES,
    Answer,
    Push,
    Row,
    Series,
    decode,
    decode_answer,
    digest,
    encode,
    encode_answer,
)
from penstock.telemetry.spec import Finding, Severity

SERIES = (
    Series("penstock_node_load1", (), "gauge"),
    Series("penstock_gpu_power_watts", (("gpu", "0"), ("uuid", "GPU-1")), "gauge"),
    Series("penstock_node_network_receive_bytes_total", (("device", "eth0"),), "counter"),
)
FINDING = Finding(
    "Xid",
    "n0",
    100.25,
    99.5,
    "the GPU has fallen off the bus",
    Severity.CRITICAL,
    "0000:1b:00",
    "79",
    2,
    "kmsg",
    evidence=("NVRM: Xid (PCI:0000:1b:00): 79",),
    facts={"pid": 7.0, "comm": "python"},
)
PUSH = Push(
    "n0",
    "b0",
    "r0",
    7,
    100.5,
    digest(SERIES),
    SERIES,
    (Row(100.0, (0.5, 401.25, 2**52 + 1)), Row(110.0, (None, 400.0, 3))),
    (FINDING,),
    (("host", ""), ("nvml", "no answer in 5 s")),
    "1.0",
)


def test_what_is_sent_is_read() -> None:
    assert decode(encode(PUSH)) == PUSH
    later = replace(PUSH, series=None)
    assert decode(encode(later)) == later
    assert decode_answer(json.dumps(encode_answer(Answer(7, series_wanted=True))).encode()) == Answer(7, True)


@given(st.lists(st.one_of(st.none(), st.floats()), max_size=20), st.floats(0, 4e9))
def test_any_number_survives_or_is_left_out(values: list[float | None], at: float) -> None:
    read = decode(encode(replace(PUSH, series=None, rows=(Row(at, tuple(values)),)))).rows[0]
    for sent, got in zip(values, read.values, strict=True):
        if sent is None or not math.isfinite(sent):
            assert got is None
        else:
            assert got is not None and math.isclose(got, sent, rel_tol=1e-5)


def test_a_push_of_eight_gpus_is_small() -> None:
    names = tuple(Series(f"m{i}", (("gpu", str(i % 8)),)) for i in range(300))
    body = encode(
        replace(PUSH, series=None, rows=(Row(1e9, tuple(i * 1.37 for i in range(300))),), digest=digest(names))
    )
    assert len(body) < 4096


def broken(**changes: Any) -> bytes:
    body = {**json.loads(encode(PUSH)), **changes}
    return json.dumps({name: value for name, value in body.items() if value != "LEFT OUT"}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b"\x80\x04",
        broken(format=2),
        broken(node=""),
        broken(node="LEFT OUT"),
        broken(node="n" * 5000),
        broken(sequence=-1),
        broken(sequence=1e300),
        broken(sequence=True),
        broken(at="now"),
        broken(rows=[[1.0, float("nan"), 1, 1]]),
        broken(rows=[[1.0, "1", 1, 1]]),
        broken(rows=[[1.0, True, 1, 1]]),
        broken(rows=[[1.0, 1]]),
        broken(rows=[[]]),
        broken(rows=[[1.0, 1, 2, 3]] * (MAX_ROWS + 1)),
        broken(series=[["m", {}, "gauge"]] * (MAX_SERIES + 1)),
        broken(series=[["m", {}, "gauge"]]),
        broken(findings=[{}]),
        broken(findings=[None] * (MAX_FINDINGS + 1)),
        broken(findings=[{**json.loads(encode(PUSH))["findings"][0], "severity": "fatal"}]),
        broken(findings=[{**json.loads(encode(PUSH))["findings"][0], "facts": {"x": None}}]),
    ],
)
def test_what_is_no_push_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode(body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_in_any_place_is_read_or_refused(value: object) -> None:
    for key in json.loads(encode(PUSH)):
        try:
            decode(broken(**{key: value}))
        except InvalidInput:
            pass
