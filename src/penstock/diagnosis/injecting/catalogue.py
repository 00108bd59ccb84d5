"""Every fault by its name, and how it is done. A new one goes into the file of its layer, and is found here by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from penstock.base.errors import InvalidInput
from penstock.diagnosis.injecting import cpu, inside, kernel, network, processes, storage
from penstock.diagnosis.injecting.notes import Note
from penstock.diagnosis.injecting.spec import Fault, Order

ACTS: Final[dict[Fault, Callable[[Order, Note], None]]] = {
    **cpu.ACTS,
    **processes.ACTS,
    **network.ACTS,
    **storage.ACTS,
    **inside.ACTS,
    **kernel.ACTS,
}
FAULTS: Final[dict[str, Fault]] = {fault.name: fault for fault in ACTS}


def named(name: str) -> Fault:
    """By its own name or its cause's; the first of a cause's."""
    fault = FAULTS.get(name) or next((fault for fault in ACTS if fault.cause == name), None)
    if fault is None:
        raise InvalidInput(f"there is no fault {name!r}", hint="`penstock inject --list` shows them.")
    return fault
