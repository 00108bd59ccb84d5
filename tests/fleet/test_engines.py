"""Engines by name: added, changed, removed, found again at the start; and nodes that a site closes itself.

The kind is Slurm's by its options; what is built is a simulated fleet, which needs no site.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from penstock.base.errors import Conflict, InvalidInput, NotFound, PenstockError
from penstock.base.resource import Actor
from penstock.base.routes import Call, Endpoint
from penstock.engines import kinds
from penstock.engines.adding import Finding, Probed, Stored, Verdict
from penstock.engines.errors import Unreachable
from penstock.engines.several import Engines
from penstock.engines.simulated.engine import SimulatedEngine
from penstock.engines.simulated.shape import Fleet
from penstock.engines.spec import NodeOffer
from penstock.fleet import engine_commands, engine_routes, inventory, registry, routes
from penstock.fleet.attached import Attached
from penstock.fleet.commands import state
from penstock.store.store import Store
from tests.stores import Clock, opened

SECRET = "eyJhbGciOi.secret.of-the-site"
ADMIN, ANN = Actor("root", "admin"), Actor("ann", "")


class Site(SimulatedEngine):
    """Told of cordons, as a site with its own scheduler is."""

    schedules_itself = True

    def __init__(self, stored: Stored, clock: Callable[[], float]) -> None:
        super().__init__(Fleet(2, 4), clock=clock)
        self.name, self.stored = stored.name, stored
        self.told: list[tuple[str, str | None]] = []

    async def cordon(self, node: str, why: str | None, *, force: bool = False) -> None:
        self.told.append((node, why))


@dataclass
class Kind:
    """``answers``: whether the site does."""

    answers: bool = True
    built: list[Site] = field(default_factory=list)
    probed: list[Stored] = field(default_factory=list)

    def build(self, stored: Stored, clock: Callable[[], float]) -> Site:
        self.built.append(Site(stored, clock))
        return self.built[-1]

    async def probe(self, stored: Stored) -> Probed:
        self.probed.append(stored)
        if not self.answers:
            raise Unreachable("Connection refused")
        return Probed(
            "22.05.8", (Finding("gpus", Verdict.WORKS, "8 x h100"), Finding("quotas", Verdict.NOT, "none", "do"))
        )


@dataclass
class House:
    store: Store
    attached: Attached
    kind: Kind
    changes: list[str]
    clock: Clock

    async def ask(self, method: str, path: str, actor: Actor = ADMIN, **body: Any) -> Any:
        """As the API would, once the door has let it pass."""
        room = routes.Room(self.store, lambda _conn: {}, self.attached.engines, self.sync)
        every: list[Endpoint] = [*engine_routes.endpoints(self.attached), *routes.endpoints(room)]
        for one in every:
            values = _matched(one.path, f"/api/v1/{path}")
            if one.method == method and values is not None:
                checked = one.body.model_validate(body) if one.body else None
                query = one.query.model_validate(body) if one.query else None
                return await one.handler(Call(actor, values, query, checked))
        raise AssertionError(path)

    async def sync(self) -> None:
        """As jobs/ does, of the engine that came last."""
        engine = self.kind.built[-1]
        await self.store.write(lambda tx: inventory.sync(tx, engine.name, engine.nodes()))

    async def events(self) -> list[tuple[str, str]]:
        rows = await self.store.read(
            lambda conn: conn.exec_driver_sql(
                "SELECT reason, message FROM events WHERE kind IN ('Engine', 'Node') ORDER BY seq"
            ).all()
        )
        return [(row[0], row[1]) for row in rows]


def _matched(pattern: str, path: str) -> dict[str, str] | None:
    parts, words = pattern.split("/"), path.split("/")
    if len(parts) != len(words) or any(p != w for p, w in zip(parts, words, strict=True) if not p.startswith("{")):
        return None
    return {p[1:-1]: w for p, w in zip(parts, words, strict=True) if p.startswith("{")}


@asynccontextmanager
async def house(path: Path, kind: Kind | None = None, busy: dict[str, int] | None = None) -> AsyncIterator[House]:
    kind = kind or Kind()
    clock = Clock()
    async with opened(f"sqlite:///{path}/p.db", clock) as store:
        changes: list[str] = []
        engines = Engines(SimulatedEngine(Fleet(1, 0)))
        engines.on_change = changes.append
        attached = Attached(
            store, engines, str(path / "engines"), lambda _conn: busy or {}, lambda _kind: kind, settle_s=0
        )
        await attached.load()
        yield House(store, attached, kind, changes, clock)


def run(path: Path, story: Callable[[House], Awaitable[None]], **more: Any) -> None:
    async def inside() -> None:
        async with house(path, **more) as one:
            await story(one)

    asyncio.run(inside())


async def refused(asked: Awaitable[Any], error: type[PenstockError], words: str) -> PenstockError:
    with pytest.raises(error, match=words) as caught:
        await asked
    return caught.value


def test_an_engine_is_added_found_again_changed_and_removed(tmp_path: Path) -> None:
    async def first(one: House) -> None:
        made = await one.ask("POST", "engines", type="slurm", name="c1", options={"ssh": "ann@login1"}, token=SECRET)
        assert (made["name"], made["type"], made["where"], made["version"]) == (
            "c1",
            "slurm",
            "ann@login1 by ssh",
            "22.05.8",
        )
        assert made["reachable"] and not made["managed"] and made["has_token"]
        assert [finding["verdict"] for finding in made["findings"]] == ["works", "not"]
        assert one.changes == ["c1"] and one.attached.engines.named("c1") is one.kind.built[0]
        await refused(one.ask("POST", "engines", type="slurm", name="c1"), Conflict, "already")
        await refused(one.ask("POST", "engines", type="slurm", name="simulated"), Conflict, "already")
        listed = (await one.ask("GET", "engines"))["items"]
        assert [item["name"] for item in listed] == ["simulated", "c1"]
        assert SECRET not in repr(listed) + repr(await one.events())

    async def then(one: House) -> None:
        assert [engine.name for engine in one.attached.engines] == ["simulated", "c1"]
        assert one.kind.built[0].stored.secret == SECRET and not one.kind.probed
        changed = await one.ask("PUT", "engines/c1", managed=True, options={"partition": "gpu"})
        assert changed["managed"] and changed["options"] == {"ssh": "ann@login1", "partition": "gpu"}
        assert one.attached.engines.named("c1") is one.kind.built[-1] and len(one.kind.built) == 2
        await one.ask("PUT", "engines/c1", options={"partition": None})
        assert one.kind.built[-1].stored.options == {"ssh": "ann@login1"} and one.kind.built[-1].stored.secret == SECRET
        await one.ask("DELETE", "engines/c1")
        assert [engine.name for engine in one.attached.engines] == ["simulated"]
        assert not (tmp_path / "engines/c1").exists()
        assert await one.events() == [
            ("EngineAdded", "slurm, ann@login1 by ssh"),
            ("EngineChanged", "managed from now on; partition: not given -> gpu"),
            ("EngineChanged", "partition: gpu -> not given"),
            ("EngineRemoved", ""),
        ]
        await refused(one.ask("GET", "engines/c1"), NotFound, "c1")

    run(tmp_path, first)
    run(tmp_path, then)


def test_a_node_that_is_left_out_is_told_with_what_sets_it_apart(tmp_path: Path) -> None:
    async def story(one: House) -> None:
        own = one.attached.engines.own
        await one.store.write(lambda tx: inventory.sync(tx, own.name, own.nodes()))
        made = await one.ask("POST", "engines", type="slurm", name="c1")
        site = one.kind.built[0]
        await one.store.write(lambda tx: inventory.sync(tx, "c1", site.nodes(), one.attached.engines.names))
        shared = sorted({offer.name for offer in own.nodes()} & {offer.name for offer in site.nodes()})
        assert len(shared) == 1
        told = [{"node": shared[0], "engine": own.name}]
        assert made["left_out"] == told and made["offered"] == 2  # said by `add` itself
        first, seen = (await one.ask("GET", "engines"))["items"]
        assert (seen["left_out"], seen["nodes"], first["left_out"]) == (told, 1, [])
        assert (engine_commands.count(seen), engine_commands.count(first)) == ("1 of 2", "1")
        lines = [line.split(":", 1)[1].strip() for line in engine_commands.page(seen) if line.startswith("Left out")]
        assert lines == [f"{shared[0]}: engine {own.name} has a node of this name"]
        assert f"{'':14}`penstock engines set c1 --node-prefix c1-` sets them apart" in engine_commands.page(seen)
        many = seen | {"left_out": [{"node": f"n{n:02}", "engine": "c0"} for n in range(10)], "offered": 12}
        assert engine_commands.missing(many)[0].endswith("n07 and 2 more: engine c0 has nodes of these names")

    run(tmp_path, story)


def test_a_token_is_in_a_file_of_the_servers_own_user_and_nowhere_else(tmp_path: Path) -> None:
    async def story(one: House) -> None:
        await one.ask("POST", "engines", type="slurm", name="c1", token=SECRET)
        path = tmp_path / "engines/c1/token"
        assert path.read_text() == SECRET and stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(path.parent).st_mode) == 0o700
        await one.ask("PUT", "engines/c1", token="other")
        assert path.read_text() == "other"

    run(tmp_path, story)
    for file in tmp_path.glob("p.db*"):
        assert SECRET.encode() not in file.read_bytes()


def test_a_site_that_does_not_answer_is_added_only_with_force(tmp_path: Path) -> None:
    async def story(one: House) -> None:
        error = await refused(one.ask("POST", "engines", type="slurm", name="c1"), Conflict, "Connection refused")
        assert "--force" in error.advice
        assert not one.kind.built and (await one.ask("GET", "engines"))["items"][1:] == []
        made = await one.ask("POST", "engines", type="slurm", name="c1", force=True)
        assert made["version"] == "" and made["findings"] == [] and made["probed_at"] is None
        one.kind.built[0].unknown_since = 1_700_000_000.0
        seen = await one.ask("GET", "engines/c1")
        assert not seen["reachable"] and seen["unknown_since"] == "2023-11-14T22:13:20.000Z"
        assert engine_commands.reach(seen) == "unknown since 2023-11-14T22:13:20.000Z"
        one.kind.answers = True
        assert (await one.ask("POST", "engines/c1/probe"))["findings"]
        one.kind.answers = False
        await refused(one.ask("PUT", "engines/c1", managed=True), Conflict, "Connection refused")
        forced = await one.ask("PUT", "engines/c1", managed=True, force=True)
        assert forced["managed"] and forced["findings"] == [] and forced["version"] == "22.05.8"

    run(tmp_path, story, kind=Kind(answers=False))


def test_a_probe_changes_nothing(tmp_path: Path) -> None:
    async def story(one: House) -> None:
        found = await one.ask("POST", "engines/probe", type="slurm", options={"ssh": "h"})
        assert found["version"] == "22.05.8" and found["where"] == "h by ssh"
        assert not one.kind.built and await one.events() == [] and not (tmp_path / "engines").exists()
        assert engine_commands.told(found["findings"]) == ["+ gpus: 8 x h100", "- quotas: none", "    do"]

    run(tmp_path, story)


def test_an_engine_with_jobs_stays_unless_forced(tmp_path: Path) -> None:
    async def story(one: House) -> None:
        await one.ask("POST", "engines", type="slurm", name="c1")
        await refused(one.ask("DELETE", "engines/c1"), Conflict, "3 attempts of jobs on 'c1' have not ended")
        await one.ask("DELETE", "engines/c1", force=True)
        assert (await one.events())[-1] == ("EngineRemoved", "with 3 attempts that had not ended")

    run(tmp_path, story, busy={"c1": 3})


def test_who_sees_what(tmp_path: Path) -> None:
    async def story(one: House) -> None:
        await one.ask("POST", "engines", type="slurm", name="c1", options={"ssh": "root@login1"}, token=SECRET)
        (_, seen) = (await one.ask("GET", "engines", ANN))["items"]
        assert seen["findings"] and seen["version"] and "login1" not in repr(seen) and "options" not in seen

    run(tmp_path, story)


@pytest.mark.parametrize(
    "options",
    [
        {"ssh": "-oProxyCommand=touch x"},
        {"ssh": "a b"},
        {"ssh": "h;id"},
        {"rest": "file:///etc/passwd"},
        {"folder": "relative"},
        {"folder": "/a/../b"},
        {"folder": "~root/x"},
        {"folder": "/a\nb"},
        {"slurm_conf": "slurm.conf"},
        {"ssh_config": "config"},
        {"shared": "yes"},
        {"partition": ""},
        {"options": {"wrap": "id"}},
        {"options": {"Account": "x"}},
        {"options": {"account": "a\nb"}},
        {"options": ["account"]},
        {"nonsense": "1"},
    ],
)
def test_options_that_cannot_be(tmp_path: Path, options: dict[str, Any]) -> None:
    async def story(one: House) -> None:
        tried: tuple[tuple[str, dict[str, Any]], ...] = (
            ("engines/probe", {}),
            ("engines", {"name": "c1", "force": True}),
        )
        for path, more in tried:
            body = one.ask("POST", path, type="slurm", options=options, **more)
            if options == {"options": ["account"]}:
                with pytest.raises(ValueError, match="options"):
                    await body
            else:
                error = await refused(body, InvalidInput, "slurm")
                assert error.details and all(problem.path.startswith("options.") for problem in error.details)
        assert not one.kind.probed and not one.kind.built

    run(tmp_path, story)


def test_kinds_are_found_by_name() -> None:
    assert "local" not in kinds.names()
    for kind in [*kinds.names(), "slurm"]:
        assert {option.form for option in kinds.options(kind)} <= {"text", "switch", "pairs"}
        assert len({option.flag for option in kinds.options(kind)}) == len(kinds.options(kind))
    with pytest.raises(InvalidInput, match="no kind"):
        kinds.options("../local")


# -- nodes


async def with_site(one: House, *, managed: bool) -> Site:
    await one.ask("POST", "engines", type="slurm", name="c1", managed=managed)
    await one.sync()
    return one.kind.built[-1]


def test_a_node_of_a_site_that_is_only_read_is_left_alone(tmp_path: Path) -> None:
    async def story(one: House) -> None:
        site = await with_site(one, managed=False)
        for verb in ("cordon", "drain", "uncordon"):
            error = await refused(one.ask("POST", f"nodes/node-0/{verb}"), Conflict, "only reads")
            assert "penstock engines set c1 --manage" in error.advice
        assert site.told == []

    run(tmp_path, story)


def test_cordon_reaches_the_site_first(tmp_path: Path) -> None:
    async def story(one: House) -> None:
        site = await with_site(one, managed=True)
        node = await one.ask("POST", "nodes/node-0/cordon", reason="bad DIMM")
        assert node["cordoned"] and site.told == [("node-0", "bad DIMM (root)")]
        node = await one.ask("POST", "nodes/node-0/uncordon")
        assert not node["cordoned"] and site.told[1:] == [("node-0", None)]
        node = await one.ask("POST", "nodes/node-1/drain")
        assert node["draining"] and site.told[2:] == [("node-1", "by root")]

    run(tmp_path, story)


CLOSED = "drained in Slurm by root at 2026-11-25T19:01:56.000Z: bad DIMM"


async def offer(one: House, change: Callable[[NodeOffer], NodeOffer]) -> dict[str, Any]:
    """What the engine says of node-0 now; the node then."""
    offers = [change(each) if each.name == "node-0" else each for each in one.kind.built[-1].nodes()]
    await one.store.write(lambda tx: inventory.sync(tx, "c1", offers))
    found: dict[str, Any] = await one.ask("GET", "nodes/node-0")
    return found


def test_a_node_that_the_site_closed_is_shown_with_its_words_and_stays_closed(tmp_path: Path) -> None:
    async def story(one: House) -> None:
        site = await with_site(one, managed=True)
        node = await offer(one, lambda each: replace(each, closed=CLOSED))
        assert node["closed"] == CLOSED and node["message"] == CLOSED and not node["cordoned"] and node["ready"]
        assert state(node) == "Drained"
        row = await one.store.read(lambda conn: inventory.get(conn, "node-0"))
        assert inventory.closed_because(row) == CLOSED
        error = await refused(one.ask("POST", "nodes/node-0/uncordon"), Conflict, "bad DIMM")
        assert "--force" in error.advice and site.told == []
        glance = await one.ask("GET", "fleet")
        assert glance["items"][0]["state"] == "cordoned"
        node = await one.ask("POST", "nodes/node-0/uncordon", force=True, reason="it is mended")
        assert node["closed"] == "" and site.told == [("node-0", None)]
        assert (await one.events())[-1] == ("Uncordoned", "it is mended")
        await offer(one, lambda each: replace(each, closed=CLOSED))
        node = await offer(one, lambda each: each)
        assert node["message"] == f"opened again by its site: it was {CLOSED}"

    run(tmp_path, story)


def test_what_people_said_of_a_node_outlives_what_its_site_says(tmp_path: Path) -> None:
    async def story(one: House) -> None:
        await with_site(one, managed=True)
        await one.ask("POST", "nodes/node-0/cordon", reason="mine")
        node = await offer(one, lambda each: replace(each, closed=CLOSED, cordoned=True))
        assert (node["reason"], node["message"]) == ("Cordoned", f"mine; {CLOSED}")
        assert state(node) == "Cordoned"

    run(tmp_path, story)


def test_the_site_has_the_last_word_on_whether_a_cordon_holds(tmp_path: Path) -> None:
    async def story(one: House) -> None:
        await with_site(one, managed=True)
        await one.ask("POST", "nodes/node-0/cordon", reason="mine")
        node = await offer(one, lambda each: replace(each, cordoned=False))
        assert node["cordoned"]  # what was asked a moment ago may not have been seen yet
        one.clock.now += 2 * inventory.SETTLED_S
        node = await offer(one, lambda each: replace(each, cordoned=False))
        assert not node["cordoned"] and node["message"] == "opened again by its site, not by Penstock"
        one.clock.now += 2 * inventory.SETTLED_S
        node = await offer(one, lambda each: replace(each, cordoned=True))
        assert node["cordoned"]

    run(tmp_path, story)


def test_a_node_of_an_engine_that_went_cannot_be_changed(tmp_path: Path) -> None:
    async def story(one: House) -> None:
        await with_site(one, managed=True)
        one.attached.engines.remove("c1")
        await refused(one.ask("POST", "nodes/node-0/cordon"), Conflict, "not there")
        assert await one.store.read(lambda conn: registry.managed(conn, "c1"))

    run(tmp_path, story)
