"""How a training is configured, as far as its process shows: what ``watch`` tells once, in few and flat values."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import nn
from torch._C import _autograd

from penstock.worker import sockets

_cuda: Any = torch.cuda
_PREFIXES: Final = (
    "NCCL_",
    "TORCH_",
    "CUDA_",
    "GLOO_",
    "OMP_",
    "MKL_",
    "PYTORCH_",
    "FI_",
    "UCX_",
    "RCCL_",
    "HSA_",
    "KMP_",
)
_ENV_LIMIT: Final = 32  # values, as engines/reports.py takes them
_SECRET: Final = ("TOKEN", "SECRET", "PASSWORD", "KEY")
_DEPTH: Final = 4  # attributes in which a data set may hold another, or its folder
_ALLOCATOR: Final = {
    "alloc_retries": "num_alloc_retries",
    "gpu_reserved_bytes": "reserved_bytes.all.current",
    "gpu_allocated_bytes": "allocated_bytes.all.current",
}
_FOLDER: Final = ("root", "path", "data_dir", "dir", "folder", "filename", "file")


def configuration(model: Any, optimizer: Any, loader: Any, autocast: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """At the most 32 values; ``memory`` and what is profiled come to it. What cannot be told is left out."""
    found: dict[str, Any] = {
        "versions": _versions(),
        "env": environment(environ),
        "autocast": autocast,
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "threads": torch.get_num_threads(),
        "cpus": len(os.sched_getaffinity(0)),
        "affinity": _ranges(sorted(os.sched_getaffinity(0))),
        "optimizer": type(optimizer).__name__,
        **_precision(),
        **_of_model(model),
        **_of_loader(loader),
    }
    if dist.is_available() and dist.is_initialized():
        found |= {"backend": str(dist.get_backend()), "world": dist.get_world_size(), "addresses": sockets.addresses()}
    groups = getattr(optimizer, "param_groups", None) or [{}]
    fused = groups[0].get("fused")
    return found if fused is None else found | {"fused": bool(fused)}


def environment(environ: Mapping[str, str]) -> list[str]:
    """``NAME=value`` of those that change how torch, NCCL and their transports work."""
    names = sorted(name for name in environ if name.startswith(_PREFIXES) and not any(s in name for s in _SECRET))
    return [f"{name}={environ[name][:100]}" for name in names[:_ENV_LIMIT]]


def _versions() -> list[str]:
    found = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    if torch.version.cuda:
        found.append(f"cuda {torch.version.cuda}")
    with contextlib.suppress(AttributeError, RuntimeError, TypeError):
        if torch.cuda.is_available():
            found.append("nccl " + ".".join(map(str, _cuda.nccl.version())))
    return found


def _precision() -> dict[str, Any]:
    """TF32 is set in two ways; torch refuses to mix them."""
    found: dict[str, Any] = {}
    with contextlib.suppress(RuntimeError, AttributeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found["matmul_precision"] = torch.get_float32_matmul_precision()
        found["tf32"] = bool(torch.backends.cuda.matmul.allow_tf32)
    return found


def _of_model(model: Any) -> dict[str, Any]:
    if not isinstance(model, nn.Module):
        return {}
    parameters = list(model.parameters())
    trained = [one for one in parameters if one.requires_grad] or parameters
    kinds = sorted({str(one.dtype).removeprefix("torch.") for one in trained})
    inner = getattr(model, "module", model)
    found: dict[str, Any] = {
        "model": type(inner).__name__,
        "wrapper": wrapper(model),
        "parameters": sum(one.numel() for one in parameters),
        "dtype": ",".join(kinds[:4]),
        "device": _device(trained[0].device) if trained else "",
        "compiled": hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None,
        "gradient_checkpointing": any(map(_recomputes, model.modules())),
    }
    if found["wrapper"] == "ddp":
        found["find_unused"] = bool(getattr(model, "find_unused_parameters", False))
        found["bucket_mb"] = round(getattr(model, "bucket_bytes_cap", 0) / 2**20, 2)
    return found


def wrapper(model: Any) -> str:
    """What shares the model among ranks: ``ddp``, ``fsdp``, ``fsdp2``, ``deepspeed``, ``dp``, or nothing that is known."""
    names = {kind.__name__ for kind in type(model).__mro__}
    known = {"DistributedDataParallel": "ddp", "FullyShardedDataParallel": "fsdp", "FSDPModule": "fsdp2",
             "DeepSpeedEngine": "deepspeed", "DataParallel": "dp"}  # fmt: skip
    return next((word for name, word in known.items() if name in names), "")


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return str(device)


def _recomputes(module: nn.Module) -> bool:
    """By its own flag, its wrapper, or the name that its forward calls."""
    if getattr(module, "gradient_checkpointing", False) is True or type(module).__name__ == "CheckpointWrapper":
        return True
    code = getattr(type(module).forward, "__code__", None)
    return not type(module).__module__.startswith("torch.") and "checkpoint" in getattr(code, "co_names", ())


def _of_loader(loader: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"loader": type(loader).__name__} if loader is not None else {}
    names = {"num_workers": "loader_workers", "pin_memory": "loader_pin", "prefetch_factor": "loader_prefetch",
             "persistent_workers": "loader_persistent", "batch_size": "batch_size"}  # fmt: skip
    for name, word in names.items():
        value = getattr(loader, name, None)
        if isinstance(value, bool | int):
            found[word] = value
    folder = next(_folders(getattr(loader, "dataset", None)), None)
    if folder is not None:
        found["data_filesystem"] = filesystem(folder)
    return found


def _folders(dataset: Any) -> Iterator[str]:
    """Paths that exist, among the few attributes of a data set that are likely to be its folder."""
    for _ in range(_DEPTH):
        for name in _FOLDER:
            value = getattr(dataset, name, None)
            if isinstance(value, str | os.PathLike) and os.path.exists(value):
                yield os.fspath(value)
        dataset = getattr(dataset, "dataset", None)


def filesystem(path: str) -> str:
    """The type of the file system that holds ``path``: ``nfs4``, ``lustre``, ``ext4``."""
    real, best, kind = os.path.realpath(path), "", ""
    with contextlib.suppress(OSError), open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
        for line in file:
            where, what = itertools.islice(line.split(" "), 1, 3)
            if len(where) > len(best) and (real + "/").startswith(where.rstrip("/") + "/"):
                best, kind = where, what
    return kind


def _ranges(numbers: list[int]) -> str:
    """``0-3,8``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def memory() -> dict[str, Any]:
    """Of the GPU in use: the part of its memory that was never used at once, and the cores near it. {} without one."""
    if not _cuda.is_available() or not _cuda.is_initialized():
        return {}
    properties = _cuda.get_device_properties(torch.cuda.current_device())
    found = {"gpu_memory_free": round(max(0.0, 1 - torch.cuda.max_memory_reserved() / properties.total_memory), 4)}
    domain, bus, device = (getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device"))
    return found | near_cores(domain, bus, device)  # older torch does not tell where it is


def near_cores(domain: int | None, bus: int | None, device: int | None, root: str = "/sys") -> dict[str, str]:
    """Of the device at this PCI address, as Linux writes them. {} where it does not tell, or has one socket."""
    if domain is None or bus is None or device is None:
        return {}
    path = f"{root}/bus/pci/devices/{domain:04x}:{bus:02x}:{device:02x}.0/local_cpulist"
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        cores = file.read().strip()
        return {"gpu_affinity": cores} if cores else {}
    return {}


def counted() -> dict[str, float]:
    """What torch itself counts: graphs that its compiler made, and what its allocator had to ask anew. {} of neither."""
    found: dict[str, float] = {}
    compiler = sys.modules.get("torch._dynamo.utils")  # never imported for this
    if compiler is not None:
        with contextlib.suppress(AttributeError, KeyError, TypeError, RuntimeError):
            found["recompiles"] = float(dict(compiler.counters["stats"]).get("unique_graphs", 0))
    if _cuda.is_available() and _cuda.is_initialized():
        stats = torch.cuda.memory_stats()
        for ours, name in _ALLOCATOR.items():
            if name in stats:
                found[ours] = float(stats[name])
    return found


def autocast() -> str:
    """The dtype that a forward pass runs in by autocast: "" where it is off."""
    for kind in ("cuda", "cpu"):
        if torch.is_autocast_enabled(kind):
            return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    return ""


def profiled() -> bool:
    """Whether something follows each line or call of Python: a debugger, a profiler, coverage."""
    return sys.gettrace() is not None or sys.getprofile() is not None or bool(_autograd._profiler_enabled())  # noqa: SLF001 - torch has no public word for it
