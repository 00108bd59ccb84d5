"""What an operator writes about queues, and the frozen ``Setup`` that the planners are given of it.

A document of a queue file is a mapping with any of the keys policy, flavors, cohorts, queues, reservations; of several
documents the lists are put together. Every entry is read for itself, so that a bad one hides nothing of what is wrong
elsewhere, and all of it is told at once with paths and lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import format_memory
from penstock.documents import Path, bounded, read, show, summary, validate
from penstock.scheduling.forms import FORMS, PolicyForm
from penstock.scheduling.models import any_means
from penstock.scheduling.state import Gpu, Policy, Reservation

RESOURCES = ("gpus", "cpus", "memory")  # memory in bytes, cpus in cores
Capacity = Mapping[str, Mapping[str, float]]  # flavor -> resource -> how much the fleet has
SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Quota:
    """Of one resource in one flavor. None: unlimited (borrowing), everything (lending)."""

    nominal: float
    borrowing_limit: float | None = None
    lending_limit: float | None = None


Quotas = Mapping[str, Mapping[str, Quota]]  # flavor -> resource -> quota


@dataclass(frozen=True, slots=True)
class Queue:
    """Where workloads wait. No quotas at all: whatever is free. ``reclaim_after_s``: an idle holder may be evicted then.
    ``max_limit_s``: who states no time limit, or a longer one, is never started (a Slurm partition's MaxTime).
    """

    name: str
    cohort: str | None = None
    quotas: Quotas = field(default_factory=dict)
    weight: float = 1.0
    user_weights: Mapping[str, float] = field(default_factory=dict)
    projects: tuple[str, ...] = ()  # whose jobs go here by default, and whose alone may; none named: anybody's
    reclaim_within_cohort: str = "any"  # never | lower_priority | any
    preempt_within_queue: str = "never"  # never | lower_priority
    reclaim_after_s: float | None = None
    max_limit_s: float | None = None
    qos: float = 0.0  # multifactor: 0..1
    partition: float = 0.0  # multifactor: 0..1, Slurm's PriorityJobFactor over the largest of all partitions
    max_priority: int | None = None  # the highest that a job may state, asked at submission
    engine: str | None = None  # which places its jobs itself; None: the server's own, on which the planners place

    @property
    def limited(self) -> bool:
        return bool(self.quotas)


@dataclass(frozen=True, slots=True)
class Cohort:
    """Queues (and cohorts) that lend to each other what they do not use."""

    name: str
    parent: str | None = None
    quotas: Quotas = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Flavor:
    """A kind of node: by GPU model, by labels, or both. The first flavor that matches a node is its flavor."""

    name: str
    gpu_models: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that an operator decides about scheduling. ``Setup()``: one queue "default" and no quota."""

    policy: Policy = field(default_factory=Policy)
    queues: Mapping[str, Queue] = field(default_factory=lambda: {"default": Queue("default")})
    cohorts: Mapping[str, Cohort] = field(default_factory=dict)
    flavors: Mapping[str, Flavor] = field(default_factory=dict)
    reservations: tuple[Reservation, ...] = ()


def flavor_of(setup: Setup, gpus: Sequence[Gpu], labels: Mapping[str, str] | None = None) -> str:
    """The first flavor that matches; "default" for a node that none does."""
    models = {gpu.model for gpu in gpus}
    has = labels or {}
    for flavor in setup.flavors.values():
        if flavor.gpu_models and not any(any_means(flavor.gpu_models, model) for model in models):
            continue
        if all(has.get(key) == value for key, value in flavor.labels.items()):
            return flavor.name
    return "default"


def beyond(setup: Setup, capacity: Capacity) -> list[str]:
    """Nominal quotas that add up to more than the fleet has, in words."""
    sums: dict[tuple[str, str], float] = {}
    every = [one.quotas for one in setup.queues.values()] + [one.quotas for one in setup.cohorts.values()]
    for quotas in every:
        for flavor, by in quotas.items():
            for resource, quota in by.items():
                sums[flavor, resource] = sums.get((flavor, resource), 0.0) + quota.nominal
    return [
        _promised(flavor, resource, total, has)
        for (flavor, resource), total in sums.items()
        if total > (has := capacity.get(flavor, {}).get(resource, 0.0)) + SLACK
    ]


def _promised(flavor: str, resource: str, total: float, has: float) -> str:
    promised = f"{_amount(resource, total)} {resource} of flavor {flavor} are promised"
    return f"{promised}; the fleet has {_amount(resource, has)}"


# -- a queue file


def parse_setup(text: str, *, path: str = "this file", capacity: Capacity | None = None) -> Setup:
    """The setup that a queue file describes. Raises InvalidInput with everything that is wrong, TooLarge.

    ``path`` names the file in messages. With ``capacity``, nominal quotas may not add up to more than the fleet has.
    """
    found, problems = read(text)
    if not found:
        raise InvalidInput(f"{path} holds no document", details=[Problem("", "write at least one queue", 1)])
    reader = _Reader(problems)
    for index, one in enumerate(found):
        if one is not None:
            reader.document(*one, prefix=f"[{index}]." if len(found) > 1 else "")
    reader.problems += _Checks(reader.items, capacity).all()
    if reader.problems:
        reader.problems.sort(key=lambda problem: problem.line or 0)
        raise InvalidInput(summary(reader.problems, path), details=bounded(reader.problems))
    return _setup(reader)


@dataclass(slots=True)
class Item:
    """One entry of a list. ``form`` is None where it is not what it should be; what it ``says`` may be known all the same."""

    name: str
    form: Any
    path: str
    lines: dict[Path, int]
    says: Mapping[str, Any]
    promises: Any = None  # a form of its quotas, which may be well where something else is not

    def named(self, key: str) -> str | None:
        """The name that it gives for ``key``, as far as it is one."""
        found = self.says.get(key)
        return found if isinstance(found, str) else None

    def problem(self, message: str, *where: str) -> Problem:
        line = next((self.lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in self.lines), None)
        return Problem(f"{self.path}.{show(where)}" if where else self.path, message, line)


@dataclass(slots=True)
class _Reader:
    problems: list[Problem]
    items: dict[str, list[Item]] = field(default_factory=lambda: {kind: [] for kind in FORMS})
    policy: Policy | None = None

    def document(self, value: Any, lines: dict[Path, int], *, prefix: str) -> None:
        if not isinstance(value, dict):
            keys = ", ".join(("policy", *FORMS))
            self.problems.append(Problem(prefix.rstrip("."), f"must be a mapping with {keys}", lines.get(())))
            return
        groups: dict[Path, dict[Path, int]] = {}
        for at, line in lines.items():
            groups.setdefault(at[:1], {})[at[1:]] = line
            groups.setdefault(at[:2], {})[at[2:]] = line
        for key, one in value.items():
            here = groups.get((key,), {})
            if key == "policy":
                self._policy(one, here, prefix)
            elif key not in FORMS:
                self.problems.append(Problem(prefix + show((str(key),)), "is not a field here", here.get(())))
            elif not isinstance(one, list):
                self.problems.append(Problem(prefix + key, "must be a list", here.get(())))
            else:
                for n, entry in enumerate(one):
                    self._entry(key, entry, f"{prefix}{key}[{n}]", groups.get((key, n), {}))

    def _policy(self, value: Any, lines: dict[Path, int], prefix: str) -> None:
        if self.policy is not None:
            self.problems.append(Problem(prefix + "policy", "stands here a second time", lines.get(())))
        form, wrong = validate(PolicyForm, value, lines)
        self.problems += _below(wrong, prefix + "policy")
        self.policy = form.frozen() if form is not None else Policy()

    def _entry(self, kind: str, value: Any, path: str, lines: dict[Path, int]) -> None:
        form, wrong = validate(FORMS[kind], value, lines)
        self.problems += _below(wrong, path)
        if not isinstance(value, dict):
            return
        name = value.get("name")
        if isinstance(name, str) or kind == "queues":  # who has no name is told of all else that is wrong with it too
            item = Item(name if isinstance(name, str) else path, form, path, lines, value, form)
            if form is None and "quotas" in value:
                known = {key: item.named(key) for key in ("cohort", "parent") if item.named(key)}
                item.promises = validate(FORMS[kind], {"name": "any", "quotas": value["quotas"], **known})[0]
            self.items[kind].append(item)


def _below(problems: Iterable[Problem], path: str) -> list[Problem]:
    return [Problem(f"{path}.{p.path}" if p.path else path, p.message, p.line) for p in problems]


class _Checks:
    """What no single entry can know."""

    def __init__(self, items: Mapping[str, list[Item]], capacity: Capacity | None) -> None:
        self.items, self.capacity = items, capacity
        self.cohorts = {item.name: item for item in items["cohorts"]}
        self.flavors = {item.name for item in items["flavors"]} or {"default"}

    def all(self) -> list[Problem]:
        return [
            *self._twins(),
            *self._parents(),
            *self._cycles(),
            *self._quotas(),
            *self._flavors(),
            *self._projects(),
            *self._sums(),
        ]

    def _promises(self, *kinds: str) -> Iterator[tuple[Item, Any]]:
        return ((item, item.promises) for kind in kinds for item in self.items[kind] if item.promises is not None)

    def _twins(self) -> Iterator[Problem]:
        for kinds in (("flavors",), ("cohorts", "queues"), ("reservations",)):
            first: dict[str, Item] = {}
            for item in (item for kind in kinds for item in self.items[kind]):
                other = first.setdefault(item.name, item)
                if other is not item:
                    yield item.problem(f"{item.name!r} is the name of {other.path} already", "name")

    def _parents(self) -> Iterator[Problem]:
        for kind, key in (("cohorts", "parent"), ("queues", "cohort")):
            yield from self._unknown(self.items[kind], key)

    def _unknown(self, items: Iterable[Item], key: str) -> Iterator[Problem]:
        for item in items:
            parent = item.named(key)
            if parent is not None and parent not in self.cohorts:
                yield item.problem(f"there is no cohort {parent!r} in the file{there_are(self.cohorts)}", key)

    def _cycles(self) -> Iterator[Problem]:
        """Each cycle once, at the first of its cohorts."""
        done: set[str] = set()
        for start in self.cohorts:
            seen: list[str] = []
            name: str | None = start
            while name is not None and name not in done and name not in seen:
                seen.append(name)
                item = self.cohorts.get(name)
                name = item.named("parent") if item is not None else None
            if name is not None and name in seen:
                ring = [*seen[seen.index(name) :], name]
                yield self.cohorts[name].problem(f"cohorts go round in a circle: {' -> '.join(ring)}", "parent")
            done.update(seen)

    def _flavors(self) -> Iterator[Problem]:
        for item in (*self.items["cohorts"], *self.items["queues"]):
            said = item.says.get("quotas")
            for flavor in said if isinstance(said, dict) else ():
                if isinstance(flavor, str) and flavor not in self.flavors:
                    yield item.problem(f"there is no flavor {flavor!r}{there_are(self.flavors)}", "quotas", flavor)

    def _quotas(self) -> Iterator[Problem]:
        for item, form in self._promises("cohorts", "queues"):
            queue = hasattr(form, "cohort")
            alone = (form.cohort if queue else form.parent) is None
            for flavor, by in form.quotas.items():
                for resource, quota in by.items():
                    at = ("quotas", flavor, resource)
                    if queue and quota.lending_limit is not None and quota.lending_limit > quota.nominal + SLACK:
                        lent, has = quota.lending_limit, quota.nominal
                        words = f"lends {_amount(resource, lent)}, more than its nominal {_amount(resource, has)}"
                        yield item.problem(words, *at, "lending_limit")
                    for limit in ("borrowing_limit", "lending_limit"):
                        if alone and getattr(quota, limit) is not None:
                            words = "means nothing without a " + ("cohort" if queue else "parent")
                            yield item.problem(words, *at, limit)

    def _projects(self) -> Iterator[Problem]:
        first: dict[str, str] = {}
        for item in self.items["queues"]:
            said = item.says.get("projects")
            for project in (one for one in said if isinstance(one, str)) if isinstance(said, list) else ():
                other = first.setdefault(project, item.name)
                if other != item.name:
                    yield item.problem(f"project {project!r} is in queue {other!r} already", "projects")

    def _sums(self) -> Iterator[Problem]:
        """Nominal quotas against the fleet, told where the sum first passes it."""
        if self.capacity is None:
            return
        sums: dict[tuple[str, str], float] = {}
        for item, form in self._promises("queues", "cohorts"):
            for flavor, by in form.quotas.items():
                for resource, quota in by.items():
                    known = self.capacity.get(flavor, {resource: 0.0})
                    if resource not in known:
                        continue  # a trace's nodes say nothing of their memory, say
                    has = known[resource]
                    before = sums.get((flavor, resource), 0.0)
                    after = sums[flavor, resource] = before + quota.nominal
                    if before <= has + SLACK < after and flavor in self.flavors:
                        words = _promised(flavor, resource, after, has)
                        yield item.problem(f"with this, {words}", "quotas", flavor, resource)


def there_are(names: Iterable[str]) -> str:
    """`` (there are: a, b)``; nothing where there are none."""
    known = sorted(names)
    return f" (there are: {', '.join(known[:10])}{', ...' if len(known) > 10 else ''})" if known else ""


def _amount(resource: str, value: float) -> str:
    return format_memory(value) if resource == "memory" else f"{value:g}"


def _setup(reader: _Reader) -> Setup:
    forms = {kind: [item.form for item in items] for kind, items in reader.items.items()}
    queues = {
        form.name: Queue(
            form.name, form.cohort, _frozen(form.quotas), form.weight, form.user_weights, form.projects,
            form.reclaim_within_cohort, form.preempt_within_queue, form.reclaim_idle_after, form.max_time_limit, form.qos,
            form.partition, form.max_priority, form.engine,
        )
        for form in forms["queues"]
    }  # fmt: skip
    cohorts = {one.name: Cohort(one.name, one.parent, _frozen(one.quotas), one.weight) for one in forms["cohorts"]}
    flavors = {one.name: Flavor(one.name, one.gpu_models, one.labels) for one in forms["flavors"]}
    reservations = tuple(
        Reservation(one.name, one.start, one.end, frozenset(one.nodes), one.maintenance)
        for one in forms["reservations"]
    )
    return Setup(reader.policy or Policy(), queues or Setup().queues, cohorts, flavors, reservations)


def _frozen(quotas: Any) -> Quotas:
    return {
        flavor: {name: Quota(one.nominal, one.borrowing_limit, one.lending_limit) for name, one in by.items()}
        for flavor, by in quotas.items()
    }
