"""Inference services in the YAML that ``penstock apply`` takes, beside jobs: all of it or none."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from penstock.base.errors import InvalidInput, Problem
from penstock.base.resource import Actor
from penstock.serving import models, routes
from penstock.serving.spec import ServiceDocument, ServiceSpec
from penstock.store.store import Tx

if TYPE_CHECKING:
    from penstock.serving.room import Serving


class Documents:
    """What the jobs' room asks of another kind (jobs/room.py: Beside)."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def model(self) -> type[ServiceDocument]:
        return ServiceDocument

    def allowed(self, actor: Actor, documents: Sequence[ServiceDocument]) -> None:
        routes.allowed(actor, documents)

    def with_carried(self, documents: Sequence[ServiceDocument], snapshots: Mapping[str, str]) -> list[ServiceDocument]:
        """A model that the client carried along lies in its snapshot under its own name."""
        return [_carried(one, snapshots) for one in documents]

    async def look(self, actor: Actor, documents: Sequence[ServiceDocument]) -> None:
        problems = [
            problem
            for document in documents
            for problem in await models.problems(self._serving, actor, document, f"{document.name}: spec")
        ]
        if problems:
            raise InvalidInput("nothing was applied", details=problems)

    def foresee(self, conn: Connection, actor: Actor, documents: Sequence[ServiceDocument]) -> list[dict[str, Any]]:
        """A model that is to be carried is named as ``carry``: what is wrong with the rest is told now."""
        problems: list[Problem] = []
        items = []
        for document in documents:
            carry = to_carry(document.spec)
            found = routes.check(self._serving, conn, actor, document, f"{document.name}: spec")
            problems += [one for one in found if not (carry and one.path == f"{document.name}: spec.model")]
            items.append(routes.foresee(conn, document) | ({"carry": carry} if carry else {}))
        if problems:
            raise InvalidInput("nothing would be applied", details=problems)
        return items

    def carry_out(self, tx: Tx, actor: Actor, documents: Sequence[ServiceDocument]) -> list[dict[str, Any]]:
        return routes.apply(self._serving, tx, actor, documents)


def to_carry(spec: ServiceSpec) -> str | None:
    """A relative path means something only to whoever sends the file along."""
    return spec.model if spec.model is not None and spec.snapshot is None and not spec.model.startswith("/") else None


def _carried(document: ServiceDocument, snapshots: Mapping[str, str]) -> ServiceDocument:
    path = to_carry(document.spec)
    digest = snapshots.get(path) if path is not None else None
    if path is None or not digest:
        return document
    name = posixpath.basename(posixpath.normpath(path))
    spec = document.spec.model_dump(exclude_defaults=True) | {"model": name, "snapshot": digest}
    return document.model_copy(update={"spec": ServiceSpec.model_validate(spec)})
