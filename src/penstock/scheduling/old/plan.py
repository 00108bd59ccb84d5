"""First come, first served, whole jobs, no oversubscription.

The head of the line blocks those behind it (so that a large job is not starved by small ones), except where it could
not run on the fleet even if everything were free: then it waits aside and says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from penstock.base.quantities import format_memory
from penstock.base.reasons import Reason
from penstock.scheduling.old.state import Admit, Decision, NodeState, Share, Wait, Workload

_EPSILON = 1e-9  # shares of a core are floats: 10 x 0.1 must fit on one core


def plan(workloads: Iterable[Workload], nodes: Sequence[NodeState]) -> Decision:
    """Admit from the front while it fits. ``workloads`` come in their order of service and are read only up to the head
    that blocks (``blocked_by``; all after it wait behind it), so a long line costs nothing. Total and deterministic.
    """
    free = {node.name: node for node in nodes if node.open}
    admitted: list[Admit] = []
    waiting: list[Wait] = []
    head: Workload | None = None
    for workload in workloads:
        shares = place(workload, list(free.values()))
        if shares is not None:
            _take(workload, shares, free)
            admitted.append(Admit(workload.job_id, shares, _where(shares)))
            continue
        wait = explain(workload, nodes, list(free.values()))
        waiting.append(wait)
        if wait.reason is not Reason.Unschedulable:
            head = workload
            break
    return Decision(tuple(admitted), tuple(waiting), head.name if head else None)


def place(workload: Workload, nodes: Sequence[NodeState]) -> tuple[Share, ...] | None:
    """All groups or none, on distinct nodes, each on the fullest that still holds it (best fit keeps large holes open)."""
    fitting = [node for node in nodes if _fits(workload, node)]
    if len(fitting) < workload.nodes:
        return None
    fitting.sort(key=lambda n: (len(n.free_gpus), n.free_cpus, n.free_memory, n.name))
    return tuple(Share(node.name, _pick_gpus(workload, node)) for node in fitting[: workload.nodes])


def explain(workload: Workload, nodes: Sequence[NodeState], free: Sequence[NodeState]) -> Wait:
    """Why it does not run now, with the figures a person would ask for next, and what would help."""
    need = _need(workload)
    could = [node for node in nodes if _fits_empty(workload, node)]
    if len(could) < workload.nodes:
        best = _best(workload, nodes)
        message = f"needs {need}; {_count(len(could))} of the fleet could ever hold that{best}"
        return Wait(
            workload.job_id,
            Reason.Unschedulable,
            message,
            (f"ask for less (the fleet: {_fleet(nodes)}), or add nodes that hold {_each(workload)}",),
        )
    closed = [node for node in could if not node.open]
    now = [node for node in free if _fits(workload, node)]
    message = f"needs {need}; {len(now)} of {len(could)} such nodes {'has' if len(now) == 1 else 'have'} room now"
    message += _best(workload, free) if not now else ""
    helps = ["waits for running jobs to end"] if len(could) - len(closed) >= workload.nodes else []
    if closed:
        message += "; " + ", ".join(f"{node.name} is {node.why_closed}" for node in closed[:3])
        helps += [f"`penstock uncordon {node.name}`" for node in closed[:3] if "cordoned" in node.why_closed]
    return Wait(workload.job_id, Reason.WaitingForResources, message, tuple(helps))


def _fits(workload: Workload, node: NodeState) -> bool:
    return (
        node.free_cpus + _EPSILON >= workload.cpus
        and node.free_memory >= workload.memory
        and len(_candidates(workload, node)) >= workload.gpus
    )


def _fits_empty(workload: Workload, node: NodeState) -> bool:
    models = [m for m in node.gpu_models if workload.gpu_model in (None, m)]
    gpus = node.gpus if workload.gpu_model is None else len(models)
    return node.cpus + _EPSILON >= workload.cpus and node.memory >= workload.memory and gpus >= workload.gpus


def _candidates(workload: Workload, node: NodeState) -> list[str]:
    return [gpu for gpu, model in node.free_gpus if workload.gpu_model in (None, model)]


def _pick_gpus(workload: Workload, node: NodeState) -> tuple[str, ...]:
    return tuple(_candidates(workload, node)[: workload.gpus])


def _take(workload: Workload, shares: tuple[Share, ...], free: dict[str, NodeState]) -> None:
    for share in shares:
        node = free[share.node]
        free[share.node] = replace(
            node,
            free_cpus=node.free_cpus - workload.cpus,
            free_memory=node.free_memory - workload.memory,
            free_gpus=tuple(gpu for gpu in node.free_gpus if gpu[0] not in share.gpus),
        )


def _where(shares: tuple[Share, ...]) -> str:
    names = [share.node for share in shares]
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"on {shown}"


def _each(workload: Workload) -> str:
    parts = [f"{workload.cpus:g} CPU{'s' if workload.cpus != 1 else ''}"]
    if workload.memory:
        parts.append(f"{format_memory(workload.memory)} of memory")
    if workload.gpus:
        model = f" {workload.gpu_model}" if workload.gpu_model else ""
        parts.append(f"{workload.gpus}{model} GPU{'s' if workload.gpus != 1 else ''}")
    return ", ".join(parts)


def _need(workload: Workload) -> str:
    return _each(workload) if workload.nodes == 1 else f"{workload.nodes} nodes with {_each(workload)} each"


def _count(number: int) -> str:
    return "no node" if number == 0 else "only 1 node" if number == 1 else f"only {number} nodes"


def _best(workload: Workload, nodes: Sequence[NodeState]) -> str:
    if not nodes:
        return "; no node is open"
    best = max(nodes, key=lambda n: (len(n.free_gpus) if workload.gpus else 0, n.free_cpus, n.free_memory))
    parts = [f"{max(best.free_cpus, 0):g} of {best.cpus:g} CPUs"]
    if workload.memory:
        parts.append(f"{format_memory(max(best.free_memory, 0))} of {format_memory(best.memory)} memory")
    if workload.gpus:
        parts.append(f"{len(best.free_gpus)} of {best.gpus} GPUs")
    return f"; the freest, {best.name}, has {', '.join(parts)} free"


def _fleet(nodes: Sequence[NodeState]) -> str:
    if not nodes:
        return "no nodes"
    cpus = max(node.cpus for node in nodes)
    memory = max(node.memory for node in nodes)
    gpus = max(node.gpus for node in nodes)
    return f"{len(nodes)} node{'s' if len(nodes) != 1 else ''} of up to {cpus:g} CPUs, {format_memory(memory)}, {gpus} GPUs"
