"""The engines of one server: its own, on which the scheduling planners place, and those that were added by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from penstock.base.errors import Conflict, NotFound
from penstock.engines.spec import Engine

OWN = frozenset({"local", "simulated"})  # names of engines that a server starts with


@dataclass(slots=True)
class Engines:
    """``own`` is this machine's or a simulated fleet. ``on_change`` is called with the name of one that came, went, or gave
    way to another of its name: whoever hears it starts what is there now, and closes what it had started.
    """

    own: Engine
    on_change: Callable[[str], None] = lambda _name: None
    _added: dict[str, Engine] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Engine]:
        yield self.own
        yield from tuple(self._added.values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(engine.name for engine in self)

    @property
    def added(self) -> bool:
        """Whether there are others than the server's own."""
        return bool(self._added)

    def named(self, name: str | None) -> Engine:
        """The engine of this name; of none: the server's own. Raises NotFound."""
        if not name or name == self.own.name:
            return self.own
        found = self._added.get(name)
        if found is None:
            raise NotFound(f"there is no engine {name!r}", hint="`penstock engines` lists them.")
        return found

    def find(self, name: str | None) -> Engine | None:
        """As ``named``, but None where there is none: an attempt may be of an engine that was removed."""
        return self.own if not name or name == self.own.name else self._added.get(name)

    def add(self, engine: Engine) -> None:
        """Raises Conflict."""
        if engine.name in OWN or engine.name == self.own.name or engine.name in self._added:
            raise Conflict(f"there is an engine {engine.name!r} already")
        self._added[engine.name] = engine
        self.on_change(engine.name)

    def replace(self, engine: Engine) -> None:
        """Offer this one in the place of another of its name: built anew with other settings. Raises NotFound."""
        if self.named(engine.name) is self.own:
            raise Conflict(f"{engine.name!r} is the server's own engine")
        self._added[engine.name] = engine
        self.on_change(engine.name)

    def remove(self, name: str) -> Engine:
        """Offer it no more. Raises NotFound, Conflict for the server's own."""
        if name == self.own.name:
            raise Conflict(f"{name!r} is the server's own engine")
        engine = self.named(name)
        del self._added[name]
        self.on_change(name)
        return engine
