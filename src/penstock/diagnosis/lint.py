"""What is wrong with how a job is configured, as far as its configuration alone tells. Pure.

A setting is a hint at most until the steps' times fit to it: ``strength`` says how much it usually costs, and a rule that does not
know what it needs says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

from penstock.diagnosis import lint_nccl
from penstock.diagnosis.configured import Advice, Setup, setups
from penstock.diagnosis.state import Evidence

__all__ = ["Advice", "lint"]

FREE: Final = 0.4  # of the GPU's memory that was never used
MANY_WORKERS: Final = 1.5  # processes a core
SMALL_BUCKET_MB: Final = 2.0  # DDP's own are 25
_PARTS, _CORES = 256, 4096  # of a list of cores
RECOMPILES: Final = 8  # torch._dynamo.config.recompile_limit
_TENSOR_CORES: Final = re.compile(
    r"V100|TITAN V|T4|RTX|Quadro|A[1-9]|H[12]|B[123]|GH200|GB[123]|L4|L20|L40|GV100", re.ASCII
)
_TF32: Final = re.compile(
    r"A[1-9]|H[12]|B[123]|GH200|GB[123]|L4|L20|L40|RTX [3-9]0[5-9]0|RTX A|RTX 6000 Ada|RTX PRO", re.ASCII
)


def lint(evidence: Evidence) -> tuple[Advice, ...]:
    """The strongest first; the same of several ranks once."""
    every = list(setups(evidence))
    found: dict[tuple[str, str, str], tuple[Advice, list[int]]] = {}
    for setup in every:
        for advice in (each for rule in RULES for each in rule(setup)):
            key = (advice.cause, advice.setting, advice.evidence)
            found.setdefault(key, (advice, []))[1].append(setup.rank)
    whole = len(every)
    merged = [
        replace(advice, ranks=() if len(ranks) == whole else tuple(sorted(ranks))) for advice, ranks in found.values()
    ]
    merged += [*lint_nccl.disagreeing(every), *_unlike(every)]
    return tuple(sorted(merged, key=lambda advice: (-advice.strength, advice.setting, advice.evidence)))


# -- precision -----------------------------------------------------------------------------------------------------------


def precision(setup: Setup) -> Iterator[Advice]:
    """Tensor cores that are not used."""
    kinds = setup.text("dtype").split(",")
    if "float64" in kinds:
        yield Advice(
            "tf32_amp_off",
            "dtype",
            0.9,
            "parameters are float64: GPUs and CPUs compute it at half the speed of float32 or less, and no tensor core does",
            'Make the model float32 (`model.float()`), and pass NumPy\'s float64 arrays through `.astype("float32")`.',
        )
        return
    if not setup.cuda or "float32" not in kinds or setup.text("autocast"):
        return
    device = setup.text("device")
    if setup.env.get("NVIDIA_TF32_OVERRIDE") == "0":
        words = "NVIDIA_TF32_OVERRIDE=0 turns TF32 off in all libraries, and autocast is off"
        yield Advice("tf32_amp_off", "NVIDIA_TF32_OVERRIDE", 0.8, words, "Unset NVIDIA_TF32_OVERRIDE.")
    elif _TF32.search(device) and setup.config.get("tf32") is False:
        words = f"float32 without TF32 and without autocast on {device}: its tensor cores do nothing"
        action = '`torch.set_float32_matmul_precision("high")`, or `torch.autocast("cuda", dtype=torch.bfloat16)`.'
        yield Advice("tf32_amp_off", "matmul_precision", 0.7, words, action)
    elif _TENSOR_CORES.search(device) and not _TF32.search(device):
        words = f"float32 without autocast on {device}, whose tensor cores compute in float16 only"
        yield Advice(
            "tf32_amp_off", "autocast", 0.5, words, '`torch.autocast("cuda", dtype=torch.float16)` with a GradScaler.'
        )


def _unlike(every: list[Setup]) -> Iterator[Advice]:
    """Settings of torch that all ranks should share."""
    for name, cause in (("dtype", "tf32_amp_off"), ("autocast", "tf32_amp_off"), ("compiled", "recompile")):
        values = [str(setup.config[name]) for setup in every if name in setup.config]
        if len(set(values)) < 2:
            continue
        usual = max(sorted(set(values)), key=values.count)
        odd = [setup for setup in every if name in setup.config and str(setup.config[name]) != usual]
        words = f"{name} is {str(odd[0].config[name]) or 'off'} on some ranks and {usual or 'off'} on the others"
        ranks = tuple(setup.rank for setup in odd)
        yield Advice(cause, name, 0.6, words, f"Give {name} the same value on all ranks.", ranks=ranks)


# -- switches ------------------------------------------------------------------------------------------------------------

# Of the environment: name, the values that cost (empty: any but off), strength, why.
_SWITCHES: Final = (
    ("CUDA_LAUNCH_BLOCKING", ("1",), 0.9, "each kernel is waited for, so CPU and GPU never work at once"),
    ("PYTORCH_NO_CUDA_MEMORY_CACHING", (), 0.9, "each tensor is allocated by the driver, which stops the GPU"),
    ("TORCH_DISTRIBUTED_DEBUG", ("DETAIL",), 0.7, "each collective is checked by another one before it"),
    ("TORCH_DISTRIBUTED_DEBUG", ("INFO",), 0.2, "DDP keeps statistics of each step"),
    ("NCCL_DEBUG", ("TRACE",), 0.6, "NCCL writes a line for each call"),
    ("NCCL_DEBUG", ("INFO",), 0.1, "NCCL writes much at its start"),
    ("NCCL_CHECK_POINTERS", ("1",), 0.3, "NCCL asks the driver about each pointer"),
    ("NCCL_CHECK_MODE", ("DEBUG_LOCAL", "DEBUG_GLOBAL"), 0.4, "NCCL checks the arguments of each call"),
    ("TORCH_SHOW_CPP_STACKTRACES", ("1",), 0.1, "errors are slower to raise"),
    ("TORCH_NCCL_BLOCKING_WAIT", ("1",), 0.3, "the CPU waits for each collective"),
    ("NCCL_BLOCKING_WAIT", ("1",), 0.3, "the CPU waits for each collective"),
    ("TORCH_CPP_LOG_LEVEL", ("INFO",), 0.2, "torch writes much"),
    ("TORCH_LOGS", (), 0.2, "the compiler writes what it does"),
    ("TORCH_COMPILE_DEBUG", ("1",), 0.5, "the compiler writes all its steps to files"),
    ("CUBLAS_WORKSPACE_CONFIG", (":16:8", ":4096:8"), 0.1, "matrix products are deterministic, which may be slower"),
)


def switches(setup: Setup) -> Iterator[Advice]:
    """Debugging that was left on."""
    cause = "debug_flags_on"
    if setup.config.get("anomaly") is True:
        words = "anomaly detection is on: each operation keeps its stack and each gradient is searched for NaN"
        yield Advice(cause, "anomaly", 0.9, words, "Remove `torch.autograd.set_detect_anomaly(True)`.")
    if setup.config.get("profiled") is True:
        words = "a profiler, debugger or coverage tool follows the program"
        yield Advice(cause, "profiled", 0.7, words, "Take it out, or give `torch.profiler` a schedule of few steps.")
    for name, costly, strength, why in _SWITCHES:
        value = setup.env.get(name, "").strip()
        if value.upper() in costly if costly else value not in {"", "0"}:
            yield Advice(cause, name, strength, f"{name}={value[:40]}: {why}", f"Unset {name}.")
    if setup.config.get("find_unused") is True:
        words = "DDP looks for unused parameters after each forward pass (find_unused_parameters=True)"
        action = "Leave it out if all parameters are used; else give `static_graph=True` a try."
        yield Advice(cause, "find_unused", 0.3, words, action)
    if setup.config.get("deterministic") is True:
        words = "deterministic algorithms are on, some of which are slower"
        yield Advice(cause, "deterministic", 0.15, words, "Turn them off unless the run must be repeatable bit by bit.")


# -- input ---------------------------------------------------------------------------------------------------------------


def feeding(setup: Setup) -> Iterator[Advice]:
    """The DataLoader's own settings."""
    cause, workers, cpus = "data_loader_bound", setup.number("loader_workers"), setup.number("cpus")
    share = None if cpus is None or not setup.neighbours else cpus / setup.neighbours
    if workers == 0:
        strength = 0.5 if setup.cuda else 0.3
        words = "num_workers=0: batches are made in the training's own process, which computes nothing meanwhile"
        action = f"DataLoader(num_workers={_workers(share)}, persistent_workers=True)."
        against = "there is no core to spare for a worker" if share is not None and share < 2 else ""
        yield Advice(cause, "loader_workers", strength, words, action, against)
    elif workers is not None and share is not None:
        if workers + 1 > MANY_WORKERS * share and workers > 2:
            words = f"{workers:.0f} loader workers a rank where each rank has {share:.1f} cores: they take the training's own"
            yield Advice("cpu_contention", "loader_workers", 0.3, words, f"num_workers={_workers(share)}.")
        elif setup.cuda and workers < 2 <= share / 2:
            words = f"{workers:.0f} loader worker a rank where each rank has {share:.0f} cores"
            yield Advice(cause, "loader_workers", 0.3, words, f"num_workers={_workers(share)}.")
    if setup.cuda and setup.config.get("loader_pin") is False:
        words = "pin_memory=False: copies to the GPU are slower, and nothing overlaps them"
        yield Advice(cause, "loader_pin", 0.3, words, "`pin_memory=True`, and `.to(device, non_blocking=True)`.")
    if workers and setup.config.get("loader_persistent") is False:
        words = "persistent_workers=False: workers start anew with each epoch"
        yield Advice(cause, "loader_persistent", 0.15, words, "`persistent_workers=True`.")


