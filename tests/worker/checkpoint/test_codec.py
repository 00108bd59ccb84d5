"""Plain state survives JSON to the last bit; what is no plain data is refused by its path."""

from __future__ import annotations

import json
import math
import random
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.worker.checkpoint.codec import decode, encode
from penstock.worker.checkpoint.errors import Unencodable

KEYS = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), st.text()))
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner, inner), st.dictionaries(KEYS, inner)),
    max_leaves=20,
)


def through(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value), allow_nan=False)))


@given(PLAIN)
def test_plain_state_comes_back(value: Any) -> None:
    # repr tells True from 1, -0.0 from 0.0 and a tuple from a list, and takes NaN for itself.
    assert repr(through(value)) == repr(value)


def test_a_dictionary_with_a_key_of_ours_comes_back() -> None:
    value = {"$": "tuple", "v": [1]}
    assert through(value) == value


@pytest.mark.parametrize("value", [np.arange(6.0).reshape(2, 3), np.zeros((0, 4), np.int8), np.array(True)])
def test_arrays_come_back(value: Any) -> None:
    found = through(value)
    assert found.dtype == value.dtype
    assert found.shape == value.shape
    assert np.array_equal(found, value)


def test_generators_come_back() -> None:
    numpy_state = np.random.default_rng(3).bit_generator.state
    assert through(numpy_state) == numpy_state
    chance = random.Random(5)
    other = random.Random(6)
    other.setstate(through(chance.getstate()))
    assert other.random() == chance.random()


def test_scalars_of_numpy_come_back() -> None:
    found = through({"a": np.float32(0.1), "b": np.int64(7)})
    assert (found["a"], found["b"]) == (np.float32(0.1), 7)
    assert found["a"].dtype == np.float32
    assert math.isnan(through(float("nan")))
    assert through(OrderedDict(a=1)) == {"a": 1}
    assert through([{1, "b"}, frozenset({2})]) == [{1, "b"}, frozenset({2})]


@pytest.mark.parametrize("value", [object(), lambda: 1, np.array([object()]), range(3), 1j])
def test_what_would_need_pickle_is_refused_by_its_path(value: Any) -> None:
    with pytest.raises(Unencodable, match=r"sampler\.inner\[1\]"):
        encode({"inner": [1, value]}, "sampler")
