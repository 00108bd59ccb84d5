"""Keeps the engines that run and those that were added the same: built at the start, added, changed and removed by name.

A row is written first, then the engine is offered (``Engines``, whose ``on_change`` has it started, and ended). An engine whose
site does not answer is offered all the same: it says of itself since when.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy.engine import Connection, Row

from penstock.base.errors import Conflict, EngineFailure, InvalidInput, PenstockError
from penstock.engines import kinds
from penstock.engines.adding import Plugin, Probed, Stored
from penstock.engines.several import Engines
from penstock.fleet import registry
from penstock.store.store import Store

log = logging.getLogger("penstock.engines")
RESERVED = frozenset({"local", "simulated", "probe"})  # the last is a path of the API
Busy = Callable[[Connection], Mapping[str, int]]


def _nobody(_conn: Connection) -> Mapping[str, int]:
    return {}


@dataclass(frozen=True, slots=True)
class Change:
    """``options`` are those that change; None takes one away."""

    options: Mapping[str, Any] = field(default_factory=dict)
    managed: bool | None = None
    secret: str | None = None
    force: bool = False  # though the site does not answer


@dataclass(slots=True)
class Attached:
    """``busy(conn)`` says how many attempts each engine has that have not ended (jobs/ knows)."""

    store: Store
    engines: Engines
    folder: str  # of secrets and of the engines' own files: <data folder>/engines
    busy: Busy = _nobody
    plugins: Callable[[str], Plugin] = kinds.plugin
    url: str | None = None  # where jobs find this server
    settle_s: float = 5.0  # how long whoever adds or changes one waits to hear of its nodes
    _kinds: dict[str, str] = field(default_factory=dict)  # of those on offer
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # one change at a time

    async def load(self, url: str | None = None) -> None:
        """Offer what the rows say, and nothing else: at the start (with this server's URL), and after a restore."""
        self.url = url or self.url
        rows = {row.name: row for row in await self.store.read(registry.all_engines)}
        for name in [name for name in self._kinds if name not in rows]:
            self._withdraw(name)
        for name, row in rows.items():
            if name not in self._kinds:
                try:
                    self._offer(row.kind, self.stored(row))
                except PenstockError as error:  # a kind that this version has no more: the others run
                    log.error("the engine %s cannot be built: %s", name, error)

    async def probe(self, kind: str, stored: Stored) -> Probed:
        """Read-only. Raises InvalidInput for wrong options, Conflict where the site does not answer or refuses."""
        self._check(kind, stored)
        try:
            return await self.plugins(kind).probe(stored)
        except EngineFailure as error:
            raise Conflict(
                f"{kinds.where(kind, stored.options)}: {error.message}",
                hint="Nothing was changed. See that it works by hand there; --force goes on without having asked it.",
            ) from error

    async def add(self, kind: str, stored: Stored, *, actor: str, force: bool = False) -> None:
        """Raises Conflict where the name is taken, or, unless ``force``, the site does not answer or has not what is named."""
        self._check(kind, stored)
        stored = replace(stored, folder=self._own(stored.name), url=self.url)
        async with self._turn:
            rows = await self.store.read(registry.all_engines)
            taken = {engine.name for engine in self.engines} | {row.name for row in rows} | RESERVED
            if stored.name in taken:
                raise Conflict(f"there is an engine {stored.name!r} already", hint="Give it another --name.")
            probed = await self._tried(kind, stored, force=force)
            self._keep(stored)
            await self.store.write(lambda tx: registry.add(tx, kind, stored, probed, actor=actor))
            self._offer(kind, stored)

    async def change(self, name: str, new: Change, *, actor: str) -> None:
        """The engine is built anew; its jobs run on. Raises NotFound; Conflict as ``add``."""
        async with self._turn:
            row = await self.store.read(lambda conn: registry.get(conn, name))
            before = self.stored(row)
            options = {key: value for key, value in {**before.options, **new.options}.items() if value is not None}
            stored = replace(
                before,
                options=options,
                managed=before.managed if new.managed is None else new.managed,
                secret=before.secret if new.secret is None else new.secret,
            )
            self._check(row.kind, stored)
            probed = await self._tried(row.kind, stored, force=new.force)
            self._keep(stored)
            said = new.secret is not None
            same = stored == before and name in self._kinds
            await self.store.write(lambda tx: registry.change(tx, stored, probed, actor=actor, new_secret=said))
            if same:
                return
            if name in self._kinds:
                self.engines.replace(self.plugins(row.kind).build(stored, self.store.clock))
            else:
                self._offer(row.kind, stored)

    async def look(self, name: str) -> None:
        """Probe it again, and keep what was found."""
        row = await self.store.read(lambda conn: registry.get(conn, name))
        probed = await self.probe(row.kind, self.stored(row))
        await self.store.write(lambda tx: registry.note(tx, name, probed))

    async def remove(self, name: str, *, actor: str, force: bool = False) -> None:
        """Raises NotFound; Conflict while jobs of it have not ended, unless ``force``: then they are let go of there."""
        async with self._turn:
            await self._remove(name, actor=actor, force=force)

    async def _remove(self, name: str, *, actor: str, force: bool) -> None:
        await self.store.read(lambda conn: registry.get(conn, name))
        count = (await self.store.read(self.busy)).get(name, 0)
        if count and not force:
            raise Conflict(
                f"{count} attempt{'s' if count > 1 else ''} of jobs on {name!r} {'have' if count > 1 else 'has'} not ended",
                hint="Wait for them or cancel them; with --force they run on there, and Penstock knows no more of them.",
            )
        why = f"with {count} attempts that had not ended" if count else ""
        await self.store.write(lambda tx: registry.remove(tx, name, actor=actor, why=why))
        self._withdraw(name)
        self._forget(name)

    def stored(self, row: Row[Any]) -> Stored:
        name = row.name
        return Stored(name, json.loads(row.options), bool(row.managed), self._secret(name), self._own(name), self.url)

    def unknown_since(self, name: str) -> float | None:
        """Raises NotFound."""
        return self.engines.named(name).unknown_since

    def _check(self, kind: str, stored: Stored) -> None:
        wrong = kinds.problems(kind, stored.options)
        if wrong:
            raise InvalidInput(f"a {kind} engine cannot be added so", details=wrong)

    async def _tried(self, kind: str, stored: Stored, *, force: bool) -> Probed | None:
        try:
            probed = await self.probe(kind, stored)
        except Conflict:
            if force:
                return None
            raise
        wrong = next((one for one in probed.findings if one.wrong), None)
        if wrong is not None and not force:
            raise Conflict(f"{kinds.where(kind, stored.options)}: {wrong.text}", hint=wrong.help)
        return probed

    def _offer(self, kind: str, stored: Stored) -> None:
        os.makedirs(stored.folder, mode=0o700, exist_ok=True)
        self.engines.add(self.plugins(kind).build(stored, self.store.clock))
        self._kinds[stored.name] = kind

    def _withdraw(self, name: str) -> None:
        if self._kinds.pop(name, None) is not None:
            self.engines.remove(name)

    # -- secrets: one file each, for the server's own user alone

    def _own(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _keep(self, stored: Stored) -> None:
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        os.makedirs(stored.folder, mode=0o700, exist_ok=True)
        if stored.secret is None:
            return
        path = os.path.join(stored.folder, "token")
        made = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(made, "w", encoding="utf-8") as file:
            file.write(stored.secret)
        os.replace(f"{path}.new", path)

    def _secret(self, name: str) -> str | None:
        try:
            with open(os.path.join(self._own(name), "token"), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def _forget(self, name: str) -> None:
        shutil.rmtree(self._own(name), ignore_errors=True)
