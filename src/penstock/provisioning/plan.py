"""Fleet file -> Fleet: what one field cannot know of another is asked here, and every error is told at once. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from penstock.base.errors import InvalidInput, Problem
from penstock.documents import Path, bounded, read, show, summary, validate
from penstock.provisioning import keys
from penstock.provisioning.spec import Fleet

Told = tuple[Path, str]


def parse(text: str, file: str = "the fleet file") -> Fleet:
    """Raises InvalidInput with everything that is wrong, each with its line."""
    documents, problems = read(text)
    if len(documents) != 1 and not problems:
        problems.append(Problem("", f"has {len(documents)} documents: a fleet is one"))
    fleet: Fleet | None = None
    if documents and documents[0] is not None and not problems:
        value, lines = documents[0]
        fleet, problems = validate(Fleet, value, lines)
        if fleet is not None:
            problems = [Problem(show(path), message, _line(path, lines)) for path, message in checked(fleet)]
    if problems or fleet is None:
        raise InvalidInput(summary(problems, file), details=bounded(problems))
    return fleet


def _line(path: Path, lines: dict[Path, int]) -> int | None:
    return next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), None)


def checked(fleet: Fleet) -> Iterator[Told]:
    yield from _twice(fleet)
    yield from _unknown_nodes(fleet)
    yield from _addresses(fleet)
    yield from _topology(fleet)
    yield from _wants_accounting(fleet)
    version = fleet.slurm.version
    if version == "22.05":
        yield from _newer(fleet)
    for index, pool in enumerate(fleet.pools):
        if pool.gpus is not None and pool.gpus.autodetect == "nvidia" and version < "24.11":
            yield ("pools", index, "gpus", "autodetect"), f"nvidia needs Slurm 24.11, and slurm.version is {version}"


def _newer(fleet: Fleet) -> Iterator[Told]:
    told: list[tuple[Path, Iterable[str]]] = [(("slurm", "extra"), fleet.slurm.extra)]
    for field in ("pools", "partitions"):
        told += [((field, index, "extra"), one.extra) for index, one in enumerate(getattr(fleet, field))]
    for path, words in told:
        for word in words:
            if word.lower() in keys.NEWER:
                yield (*path, word), "is newer than Slurm 22.05, which does not start on it"


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _twice(fleet: Fleet) -> Iterator[Told]:
    for field in ("pools", "racks", "partitions"):
        for name in _repeated(one.name for one in getattr(fleet, field)):
            yield (field,), f"the name {name} stands there twice"
    seen: dict[str, str] = {}
    for index, pool in enumerate(fleet.pools):
        for name in pool.nodes:
            if name in seen:
                yield ("pools", index, "nodes"), f"{name} is in the pool {seen[name]} too"
                break
            seen[name] = pool.name
    racks: dict[str, str] = {}
    for index, rack in enumerate(fleet.racks):
        both = next((name for name in rack.nodes if name in racks), None)
        if both is not None:
            yield ("racks", index, "nodes"), f"{both} is in the rack {racks[both]} too"
        racks.update(dict.fromkeys(rack.nodes, rack.name))
    if sum(partition.default for partition in fleet.partitions) > 1:
        yield ("partitions",), "more than one is the default"


def _unknown_nodes(fleet: Fleet) -> Iterator[Told]:
    known = set(fleet.nodes)
    told: list[tuple[Path, Iterable[str]]] = [
        (("racks", index, "nodes"), rack.nodes) for index, rack in enumerate(fleet.racks)
    ]
    told += [
        (("partitions", index, "nodes"), one.nodes)
        for index, one in enumerate(fleet.partitions)
        if not isinstance(one.nodes, str)
    ]
    if fleet.topology is not None:
        for index, switch in enumerate(fleet.topology.switches):
            told.append((("topology", "switches", index, "nodes"), switch.nodes or ()))
        for index, block in enumerate(fleet.topology.blocks):
            told.append((("topology", "blocks", index, "nodes"), block.nodes))
    for path, names in told:
        strange = [name for name in names if name not in known]
        if strange:
            more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
            yield path, f"{strange[0]}{more} is in no pool"


def _addresses(fleet: Fleet) -> Iterator[Told]:
    """Two slurmd cannot listen at one port of one host."""
    taken: dict[tuple[str, int], str] = {}
    for index, pool in enumerate(fleet.pools):
        for at, name in enumerate(pool.nodes):
            hosts, ports = pool.hostnames or pool.nodes, pool.port or (fleet.slurm.ports.node,)
            host = hosts[at] if len(hosts) > 1 else hosts[0]
            host = name if pool.hostnames is None else host
            port = ports[at] if len(ports) > 1 else ports[0]
            if (host, port) in taken:
                yield ("pools", index), f"{name} and {taken[host, port]} are both on {host} port {port}"
                break
            taken[host, port] = name
        if pool.addresses is not None and len(pool.addresses) == 1 < len(pool.nodes) and len(pool.port or ()) < 2:
            yield ("pools", index, "addresses"), "is one for all of its nodes, and so is their port"
    if fleet.slurm.ports.controller == fleet.slurm.ports.node:
        yield ("slurm", "ports"), "the controller's and the nodes' are the same"


def _topology(fleet: Fleet) -> Iterator[Told]:
    topology = fleet.topology
    if topology is None:
        return
    if topology.kind == "block":
        yield from _in_one(fleet, [(one.name, one.nodes) for one in topology.blocks], "blocks", "block")
        if fleet.slurm.version < "24.05":
            yield ("topology", "kind"), f"block needs Slurm 24.05, and slurm.version is {fleet.slurm.version}"
        return
    at: Path = ("topology", "switches")
    yield from _in_one(fleet, [(one.name, one.nodes or ()) for one in topology.switches], "switches", "leaf")
    names = [one.name for one in topology.switches]
    for name in _repeated(names):
        yield at, f"the name {name} stands there twice"
    below = {one.name: one.switches or () for one in topology.switches}
    children = [child for each in below.values() for child in each]
    for child in _repeated(children):
        yield at, f"{child} is below more than one switch: write switches that all reach the same as one"
    for child in dict.fromkeys(children):
        if child not in below:
            yield at, f"{child} is below another, and no switch is called so"
    roots = [name for name in names if name not in children]
    if len(roots) != 1:
        what = f"{', '.join(roots[:5])} are at the top" if roots else "the switches are below each other in a ring"
        yield at, f"{what}: one switch must be above all others, or jobs cannot span them"
    elif len(_reached(roots[0], below)) < len(set(names)):
        yield at, "some switches are below each other in a ring"


def _reached(root: str, below: dict[str, tuple[str, ...]]) -> set[str]:
    found: set[str] = set()
    queue = [root]
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            queue += below.get(name, ())
    return found


def _in_one(fleet: Fleet, groups: list[tuple[str, tuple[str, ...]]], field: str, word: str) -> Iterator[Told]:
    where: dict[str, str] = {}
    for index, (name, nodes) in enumerate(groups):
        both = next((node for node in nodes if node in where), None)
        if both is not None:
            yield ("topology", field, index, "nodes"), f"{both} is in the {word} {where[both]} too"
        where.update(dict.fromkeys(nodes, name))
    lost = [node for node in fleet.nodes if node not in where]
    if lost:
        more = f" and {len(lost) - 1} more are" if len(lost) > 1 else " is"
        yield ("topology", field), f"{lost[0]}{more} in no {word}: Slurm would place nothing there"


def _wants_accounting(fleet: Fleet) -> Iterator[Told]:
    if fleet.accounting is not None:
        return
    for index, partition in enumerate(fleet.partitions):
        for field in ("allow_accounts", "allow_qos"):
            if getattr(partition, field):
                yield ("partitions", index, field), "needs `accounting`: Slurm knows no accounts without it"
    if fleet.scheduler.preempt == "qos":
        yield ("scheduler", "preempt"), "qos needs `accounting`: Slurm knows no QoS without it"
