"""Routes that two services ask for, and what a service's status says of the gateway."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.base.errors import Problem, Unavailable
from penstock.base.reasons import Reason
from penstock.base.resource import Actor
from penstock.serving import routes, routing, versions
from penstock.serving.gateway.spec import Gateway, ServiceRoute
from penstock.serving.place import Place
from penstock.serving.spec import ServiceDocument, ServiceSpec
from penstock.serving.traffic import Traffic
from tests.stores import opened

ANN = Actor("ann", "", {"default": "member"})


def document(name: str, *wanted: dict[str, str], project: str = "default") -> ServiceDocument:
    spec: dict[str, Any] = {"runtime": "command", "command": ["serve", "{port}"], "exposed": {"routes": list(wanted)}}
    return ServiceDocument(name=name, project=project, spec=ServiceSpec.model_validate(spec))


async def claimed(path: Path, there: ServiceDocument, wanted: ServiceDocument) -> list[str]:
    async with opened(f"sqlite:///{path}/store.db") as store:
        project = there.project or "default"
        new = versions.NewService(project, there.name, versions.By("ann"), {}, there.spec)
        await store.write(lambda tx: versions.create(tx, new))
        found = await store.read(lambda conn: routes._claimed(conn, ANN, wanted, "spec.exposed.routes"))
        return [f"{one.path} {one.message}" for one in found]


def test_a_route_is_one_services(tmp_path: Path) -> None:
    there = document("one", {"host": "Models.example", "path": "/a/"})
    wanted = document("two", {"path": "/b"}, {"host": "models.example", "path": "/a"})
    [told] = asyncio.run(claimed(tmp_path, there, wanted))
    assert told == "spec.exposed.routes.1 models.example/a is service 'one' of project 'default' already: take another"


def test_what_lies_below_anothers_own_path_is_that_ones(tmp_path: Path) -> None:
    [told] = asyncio.run(claimed(tmp_path, document("one"), document("two", {"path": "/default/one/v2"})))
    assert "service 'one'" in told


def test_who_may_not_read_the_other_is_not_told_its_name(tmp_path: Path) -> None:
    there = document("secret", {"path": "/a"}, project="other")
    [told] = asyncio.run(claimed(tmp_path, there, document("two", {"path": "/a"})))
    assert "secret" not in told


def test_a_service_may_ask_for_its_own_again(tmp_path: Path) -> None:
    there = document("one", {"path": "/a"}, {"path": "/default/one/x"})
    assert asyncio.run(claimed(tmp_path, there, there)) == []


def test_a_gateway_without_its_port_and_a_route_that_is_left_out_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(_words: str) -> None: ...

    async def refused() -> None:
        raise Unavailable("the gateway's port 7071 cannot be had: Address already in use")

    place = Place("127.0.0.1", 7071, str(tmp_path), str(tmp_path), "python")
    traffic = Traffic(place, lambda *_: None, nobody)
    traffic.publisher.left_out = (Problem("services.default/one.matches", "/a is default/two's already"),)
    assert "default/two's" in traffic.problem("default", "one")
    assert traffic.problem("default", "on") == ""
    monkeypatch.setattr(traffic, "start", refused)
    told = Gateway("127.0.0.1", 7071, (ServiceRoute("default", "one", (), ()),))
    with pytest.raises(Unavailable):
        asyncio.run(traffic.publish(told, {}))
    words = traffic.problem("default", "on")
    assert words.startswith("the gateway's port 7071")
    held: Any = SimpleNamespace()
    assert routing.condition(held, (), words) == (Reason.GatewayChanged, f"the gateway: {words}")


def test_a_refused_model_stays_refused_after_the_gateways_problem_is_over(tmp_path: Path) -> None:
    async def told() -> tuple[Any, Any]:
        async with opened(f"sqlite:///{tmp_path}/store.db") as store:
            new = versions.NewService("default", "one", versions.By("ann"), {}, document("one").spec)
            service = await store.write(lambda tx: versions.create(tx, new))
            why = {"failures": 3, "reason": Reason.ModelRefused, "message": "one-v1: it is a pickle"}
            await store.write(lambda tx: versions.set_version(tx, service, 1, **why))
            held: Any = await store.read(lambda conn: versions.held(conn, service))
            return routing.condition(held, (), "its port is taken"), routing.condition(held)

    during, after = asyncio.run(told())
    assert during[0] == Reason.GatewayChanged
    assert after == (Reason.ModelRefused, "version 1: one-v1: it is a pickle")
