"""What NCCL says of the way that gradients take: sockets where there is InfiniBand, and copies through the host's memory."""

from __future__ import annotations

from collections.abc import Iterator

from penstock.diagnosis import thresholds as t
from penstock.diagnosis.causes.readings import readings
from penstock.diagnosis.causes.rule import Found, Proof, by_lost, job, ms, said
from penstock.diagnosis.features import Features
from penstock.diagnosis.nccl import Transport, transport

_ACTIVE = 4.0  # an InfiniBand port's state


def path(features: Features) -> Iterator[Found]:
    if len({view.node for view in features.ranks}) < 2:
        return  # between nodes nothing is sent
    found = transport(line for view in features.ranks for line in view.source.lines)
    ports = {(r.node, r.device) for r in readings(features, "link_state") if r.value == _ACTIVE}
    if found.sockets:
        yield _sockets(features, found, len(ports))
    elif found.gdr is False:
        yield Found(
            "gdr_off",
            *_founded(features),
            job(features),
            said("NCCL's channels between nodes use InfiniBand without GPUDirect RDMA", _lost(features)),
        )


def _sockets(features: Features, found: Transport, ports: int) -> Found:
    proof, strength = _founded(features)
    return Found(
        "nccl_socket_fallback",
        proof if ports or found.no_card else Proof.HINT,
        strength,
        job(features),
        said(
            "NCCL says that it sends by TCP sockets",
            "it looked for InfiniBand or RoCE and found no card" if found.no_card else "",
            f"{ports} InfiniBand ports of the nodes are active" if ports else "",
            _lost(features),
        ),
        said("" if ports else "it is not known whether the nodes have InfiniBand"),
    )


def _founded(features: Features) -> tuple[Proof, float]:
    """The line is a fact; whether it costs anything the transfer tells."""
    lost = features.lost(features.transfer or 0.0)
    return (Proof.COUNTER, by_lost(lost) + 0.2) if lost >= t.LOST else (Proof.SETTING, 0.3)


def _lost(features: Features) -> str:
    lost = features.lost(features.transfer or 0.0)
    return (
        f"the transfer takes {ms(features.transfer or 0.0)} of a step of {ms(features.step)}" if lost >= t.LOST else ""
    )


RULES = (path,)