def _workers(share: float | None) -> int:
    return 4 if share is None else max(1, min(16, int(share) - 1))


# -- compute -------------------------------------------------------------------------------------------------------------


def batches(setup: Setup) -> Iterator[Advice]:
    """Little work at a time, and memory that lies idle."""
    cause, free, size = "gpu_low_util_launch_bound", setup.number("gpu_memory_free"), setup.number("batch_size")
    if size == 1:
        words = "batch size 1: each operation is as small as can be, so starting it costs more than doing it"
        action = "A larger batch; if memory is short, gradient checkpointing for it."
        against = f"only {free:.0%} of the GPU's memory is free" if free is not None and free < 0.15 else ""
        yield Advice(cause, "batch_size", 0.5, words, action, against)
    if free is not None and free >= FREE and setup.config.get("gradient_checkpointing") is True:
        words = (
            f"gradient checkpointing computes the forward pass twice while {free:.0%} of the GPU's memory is never used"
        )
        yield Advice("", "gradient_checkpointing", 0.5, words, "Turn it off, or use the memory for a larger batch.")
    elif free is not None and free >= FREE and size != 1:
        words = f"{free:.0%} of the GPU's memory is never used"
        yield Advice(cause, "gpu_memory_free", 0.2, words, "Try a larger batch: it makes fewer, larger kernels.")
    if setup.text("wrapper") == "dp":
        words = "DataParallel drives all GPUs from one Python process"
        yield Advice(
            cause, "wrapper", 0.5, words, "DistributedDataParallel, one process a GPU (`penstock run --procs N`)."
        )
    if setup.cuda and setup.config.get("fused") is False and setup.text("optimizer") in {"Adam", "AdamW", "SGD"}:
        words = f"{setup.text('optimizer')} with fused=False starts kernels for each parameter"
        yield Advice(cause, "fused", 0.1, words, f"`{setup.text('optimizer')}(..., fused=True)`.")
    many = setup.number("recompiles")
    if many is not None and many > RECOMPILES:
        words = f"torch.compile compiled {many:.0f} times more than once"
        action = "`TORCH_LOGS=recompiles` tells why; pad to few shapes or `torch._dynamo.mark_dynamic`."
        yield Advice("recompile", "recompiles", min(0.9, many / 50), words, action)


