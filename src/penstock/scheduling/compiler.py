"""A queue file -> the accounts, associations and QoS that say the same to a Slurm, and what Slurm cannot be told. Pure.

A cohort is an account, a queue an account under its cohort's, with its weight as shares; a member of a queue's projects
is a user of its account. What a queue or cohort may use at the most (its own, and what it may borrow) is the limit of
its account (GrpTRES), so that Slurm holds a job back exactly where our own planners would. A queue has a QoS where
its priority asks for one, or where it may evict: Slurm evicts by QoS and not by quota, so that only who owns nothing,
and thus borrows all that it holds, can be evicted for who owns something.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from penstock.engines.slurm.accounts import ROOT, Accounting, Key, Kind, limit, nameable
from penstock.scheduling.models import any_means
from penstock.scheduling.spec import Cohort, Flavor, Queue, Quotas, Setup

MIB = 1 << 20
FULL_PRIORITY = 1000  # of a QoS whose queue has 1
Sums = dict[tuple[str, str], float]  # (flavor, resource) -> amount


@dataclass(frozen=True, slots=True)
class Person:
    """A member of projects. ``unix_user`` None: nobody on the cluster."""

    name: str
    unix_user: str | None
    projects: frozenset[str] | None  # None: every one


@dataclass(slots=True)
class Wanted:
    """``why`` says of each entity what it stands for; ``cannot`` is told to whoever compiles."""

    entities: dict[Key, dict[str, str]] = field(default_factory=dict)
    why: dict[Key, str] = field(default_factory=dict)
    cannot: list[str] = field(default_factory=list)


def qos_name(engine: str, queue: str) -> str:
    """QoS are of all clusters of a slurmdbd: the engine's name keeps those of two apart."""
    return f"{engine}-{queue}"


def compiled(setup: Setup, people: Sequence[Person], site: Accounting, engine: str) -> Wanted:
    """What an engine's accounting should hold. Total: what cannot be said is told, and the rest is said."""
    return _Compiler(setup, people, site, engine).all()


