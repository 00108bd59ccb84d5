"""Labels of nodes: what may be one, whose word counts, and where a node stands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.base.errors import InvalidInput, NotFound
from penstock.engines.spec import NodeOffer
from penstock.fleet import inventory
from penstock.fleet.labels import BLOCK, RACK, effective, problems, topology, words, written
from penstock.store.store import Store
from tests.stores import opened

KEYS = st.sampled_from(["a", "b", BLOCK, RACK])
VALUES = st.sampled_from(["", "x", "y"])


@given(st.dictionaries(KEYS, VALUES), st.dictionaries(KEYS, VALUES | st.none()))
def test_peoples_word_counts(offered: dict[str, str], said: dict[str, str | None]) -> None:
    found = effective(offered, said)
    for key in offered.keys() | said.keys():
        assert found.get(key) == (said[key] if key in said else offered[key])


@pytest.mark.parametrize(
    ("labels", "path"),
    [
        ({}, ()),
        ({RACK: "r1"}, ("", "r1")),
        ({BLOCK: "b1"}, ("b1", "")),
        ({BLOCK: "b1", RACK: "r1", "disk": "nvme"}, ("b1", "r1")),
    ],
)
def test_where_it_stands(labels: dict[str, str], path: tuple[str, ...]) -> None:
    assert topology(labels) == path


@pytest.mark.parametrize("key", ["a", "topology/rack", "example.com/disk_1.x", "A-b"])
def test_keys(key: str) -> None:
    assert problems({key: "v1.2_3-x", key + "2": None, key + "3": ""}) == []


@pytest.mark.parametrize("key", ["", "/", "a/", "/a", "-a", "a b", "a/b/c", "Ä", "x" * 64, "a\n"])
def test_what_is_no_key(key: str) -> None:
    assert len(problems({key: "v"})) == 1


@pytest.mark.parametrize("value", ["-", "a b", "x" * 64, "ü", "a/b", "a\n"])
def test_what_is_no_value(value: str) -> None:
    assert [problem.path for problem in problems({"key": value})] == ["labels.key"]


def test_the_command_lines_words() -> None:
    changes, names = written(["node-3", "topology/rack=r7", "old-", "node-4", "empty="])
    assert changes == {"topology/rack": "r7", "old": None, "empty": ""}
    assert names == ["node-3", "node-4"]
    assert words(changes) == "empty=, old-, topology/rack=r7"


OFFERS = [NodeOffer(f"node-{n}", 4.0, 1 << 30, labels={RACK: f"r{n}"}) for n in range(3)]


def with_nodes(path: Path, story: Callable[[Store], Any]) -> None:
    async def main() -> None:
        async with opened(f"sqlite:///{path}/p.db") as store:
            await store.write(lambda tx: inventory.sync(tx, "local", OFFERS))
            await story(store)

    asyncio.run(main())


async def labels(store: Store) -> dict[str, dict[str, str]]:
    rows = await store.read(inventory.all_nodes)
    return {row.name: inventory.labels_of(row) for row in rows}


def test_all_of_them_or_none(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        changed = await store.write(
            lambda tx: inventory.label(tx, ["node-0", "node-1"], {BLOCK: "b1", "x": "1"}, actor="ann")
        )
        assert sorted(changed) == ["node-0", "node-1"]
        before = await labels(store)
        assert before["node-0"] == {BLOCK: "b1", RACK: "r0", "x": "1"}
        with pytest.raises(NotFound, match="node-9"):
            await store.write(lambda tx: inventory.label(tx, ["node-2", "node-9"], {"x": "2"}, actor="ann"))
        with pytest.raises(InvalidInput):
            await store.write(lambda tx: inventory.label(tx, ["node-2"], {"x": "2", "-": "no"}, actor="ann"))
        many = {f"k{n}": "" for n in range(64)}
        with pytest.raises(InvalidInput, match="the most"):
            await store.write(lambda tx: inventory.label(tx, ["node-2"], many, actor="ann"))
        assert await labels(store) == before
        again = await store.write(lambda tx: inventory.label(tx, ["node-0", "node-1"], {"x": "1"}, actor="ann"))
        assert again == []

    with_nodes(tmp_path, story)


def test_peoples_word_outlives_what_the_engine_says(tmp_path: Path) -> None:
    async def story(store: Store) -> None:
        await store.write(lambda tx: inventory.label(tx, ["node-0"], {RACK: None, "mine": "1"}, actor="ann"))
        moved = [replace(offer, labels={RACK: "elsewhere"}) for offer in OFFERS]
        assert len(await store.write(lambda tx: inventory.sync(tx, "local", moved))) == 3
        found = await labels(store)
        assert found["node-0"] == {"mine": "1"}
        assert found["node-1"] == {RACK: "elsewhere"}
        await store.write(lambda tx: inventory.label(tx, ["node-0"], {RACK: "elsewhere"}, actor="ann"))
        (row,) = [row for row in await store.read(inventory.all_nodes) if row.name == "node-0"]
        assert json.loads(row.labels) == {"mine": "1"}  # it agrees with the engine: nothing of it is to be kept

    with_nodes(tmp_path, story)
