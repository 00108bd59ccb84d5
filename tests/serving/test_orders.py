"""Orders come back as they were written, and half a file is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.gateway.spec import Backend
from penstock.serving.orders import Folder, Function, Orders, Shadow

backends = st.builds(Backend, st.text(max_size=9), st.just("127.0.0.1"), st.integers(1, 65535), st.integers(0, 65535))
functions = st.builds(Function, st.text(), st.text(), st.text(), st.none() | st.tuples(st.integers(), st.integers()))
shadows = st.builds(Shadow, st.integers(1, 9), st.integers(1, 9), function=st.none() | functions)
orders = st.builds(
    Orders,
    st.just("default"),
    st.just("digits"),
    st.dictionaries(st.integers(1, 99), st.lists(backends, max_size=3).map(tuple), max_size=3),
    hold_time=st.floats(0, 100),
    shadow=st.none() | shadows,
)


@given(orders)
def test_as_written(one: Orders) -> None:
    assert Orders.from_json(one.to_json()) == one


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":1}', '{"format":1,"versions":[]}', "nul"])
def test_anything_else_is_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no orders|Expecting"):
        Orders.from_json(text)
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "s.json").write_text(text)
    assert Folder(tmp_path).get("p", "s") is None


def test_a_folder_tells_that_they_changed(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "orders")
    assert folder.stamp("p", "s") is None
    folder.put(Orders("p", "s"))
    first = folder.stamp("p", "s")
    folder.put(Orders("p", "s", {1: (Backend("r", "127.0.0.1", 80),)}))
    assert folder.stamp("p", "s") != first
    found = folder.get("p", "s")
    assert found is not None
    assert found.versions[1][0].port == 80
    assert list(folder.names()) == [("p", "s")]
    folder.drop("p", "s")
    assert folder.get("p", "s") is None
