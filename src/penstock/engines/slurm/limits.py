"""Which limit holds a job, and how much of it is used: from what slurmctld says of its associations. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.engines.slurm.reasons import Limit
from penstock.engines.slurm.spec import SlurmJob

COMMAND = ("scontrol", "-o", "show", "assoc_mgr", "flags=assoc")
_ENTRY = re.compile(r"([^=,]+)=(N|\d+)\((\d+)\)")
_ALONE = re.compile(r"(N|\d*)(?:\(([\d.]+)\))?")
# The reason's word -> the field and the TRES that it is about; of GPUs any of their types.
_OF: Mapping[str, tuple[str, str]] = {
    "AssocGrpGRES": ("GrpTRES", "gres/"),
    "AssocGrpCpuLimit": ("GrpTRES", "cpu"),
    "AssocGrpMemLimit": ("GrpTRES", "mem"),
    "AssocGrpNodeLimit": ("GrpTRES", "node"),
    "AssocGrpJobsLimit": ("GrpJobs", ""),
    "AssocGrpSubmitJobsLimit": ("GrpSubmitJobs", ""),
    "AssocMaxJobsLimit": ("MaxJobs", ""),
}
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Association:
    account: str
    user: str  # "": of the account itself
    parent: str
    fields: Mapping[str, str]


Associations = Mapping[tuple[str, str], Association]  # by account and user


def read(text: str) -> Associations:
    """The lines of ``COMMAND``. Lines that are no association's are passed over."""
    found = {}
    for line in text.splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
        if "Account" not in fields or "UserName" not in fields:
            continue
        user, parent = (fields.get(name, "").partition("(")[0] for name in ("UserName", "ParentAccount"))
        one = Association(fields["Account"], user, parent, fields)
        found[one.account, one.user] = one
    return found


def find(associations: Associations, job: SlurmJob, asked: Mapping[str, float]) -> Limit | None:
    """The limit that its reason speaks of: from its user's association upward, the first that it would pass. ``asked`` by
    TRES: ``cpu``, ``mem`` (MiB), ``node``, ``gres/gpu``.
    """
    of = _OF.get(job.reason)
    if of is None:
        return None
    seen: set[str] = set()
    user, account = job.user, job.account
    while account and (user or account not in seen):
        seen |= set() if user else {account}
        one = associations.get((account, user))
        if one is not None:
            for name, (limit, used) in _amounts(one.fields.get(of[0], ""), of[1]).items():
                more = _asked(asked, name) if of[1] else 1.0
                if limit is not None and (more is None or used + more > limit):
                    return _limit(one, name, limit, used, more if of[1] else None)
        user, account = "", (account if user else one.parent if one is not None else "")
    return None


def _asked(asked: Mapping[str, float], name: str) -> float | None:
    """Of a type of GPU: what is asked of it by name, else of all."""
    return asked.get(name, asked.get(name.partition(":")[0]))


def _amounts(text: str, tres: str) -> dict[str, tuple[float | None, float]]:
    """TRES -> its limit and its use."""
    if not tres:
        match = _ALONE.fullmatch(text)
        return {"": (_number(match[1]), float(match[2] or 0))} if match is not None else {}
    return {
        name: (_number(limit), float(used))
        for name, limit, used in _ENTRY.findall(text)
        if name == tres or (tres.endswith("/") and name.startswith(tres))
    }


def _number(text: str) -> float | None:
    return float(text) if text.isdigit() else None


def _limit(one: Association, name: str, limit: float, used: float, asked: float | None) -> Limit:
    holder = f"{one.user} in account {one.account}" if one.user else f"account {one.account}"
    unit = _MIB if name == "mem" else 1
    return Limit(holder, limit * unit, used * unit, None if asked is None else asked * unit)
