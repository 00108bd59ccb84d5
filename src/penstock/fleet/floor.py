"""The whole fleet at a glance: one letter for each GPU, so that thousands of nodes fit one answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy.engine import Connection, Row

from penstock.fleet import inventory
from penstock.fleet.labels import topology

# What a GPU does: held by a job; held, but idle; free; free on a cordoned node; gone with its node.
HELD, IDLE, FREE, CORDONED, LOST = "hifcl"
WORDS = {HELD: "held", IDLE: "idle", FREE: "free", CORDONED: "cordoned", LOST: "lost"}


def floor(
    conn: Connection, usage: Mapping[str, Mapping[str, Any]], idle: Collection[tuple[str, str]]
) -> dict[str, Any]:
    """``idle``: (node, GPU) of those that a job holds and does nothing with."""
    items, gpus, nodes = [], Counter[str](), Counter[str]()
    for row in inventory.all_nodes(conn):
        used = usage.get(row.name, {})
        cells = _cells(row, frozenset(used.get("gpus", ())), idle)
        gpus.update(cells)
        state = _state(row)
        nodes[state] += 1
        block, rack = topology(inventory.labels_of(row)) or ("", "")
        items.append(
            {
                "name": row.name,
                "block": block,
                "rack": rack,
                "state": state,
                "cells": cells,
                "jobs": len(used.get("jobs", ())),
            }
        )
    return {
        "nodes": {"all": len(items), **{state: nodes[state] for state in ("ready", "cordoned", "lost")}},
        "gpus": {"all": sum(gpus.values()), **{word: gpus[letter] for letter, word in WORDS.items()}},
        "items": items,
    }


def _state(row: Row[Any]) -> str:
    return "lost" if not row.ready else "cordoned" if row.cordoned or row.closed else "ready"


def _cells(row: Row[Any], held: Collection[str], idle: Collection[tuple[str, str]]) -> str:
    rest = LOST if not row.ready else CORDONED if row.cordoned or row.closed else FREE
    found = []
    for gpu in json.loads(row.gpus):
        taken = gpu["id"] in held and row.ready
        found.append((IDLE if (row.name, gpu["id"]) in idle else HELD) if taken else rest)
    return "".join(found)