def threads(setup: Setup) -> Iterator[Advice]:
    """Threads of torch and OpenMP against the cores: only where the CPU computes."""
    count, cpus = setup.number("threads"), setup.number("cpus")
    if count is None or cpus is None or not setup.neighbours or not setup.text("device").startswith("cpu"):
        return
    share = cpus / setup.neighbours
    if count * setup.neighbours > MANY_WORKERS * cpus and count > 1:
        words = f"{setup.neighbours} ranks of {count:.0f} threads share {cpus:.0f} cores"
        yield Advice("cpu_contention", "OMP_NUM_THREADS", 0.5, words, f"OMP_NUM_THREADS={max(1, int(share))}.")
    elif count == 1 and share >= 2:
        words = f"one thread a rank where each rank has {share:.0f} cores (torchrun sets OMP_NUM_THREADS=1)"
        yield Advice("", "OMP_NUM_THREADS", 0.4, words, f"OMP_NUM_THREADS={int(share)}.")


def binding(setup: Setup) -> Iterator[Advice]:
    """Cores that are not the GPU's own."""
    own, near = cores(setup.text("affinity")), cores(setup.text("gpu_affinity"))
    if own and near and not own & near:
        words = f"the rank may run on cores {setup.text('affinity')}, its GPU is at cores {setup.text('gpu_affinity')}: another socket"
        action = "`torchrun --numa-binding=node`, or Slurm's `--gpu-bind=closest` with `--cpus-per-gpu`."
        yield Advice("numa_misbind", "affinity", 0.9, words, action)


def cores(text: str) -> frozenset[int]:
    """``0-3,8`` as Linux writes lists of cores; nothing where it is none."""
    found: set[int] = set()
    for part in text.split(",")[:_PARTS]:
        low, _, high = part.strip().partition("-")
        if not (low.isdecimal() and (high or low).isdecimal()):
            return frozenset()
        found.update(range(int(low), min(int(high or low), _CORES) + 1))
    return frozenset(found)


def exchange(setup: Setup) -> Iterator[Advice]:
    """How gradients are exchanged."""
    bucket = setup.number("bucket_mb")
    if bucket is not None and 0 < bucket < SMALL_BUCKET_MB and (setup.number("parameters") or 0) > 1e6:
        words = f"DDP's buckets are {bucket:g} MB, so that a step makes many small exchanges"
        yield Advice("net_latency", "bucket_mb", 0.3, words, "Leave `bucket_cap_mb` out (25).")
    if setup.cuda and setup.text("backend") == "gloo":
        words = "the backend is gloo while the model is on a GPU: gradients go through the host's memory and TCP"
        yield Advice("nccl_socket_fallback", "backend", 0.8, words, '`init_process_group("nccl")`.')


Rule = Callable[[Setup], Iterable[Advice]]
RULES: Final[tuple[Rule, ...]] = (precision, switches, feeding, batches, threads, binding, exchange, lint_nccl.rules)
