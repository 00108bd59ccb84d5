"""Faults inside a training, for game days (docs/game-days.md): there only where the job's environment names a file in
``PENSTOCK_INJECT``, and then only what ``penstock inject`` wrote into that file for this rank.

The file is looked at wherever a step is touched (its batch, forward pass, gradient and update: a ``stat`` of some
microseconds each) and read when it changed, so that a fault begins and ends while the training runs. Acts through what torch
offers everybody: hooks of the model and of the optimizer.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import distributed

_HUGE: Final = 10.0  # what a poisoned batch is multiplied with, at strength 1
_NODES: Final = 300_000  # objects that make a collection last some ten milliseconds, at strength 1
_LOOK_S: Final = 0.05  # between looks whether a hang is over
_EXPONENT: Final = 1 << 27  # of a float32: the weight becomes 2^16 times larger or smaller


class Faults:
    """What is broken in this rank at the moment, by name: ``penstock.diagnosis.injecting.inside`` has the names' meanings."""

    def __init__(self, path: str, rank: int) -> None:
        self._path, self._rank = path, rank
        self._seen: tuple[int, int, int] | None = None
        self._told: tuple[dict[str, Any], ...] = ()
        self._kept: list[Any] = []  # what is leaked, and the heap that is collected
        self._done: set[str] = set()
        self._opened: list[int] = []
        self._anomaly: bool | None = None
        self._doubled: list[Any] = []  # layers that compute in double precision
        self._hooks: tuple[Any, ...] = ()
        self._before: Final[dict[str, Callable[[float], None]]] = {
            "slow-compute": self._work,
            "garbage": self._collect,
            "held-lock": self._hold,
            "hang": self._wait,
            "wrong-collective": self._mismatch,
            "recompile": self._compile,
            "crash": self._raise,
            "illegal-access": self._illegal,
        }

    def _now(self) -> dict[str, float]:
        """Fault -> strength, of this rank now."""
        try:
            is_ = os.stat(self._path)
            seen = (is_.st_mtime_ns, is_.st_ino, is_.st_size)
            if seen != self._seen:
                with open(self._path, encoding="utf-8") as file:
                    self._told = tuple(json.load(file)["faults"])
                self._seen = seen
        except (OSError, ValueError, KeyError, TypeError):  # not there (any more), or no words of ours
            self._seen, self._told = None, ()
        at = time.time()
        return {
            str(each["fault"]): float(each["strength"])
            for each in self._told
            if (each.get("ranks") is None or self._rank in each["ranks"]) and at < each.get("until", at + 1)
        }

    # -- where a training is touched ------------------------------------------------------------------

    def arm(self, model: Any, optimizer: Any) -> None:
        """Put the hooks in: what runs before the forward pass, on gradients, around the optimizer's step."""
        self._model = model
        self._hooks = (
            model.register_forward_pre_hook(self._before_forward),
            next(model.parameters()).register_hook(self._on_gradient),
            optimizer.register_step_post_hook(self._after_step),
        )

    def disarm(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def batch(self, batch: Any) -> Any:
        """A batch of the loader, later or other than it was."""
        on = self._now()
        if "slow-loader" in on:
            time.sleep(on["slow-loader"])
        if "descriptors" in on:
            self._opened.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(int(on["descriptors"])))
        if "imbalance" in on:
            batch = _each(batch, lambda tensor: tensor.repeat_interleave(int(on["imbalance"]), 0))
        if "small-batch" in on:
            batch = _each(batch, lambda tensor: tensor[: max(1, int(on["small-batch"]))])
        if "poisoned-batch" in on and self._once("poisoned-batch"):
            batch = _each(batch, lambda tensor: tensor * (_HUGE * on["poisoned-batch"]) if tensor.dim() > 1 else tensor)
        return batch

    def _before_forward(self, _module: Any, _inputs: Any) -> None:
        on = self._now()
        self._flags("anomaly" in on)
        self._precision("float64" in on)
        for name, strength in on.items():
            act = self._before.get(name)
            if act is not None:
                act(strength)

    def _on_gradient(self, gradient: Any) -> Any:
        """Before it is reduced, so that what is not finite reaches every rank."""
        return gradient * float("inf") if "infinite-gradient" in self._now() else gradient

    def _after_step(self, *_: Any) -> None:
        on = self._now()
        if "bit-flip" in on and self._once("bit-flip"):
            self._flip()
        if "desync" in on and self._once("desync"):
            self._stir(on["desync"])
        if "leak" in on:
            self._kept.append(bytearray(os.urandom(4096) * int(on["leak"] * 256)))  # MiB, each page touched

    # -- what is done ------------------------------------------------------------------------------------

    def _once(self, name: str) -> bool:
        first = name not in self._done
        self._done.add(name)
        return first

    def _flags(self, wanted: bool) -> None:
        if wanted or self._anomaly is not None:
            if self._anomaly is None:
                self._anomaly = torch.is_anomaly_enabled()
            torch.autograd.set_detect_anomaly(wanted or self._anomaly)

    def _precision(self, wanted: bool) -> None:
        """Matrix products in double precision; the parameters stay as they are, and so does what is exchanged of them."""
        if wanted != bool(self._doubled):
            for module in self._doubled:
                del module.forward
            linear: list[Any] = [module for module in self._model.modules() if isinstance(module, torch.nn.Linear)]
            self._doubled = linear if wanted else []
            for module in self._doubled:
                module.forward = partial(_double, module)

    def _work(self, seconds: float) -> None:
        """Computes for so long, by the thread's own clock: other ranks' noise does not shorten it."""
        matrix = torch.ones(64, 64)
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            matrix @ matrix

    def _collect(self, strength: float) -> None:
        if self._once("garbage"):
            self._kept.append([[n] for n in range(int(_NODES * strength))])
        gc.collect()

    def _hold(self, seconds: float) -> None:
        """A C function that keeps Python's lock while it waits: no other thread of the process gets on."""
        ctypes.PyDLL(None).usleep(ctypes.c_uint(int(seconds * 1e6)))

    def _wait(self, seconds: float) -> None:
        """Until it is undone, at the longest so long."""
        until = time.monotonic() + seconds
        if self._once("hang"):
            while time.monotonic() < until and "hang" in self._now():
                time.sleep(_LOOK_S)

    def _mismatch(self, _strength: float) -> None:
        if self._once("wrong-collective"):
            distributed.broadcast(torch.zeros(3), src=self._rank)

    def _compile(self, _strength: float) -> None:
        """A function that is compiled anew for a shape it has not seen, as one does that was not marked dynamic."""
        compiled = torch.compile(lambda x: (x * x).sum(), backend="eager", dynamic=False)
        self._kept.append(compiled(torch.ones(len(self._kept) + 2)))

    def _raise(self, _strength: float) -> None:
        raise RuntimeError("injected: this step fails each time")

    def _illegal(self, _strength: float) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _flip(self) -> None:
        """By ``data``: torch counts it as no write of the program's, as it counts none that memory does by itself."""
        weights = next(self._model.parameters()).data.view(-1)
        bits = weights[:1].float().view(torch.int32)
        weights[:1] = (bits ^ _EXPONENT).view(torch.float32)

    def _stir(self, strength: float) -> None:
        with torch.no_grad():
            for parameter in self._model.parameters():
                parameter.add_(torch.randn_like(parameter) * strength)


def _double(layer: torch.nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    bias = None if layer.bias is None else layer.bias.double()
    return torch.nn.functional.linear(rows.double(), layer.weight.double(), bias).to(rows.dtype)


def _each(batch: Any, change: Callable[[Any], Any]) -> Any:
    """``change`` of every tensor of a batch: a tensor, or a list, tuple or mapping of them."""
    if isinstance(batch, dict):
        return {name: _each(value, change) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(_each(value, change) for value in batch)
    return change(batch) if hasattr(batch, "repeat_interleave") else batch


def armed(path: str | None, rank: int, model: Any, optimizer: Any) -> Faults | None:
    """None where nobody asked for faults: the training is then not touched at all."""
    if not path or model is None or optimizer is None:
        return None
    faults = Faults(path, rank)
    faults.arm(model, optimizer)
    return faults
