"""What the server holds of this room from its start on: next to nothing, until the first service exists."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from penstock.base.reasons import Reason
from penstock.jobs.room import Room
from penstock.reconcile.loop import Loop
from penstock.serving.place import KIND, Place
from penstock.serving.tables import services
from penstock.store.events import EventRow
from penstock.store.store import Tx

if TYPE_CHECKING:
    from penstock.serving.reconcile import ServiceReconciler


class Serving:
    """``room``: replicas are jobs. ``fence`` is asked inside every transaction of the reconciler."""

    def __init__(self, room: Room, loop: Loop, fence: Callable[[Tx], int], place: Place) -> None:
        self.room = room
        self.loop = loop
        self.fence = fence
        self.place = place
        self._control: ServiceReconciler | None = None
        loop.reconcilers["serving"] = self._take_over
        room.beside[KIND] = _Late(self)
        room.store.listen(self._heard)

    @property
    def control(self) -> ServiceReconciler:
        if self._control is None:
            from penstock.serving.reconcile import ServiceReconciler  # noqa: PLC0415 - costs nothing until a service exists

            self._control = ServiceReconciler(self.room, self.loop, self.fence, self.place)
        return self._control

    @property
    def url(self) -> str:
        """Where callers reach the gateway."""
        host = f"[{self.place.host}]" if ":" in self.place.host else self.place.host
        return f"{'https' if self.place.tls_cert else 'http'}://{host}:{self.place.port}"

    @property
    def loaded(self) -> ServiceReconciler | None:
        """None: no service was ever seen."""
        return self._control

    def begin(self) -> None:
        """From now on it is this server that leads."""
        self.loop.enqueue("serving", "all")

    async def _take_over(self, _key: object) -> None:
        found = await self.room.store.read(lambda conn: conn.execute(select(services.c.id).limit(1)).first())
        if found is not None or self._began():
            await self.control.take_over()

    def _began(self) -> bool:
        """Whether there ever was a gateway here: one may run still, though the last service is gone."""
        return os.path.exists(os.path.join(self.place.folder, "gateway", "bootstrap.json"))

    def _heard(self, events: list[EventRow]) -> None:
        if self._control is not None:
            self._control.heard(events)
        elif any(event.kind == KIND and event.reason == Reason.Created for event in events):
            self.begin()

    def progressed(self, job_id: str) -> None:
        """A job has reported."""
        if self._control is not None:
            self._control.progressed(job_id)

    async def close(self) -> None:
        """The gateway and its like live on: traffic needs no control plane."""
        if self._control is not None:
            await self._control.close()
            await asyncio.sleep(0)


class _Late:
    """Services in a YAML text: loaded when one is in it (jobs/room.py: Beside)."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def __getattr__(self, name: str) -> Any:
        from penstock.serving.apply import Documents  # noqa: PLC0415 - as above

        return getattr(Documents(self._serving), name)
