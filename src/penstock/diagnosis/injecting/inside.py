"""Faults inside the script: the training does them itself, as it is told by a file (worker/faults.py). They need no root."""

from __future__ import annotations

import secrets
from typing import Any, Final

from penstock.base.errors import Conflict
from penstock.diagnosis.injecting.notes import Note, read_hook, write_hook
from penstock.diagnosis.injecting.spec import HOOK, Fault, Order, Strength

_ONCE: Final = Strength(1, 1, 1, "")
_LONG: Final = Strength(600, 600, 600, "s")


def _fault(name: str, cause: str, layer: str, words: str, strength: Strength, **more: Any) -> Fault:
    return Fault(name, cause, layer, words, strength, frozenset({HOOK}), **{"inside": name, **more})


_DELAY: Final = Strength(0.03, 0.02, 0.06, "s a step")
FAULTS: Final = (
    _fault("slow-loader", "data_loader_one_rank", "input", "the rank's batches come late", _DELAY),
    _fault("slow-loaders", "data_loader_bound", "input", "every rank's batches come late", _DELAY, inside="slow-loader", everywhere=True),
    _fault("slow-compute", "slow_compute_rank", "collective", "the rank computes longer", _DELAY),
    _fault("imbalance", "seq_imbalance", "workload", "the rank is given so many times the rows", Strength(5, 3, 6, "times")),
    _fault("garbage", "gc_pause", "software", "Python's collector runs each step over a large heap", Strength(1, 0.6, 1.5, "times 300,000 objects")),
    _fault("held-lock", "gil_lock", "software", "a thread keeps Python's lock", _LONG, ends_job=True),
    _fault("leak", "memory_leak", "host", "memory is kept each step", Strength(4, 2, 6, "MiB a step")),
    _fault("descriptors", "pid_fd_limit", "host", "files are opened and kept each step", Strength(64, 32, 128, "a step"), ends_job=True),
    _fault("hang", "collective_hang", "collective", "the rank does not enter a collective for so long", _LONG, ends_job=True),
    _fault("wrong-collective", "collective_mismatch", "software", "the rank enters another collective than its peers", _ONCE, ends_job=True),
    _fault("infinite-gradient", "nan_loss", "numerics", "a gradient of the rank is infinite", _ONCE),
    _fault("poisoned-batch", "loss_spike", "numerics", "one batch is far out of the rest", Strength(1, 0.7, 1.5, "times 10"), everywhere=True),
    _fault("bit-flip", "sdc", "numerics", "one exponent bit of a weight of the rank is flipped", _ONCE),
    _fault("desync", "param_desync", "software", "the rank's weights are not those of its peers, from the first step on", Strength(0.01, 0.005, 0.02, "of a weight")),
    _fault("float64", "tf32_amp_off", "config", "the model computes in double precision", _ONCE, everywhere=True),
    _fault("anomaly", "debug_flags_on", "config", "torch's anomaly detection is on", _ONCE, everywhere=True),
    _fault("recompile", "recompile", "software", "a function is compiled anew each step", _ONCE),
    _fault("small-batch", "gpu_low_util_launch_bound", "software", "batches of so few rows that starting operations costs most", Strength(1, 1, 2, "rows"), everywhere=True),
    _fault("crash", "restart_loop", "job", "each life fails at the same step", _ONCE, ends_job=True),
    _fault("illegal-access", "gpu_app_fault", "software", "the rank's program reads where it may not", _ONCE, ends_job=True),
)  # fmt: skip


def hook(order: Order, note: Note) -> None:
    """Written for every file that a chosen rank reads: ranks of one job share one."""
    files = {target.hook for target in order.targets}
    if "" in files:
        raise Conflict(
            "this training has not opted in to faults inside it", hint="Set PENSTOCK_INJECT in the job's env to a file."
        )
    ranks = None if order.fault.everywhere else sorted(target.rank for target in order.targets)
    for path in sorted(files):
        key = f"{note.id}-{secrets.token_hex(2)}"
        note.will("unhook", path, key)
        said = {
            "key": key,
            "fault": order.fault.inside,
            "ranks": ranks,
            "strength": order.strength,
            "until": order.until,
        }
        write_hook(path, [*read_hook(path), said])


ACTS = dict.fromkeys(FAULTS, hook)
