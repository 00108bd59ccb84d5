"""Faults that only hardware has, told where hardware tells them: a line in the kernel's own log (``/dev/kmsg``).

What is tried is the way from that line to a finding, a drained node and a diagnosis. The hardware itself is well.
"""

from __future__ import annotations

from typing import Final

from penstock.diagnosis.injecting.notes import Note
from penstock.diagnosis.injecting.spec import Fault, Order, Strength

LOG: Final = "/dev/kmsg"
_GPU: Final = "0000:3b:00"  # the PCI address that the lines name
_ONCE: Final = Strength(1, 1, 1, "times")

# Name, cause, words, line.
_LINES: Final = (
    ("xid-79", "gpu_off_bus", "a GPU falls off the bus", f"NVRM: Xid (PCI:{_GPU}): 79, GPU has fallen off the bus."),
    ("xid-48", "gpu_ecc_dbe", "an uncorrectable memory error", f"NVRM: Xid (PCI:{_GPU}): 48, DBE (double bit error)"),
    ("xid-63", "gpu_row_remap_pending", "a row waits for its remapping", f"NVRM: Xid (PCI:{_GPU}): 63, Row Remapper: New row marked for remapping"),
    ("xid-64", "gpu_row_remap_failed", "no spare row is left", f"NVRM: Xid (PCI:{_GPU}): 64, Row Remapper: Failed to remap row"),
    ("xid-92", "gpu_sbe_rate", "a high rate of corrected errors", f"NVRM: Xid (PCI:{_GPU}): 92, High single-bit ECC error rate"),
    ("xid-119", "gpu_hang_gsp", "the GPU's firmware does not answer", f"NVRM: Xid (PCI:{_GPU}): 119, pid=1, name=python, Timeout after 6s of waiting for RPC response from GPU0 GSP!"),
    ("xid-74", "nvlink_down", "an NVLink error", f"NVRM: Xid (PCI:{_GPU}): 74, NVLink: fatal error detected on link 3"),
    ("aer", "pcie_aer", "corrected errors of the PCIe link", "pcieport 0000:3a:00.0: AER: Corrected error received: 0000:3b:00.0"),
    ("nvme-timeout", "nvme_degraded", "a disk's controller is reset", "nvme nvme0: I/O 512 (I/O Cmd) QID 3 timeout, reset controller"),
    ("soft-lockup", "kernel_soft_lockup", "a core is stuck in the kernel", "watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [python:4242]"),
)  # fmt: skip


def _fault(name: str, cause: str, words: str) -> Fault:
    layer = "storage" if cause == "nvme_degraded" else "host" if cause == "kernel_soft_lockup" else "gpu"
    return Fault(name, cause, layer, f"{words}, as the kernel's log tells it", _ONCE)


TEXTS: Final = {_fault(name, cause, words): line for name, cause, words, line in _LINES}


def tell(order: Order, _note: Note) -> None:
    """A line cannot be taken back: those who read it are told by the ledger that it was a game day's."""
    with open(LOG, "w", encoding="ascii") as log:
        for _ in range(round(order.strength)):
            log.write(f"<2>{TEXTS[order.fault]}\n")
            log.flush()


ACTS = dict.fromkeys(TEXTS, tell)