class _Compiler:
    def __init__(self, setup: Setup, people: Sequence[Person], site: Accounting, engine: str) -> None:
        self.setup, self.people, self.site, self.engine = setup, people, site, engine
        self.found = Wanted()
        self.tres = {name: self._gpus(flavor) for name, flavor in _flavors(setup).items()}
        weights = [one.weight for one in _everyone(setup)]
        weights += [weight for queue in setup.queues.values() for weight in queue.user_weights.values()]
        self.scale = 1 if all(weight == int(weight) for weight in weights) else 100

    def all(self) -> Wanted:
        for cohort in self.setup.cohorts.values():
            self._account(cohort, cohort.parent, f"cohort {cohort.name}", self._cohort_limits(cohort), {})
        evicts = self._evicts()
        for queue in self.setup.queues.values():
            own = self._qos(queue, evicts)
            if queue.max_limit_s is not None:
                own["max_wall"] = str(int(queue.max_limit_s))
            self._account(queue, queue.cohort, f"queue {queue.name}", _queue_limits(queue), own)
            self._members(queue)
        self._tell()
        return self.found

    # -- accounts and their limits

    def _account(self, one: Queue | Cohort, parent: str | None, what: str, sums: Sums, own: Mapping[str, str]) -> None:
        if one.name == ROOT:
            self.found.cannot.append(f"{what}: the account {ROOT} is above all others in Slurm; give it another name")
            return
        fields = {"parent": parent or ROOT, "fairshare": self._shares(one.weight), **own}
        for (flavor, resource), amount in sorted(sums.items()):
            tres = self._tres(flavor, resource)
            if tres is None:
                self.found.cannot.append(self._untold(what, flavor, resource))
                continue
            before = int(fields.get(limit(tres), "0"))
            fields[limit(tres)] = str(before + int(amount / (MIB if resource == "memory" else 1)))
        key = Key(Kind.ACCOUNT, one.name)
        self.found.entities[key], self.found.why[key] = fields, what

    def _shares(self, weight: float) -> str:
        return str(max(round(weight * self.scale), 1))

    def _cohort_limits(self, cohort: Cohort) -> Sums:
        """All that its subtree owns; with what it may borrow, where it has a parent to borrow from."""
        sums = self._owned(cohort.name)
        if cohort.parent is None:
            return sums
        said = {}
        for (flavor, resource), amount in sums.items():
            quota = cohort.quotas.get(flavor, {}).get(resource)
            if quota is not None and quota.borrowing_limit is not None:
                said[flavor, resource] = amount + quota.borrowing_limit
        return said

    def _owned(self, cohort: str) -> Sums:
        below: list[Sums] = [_nominal(self.setup.cohorts[cohort].quotas)]
        below += [_nominal(queue.quotas) for queue in self.setup.queues.values() if queue.cohort == cohort]
        below += [self._owned(one.name) for one in self.setup.cohorts.values() if one.parent == cohort]
        sums: Sums = {}
        for one in below:
            for at, amount in one.items():
                sums[at] = sums.get(at, 0.0) + amount
        return sums

    def _tres(self, flavor: str, resource: str) -> str | None:
        if resource != "gpus":
            return {"cpus": "cpu", "memory": "mem"}[resource]
        return self.tres.get(flavor)

    def _gpus(self, flavor: Flavor) -> str | None:
        """The TRES of a flavor's GPUs, as far as the site counts it by itself."""
        if "gres/gpu" not in self.site.tres:
            return None
        if len(_flavors(self.setup)) == 1:
            return "gres/gpu"
        kinds = [name for name in sorted(self.site.tres) if name.startswith("gres/gpu:")]
        of = [name for name in kinds if any_means(flavor.gpu_models, name.partition(":")[2])]
        return of[0] if len(of) == 1 else None

    def _untold(self, what: str, flavor: str, resource: str) -> str:
        if "gres/gpu" not in self.site.tres:
            return f"{what}: its quota of GPUs: the site does not count them (AccountingStorageTRES=gres/gpu)"
        return (
            f"{what}: its quota of {resource} of flavor {flavor}: Slurm counts by the type of GPU, and no one type that the "
            "site counts (AccountingStorageTRES=gres/gpu:TYPE) is this flavor's"
        )

    # -- users

    def _members(self, queue: Queue) -> None:
        if Key(Kind.ACCOUNT, queue.name) not in self.found.entities:
            return
        shares: dict[str, float] = {}
        for person in self.people:
            if person.projects is not None and queue.projects and not person.projects & set(queue.projects):
                continue
            if person.projects is not None and not queue.projects and not person.projects:
                continue
            name = person.unix_user
            if name is not None and nameable(name):
                shares[name] = max(shares.get(name, 0.0), queue.user_weights.get(person.name, 1.0))
        for name, weight in sorted(shares.items()):
            key = Key(Kind.USER, name, queue.name)
            self.found.entities[key] = {"fairshare": self._shares(weight)}
            self.found.why[key] = f"may use queue {queue.name}"

    # -- QoS

    def _evicts(self) -> dict[str, list[str]]:
        """queue -> the queues whose jobs may be evicted for it, exactly: all that they hold is borrowed."""
        if not self.setup.policy.preemption:
            return {}
        lenders = [one for one in self.setup.queues.values() if one.cohort and sum(_nominal(one.quotas).values())]
        poor = [one for one in self.setup.queues.values() if one.cohort and not sum(_nominal(one.quotas).values())]
        found = {
            queue.name: [one.name for one in poor if self._root(one.cohort) == self._root(queue.cohort)]
            for queue in lenders
            if queue.reclaim_within_cohort == "any"
        }
        return {name: victims for name, victims in found.items() if victims}

    def _root(self, cohort: str | None) -> str | None:
        while cohort is not None and (parent := self.setup.cohorts[cohort].parent) is not None:
            cohort = parent
        return cohort

    def _qos(self, queue: Queue, evicts: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Its QoS, if it needs one; what its account says of it."""
        victims = evicts.get(queue.name, ())
        if not queue.qos and not victims and not any(queue.name in names for names in evicts.values()):
            return {}
        if queue.name == ROOT:
            return {}
        key = Key(Kind.QOS, qos_name(self.engine, queue.name))
        preempt = ",".join(sorted(qos_name(self.engine, name) for name in victims))
        fields = {"priority": str(round(queue.qos * FULL_PRIORITY)) if queue.qos else "", "preempt": preempt}
        self.found.entities[key] = {name: value for name, value in fields.items() if value}
        self.found.why[key] = f"priority and eviction of queue {queue.name}"
        return {"qos": key.name}

    # -- what Slurm cannot be told

    def _tell(self) -> None:
        tell, site = self.found.cannot.append, self.site
        if not site.enforce & {"limits", "safe"}:
            tell("limits: the site records them and does not hold jobs to them (AccountingStorageEnforce=limits)")
        if not site.enforce & {"associations", "limits", "qos", "safe"}:
            tell(
                "who may use a queue: the site lets everybody name any account (AccountingStorageEnforce=associations)"
            )
        if not site.priority.endswith("multifactor"):
            tell("weights and priorities: the site starts jobs in their order (PriorityType=priority/multifactor)")
        evicting = any(key.kind is Kind.QOS and "preempt" in fields for key, fields in self.found.entities.items())
        if evicting and not site.preempt.endswith("qos"):
            tell("eviction between queues: the site does not evict by QoS (PreemptType=preempt/qos)")
        self.found.cannot += _of_queues(self.setup)
        self.found.cannot += _of_policy(self.setup)
        if any(name.startswith(limit("gres/gpu:")) for fields in self.found.entities.values() for name in fields):
            tell("limits of one type of GPU hold only jobs that name the type (--gres=gpu:TYPE:4)")
        nobody = sorted({one.name for one in self.people if one.unix_user is None or not nameable(one.unix_user)})
        if nobody:
            tell(f"users without a Unix name, who can have no account: {', '.join(nobody)}")
        if self.scale > 1:
            tell("weights: shares are whole numbers in Slurm; ours are taken to the hundredth")


def _everyone(setup: Setup) -> list[Queue | Cohort]:
    return [*setup.queues.values(), *setup.cohorts.values()]


def _flavors(setup: Setup) -> Mapping[str, Flavor]:
    return setup.flavors or {"default": Flavor("default")}


def _nominal(quotas: Quotas) -> Sums:
    return {(flavor, resource): quota.nominal for flavor, by in quotas.items() for resource, quota in by.items()}


def _queue_limits(queue: Queue) -> Sums:
    """Its own; in a cohort with what it may borrow, and no limit of its own where that is unlimited."""
    said: Sums = {}
    for flavor, by in queue.quotas.items():
        for resource, quota in by.items():
            if queue.cohort is None:
                said[flavor, resource] = quota.nominal
            elif quota.borrowing_limit is not None:
                said[flavor, resource] = quota.nominal + quota.borrowing_limit
    return said


def _of_queues(setup: Setup) -> Iterable[str]:
    everyone = _everyone(setup)
    lending = [
        one.name
        for one in everyone
        if any(quota.lending_limit is not None for by in one.quotas.values() for quota in by.values())
    ]
    if lending:
        yield f"lending limits of {', '.join(lending)}: accounts under one parent lend all that they do not use"
    owners = [one.name for one in setup.queues.values() if one.cohort and one.quotas and setup.policy.preemption]
    if owners:
        yield (
            f"what {', '.join(owners)} lent comes back when the borrowers' jobs end: Slurm evicts by QoS, not by quota "
            "(only who owns nothing is evicted for who does)"
        )
    several = {flavor for one in everyone for flavor, by in one.quotas.items() if by.keys() & {"cpus", "memory"}}
    if len(several) > 1:
        yield "quotas of CPUs and memory by flavor: Slurm counts those of all nodes together; the sums are the limits"
    for one in setup.queues.values():
        for said, what in (
            (one.preempt_within_queue != "never", "evicting by priority within the queue"),
            (one.reclaim_after_s is not None, "evicting who is idle (reclaim_idle_after)"),
            (bool(one.partition), "its part of the priority by partition: partitions are the site's own"),
        ):
            if said:
                yield f"queue {one.name}: {what}"


def _of_policy(setup: Setup) -> Iterable[str]:
    policy = setup.policy
    if policy.order == "sjf":
        yield "the order by the shortest estimate: Slurm has none"
    if policy.backfill == "conservative":
        yield "conservative backfill: Slurm promises starts to as many as it looks at (bf_max_job_test), not to all"
    if setup.reservations:
        names = ", ".join(one.name for one in setup.reservations)
        yield f"reservations {names}: make them with `scontrol create reservation`"
