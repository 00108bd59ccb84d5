"""What the logs of all ranks and the kernels tell: the first failure by time is the cause, what others saw of it is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from penstock.diagnosis import logs
from penstock.diagnosis.causes.rule import Found, Proof, job, nodes, ranks, said
from penstock.diagnosis.features import Features
from penstock.diagnosis.logs import Account, Failure, Role
from penstock.diagnosis.state import Culprit

# A training goes on with these: lines of them count though steps came after.
_GOES_ON: Final = frozenset(
    {"nccl_socket_fallback", "gdr_off", "nccl_wrong_env", "recompile", "alloc_fragmentation", "pcie_aer", "gpu_sbe_rate", "cpu_freq_low",
     "nvme_degraded", "link_flap", "bad_cable", "clock_skew", "kernel_soft_lockup"}
)  # fmt: skip
_ON = 5  # steps after a line: it did not end the training


def logged(features: Features) -> Iterator[Found]:
    account = logs.account(features.evidence)
    first = account.first
    told: set[str] = set()
    for failure in (first, *account.roots, *account.cascades):
        if failure is None or not failure.cause or failure.cause in told:
            continue
        told.add(failure.cause)
        yield _found(features, account, failure, leads=failure is first)


def _found(features: Features, account: Account, failure: Failure, *, leads: bool) -> Found:
    went_on = _went_on(features, failure) and failure.cause not in _GOES_ON
    proof, sure = (Proof.FACT, 0.9) if leads else (Proof.COUNTER, 0.4)
    if failure.role is Role.CASCADE:
        proof, sure = (Proof.TIMING, 0.6) if leads else (Proof.HINT, 0.3)
    elif went_on:
        proof, sure = Proof.HINT if _well(features) else Proof.COUNTER, 0.2
    where = f"rank {failure.rank}" if failure.rank is not None else f"the kernel of {failure.node}"
    return Found(
        failure.cause,
        proof,
        sure,
        _culprits(features, account, failure),
        said(
            f"{where} wrote: {failure.text}",
            "it is the first failure of all ranks and nodes" if leads and failure.role is Role.ROOT else "",
        ),
        said(
            f"{_place(account.first)} failed before: {account.first.text}"
            if not leads and account.first is not None
            else "",
            "steps came after it" if went_on else "",
            "it sees another's failure, which no log tells of" if leads and failure.role is Role.CASCADE else "",
        ),
    )


def _place(failure: Failure) -> str:
    return f"rank {failure.rank}" if failure.rank is not None else failure.node


def _culprits(features: Features, account: Account, failure: Failure) -> tuple[Culprit, ...]:
    """Of a cascade not who complains, but who says nothing."""
    if failure.role is Role.CASCADE:
        silent = account.silent if 0 < len(account.silent) < len(features.ranks) else ()
        return ranks(silent) or job(features)
    if failure.rank is None:
        return nodes([failure.node]) or job(features)
    return ranks([failure.rank])


def _well(features: Features) -> bool:
    """Whether nothing is wrong with the job now: it runs as fast as before."""
    return features.evidence.phase in {"Running", "Succeeded"} and features.change is None and features.timed()


def _went_on(features: Features, failure: Failure) -> bool:
    return any(
        sum(step.at > failure.at for step in view.source.steps) >= _ON
        for view in features.ranks
        if failure.rank in {None, view.rank}
    )


RULES = (logged,)
