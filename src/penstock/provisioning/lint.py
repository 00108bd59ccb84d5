"""What is wrong with a folder of Slurm's files, whoever wrote them: file, line, and what to do. Pure.

Each rule is a mistake that has cost somebody a drained node or a daemon that did not start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from penstock.base.text import one_line
from penstock.provisioning import keys
from penstock.provisioning.conf import Read
from penstock.provisioning.hostlist import fold
from penstock.provisioning.site import Counts, GresRecord, Site
from penstock.provisioning.spec import Fleet

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """``line`` is None where something is not there."""

    file: str
    line: int | None
    level: str
    message: str
    help: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.level}: {one_line(self.message, 400)}. {one_line(self.help, 400)}"


def lint(files: Mapping[str, str], fleet: Fleet | None = None) -> list[Finding]:
    """``files``: text by name, of one folder. With ``fleet``, its machines are compared too."""
    site = Site.of(files)
    found = [finding for rule in RULES for finding in rule(site)]
    if fleet is not None:
        found += _inventory(site, fleet)
    for file, line, what in site.unread:
        found.append(Finding(file, line, ERROR, what, "Slurm cannot read it either: correct it"))
    found.sort(key=lambda one: (one.file, one.line or 0, one.message))
    return list(dict.fromkeys(found))


# -- the format


def _format(site: Site) -> Iterator[Finding]:
    if "slurm.conf" not in site.files:
        yield Finding("slurm.conf", None, ERROR, "is not there", "Name the folder that holds it")
    for file, lines in site.lines.items():
        for line in lines:
            for word in line.empty:
                message = f"{word}= has no value: Slurm takes the next word of the line for it"
                yield Finding(file, line.number, ERROR, message, f"Give {word} a value, or leave it out")
            first = line.rest.split(" ", 1)[0]
            if first.lower() == "include" and not line.pairs:
                help_ = "Lint the file that it names together with this one, as one folder"
                yield Finding(file, line.number, WARNING, "an included file is not looked at", help_)
            elif line.rest:
                message = f"{line.rest[:60]!r} is no Key=value: the daemons stop there"
                yield Finding(file, line.number, ERROR, message, "Put quotes around a value with blanks")


def _words(site: Site) -> Iterator[Finding]:
    for file, lines in site.lines.items():
        for line in lines if file in keys.WORDS else ():
            for word, _ in line.pairs:
                if not keys.known(file, word, line.kind):
                    yield _unknown(file, line, word)


def _unknown(file: str, line: Read, word: str) -> Finding:
    if file == "slurm.conf" and word.lower() in keys.OLD:
        starts, help_ = keys.OLD[word.lower()]
        message = f"{word} was taken out of Slurm" + ("" if starts else ": the daemons do not start")
        return Finding(file, line.number, WARNING if starts else ERROR, message, help_)
    near = keys.likest(file, word, line.kind)
    help_ = f"Did you mean {near}?" if near else "Remove it, unless your version of Slurm knows it"
    of = f"a {line.pairs[0][0]} line" if line.kind in keys.WORDS[file] else file
    return Finding(file, line.number, ERROR, f"{word} is no word of {of}", help_)


# -- GPUs


def _gres_nodes(site: Site) -> Iterator[Finding]:
    for record in site.gres:
        if record.nodes is None:
            message = "the line names no nodes: it stands for whichever host reads it, the controller too"
            names = fold(name for name, facts in site.nodes.items() if facts.gres)
            help_ = f"Write NodeName={names or '...'} first, and use one gres.conf on every host"
            yield Finding("gres.conf", record.line, WARNING, message, help_)
        for name in record.nodes or ():
            if name not in site.nodes:
                message = f"{name} is no node of slurm.conf"
                yield Finding("gres.conf", record.line, ERROR, message, "Correct the name, or add the node")
                break


def _gres_types(site: Site) -> Iterator[Finding]:
    types = {word.lower() for word in site.get("GresTypes").split(",") if word}
    for facts in {facts.line: facts for facts in site.nodes.values()}.values():
        for name in dict.fromkeys(name for name, _ in facts.gres):
            if name not in types:
                message = f"Gres={name} is no GresTypes: Slurm refuses such a node"
                yield Finding("slurm.conf", facts.line, ERROR, message, f"Write GresTypes={','.join([*types, name])}")


def _auto(records: list[GresRecord]) -> GresRecord | None:
    """The line that has these nodes' GPUs found, if they are: one that names the nodes counts before one that does not."""
    told = [record for record in records if record.autodetect]
    named = [record for record in told if record.nodes is not None]
    last = (named or told)[-1:]
    return last[0] if last and last[0].autodetect != "off" else None


def _groups(site: Site) -> Iterator[tuple[list[str], list[GresRecord]]]:
    """Nodes of one line that gres.conf says the same of, so that each difference is told once."""
    groups: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    by_node: dict[str, list[GresRecord]] = {}
    common = [record for record in site.gres if record.nodes is None]
    for record in site.gres:
        for node in record.nodes or ():
            by_node.setdefault(node, []).append(record)
    for node, facts in site.nodes.items():
        records = sorted([*common, *by_node.get(node, ())], key=lambda one: one.line)
        groups.setdefault((facts.line, tuple(one.line for one in records)), []).append(node)
    for (_, lines), names in groups.items():
        yield names, [record for record in site.gres if record.line in lines]


def _gres_counts(site: Site) -> Iterator[Finding]:
    for names, records in _groups(site):
        facts = site.nodes[names[0]]
        if not facts.gres and not records:
            continue
        if _auto(records) is not None:
            continue
        found: Counts = {}
        for record in records:
            if record.name:
                key = (record.name, record.type)
                found[key] = found.get(key, 0) + record.total
        # A line that names no nodes may be one host's own: it is held against nodes that have such a thing, as a warning.
        own = any(record.nodes is None for record in records)
        for one in _differences(fold(names), facts.line, facts.gres, found, records):
            yield replace(one, level=WARNING) if own else one


def _differences(names: str, line: int, wanted: Counts, found: Counts, records: list[GresRecord]) -> Iterator[Finding]:
    told = [name for name, _ in wanted] + [record.name for record in records if record.name and record.nodes]
    for name in dict.fromkeys(told):
        want = sum(count for key, count in wanted.items() if key[0] == name)
        have = sum(count for key, count in found.items() if key[0] == name)
        if not records or have == 0:
            message = f"{names} has Gres={name}:{want}, and gres.conf has no line for it: the node will be drained"
            help_ = f"Write NodeName={names} Name={name} ... in gres.conf"
            yield Finding("slurm.conf", line, ERROR, message, help_)
        elif want != have:
            first = next((one.line for one in records if one.name == name), None)
            message = f"{names} has {have} {name} here and {want} in slurm.conf (line {line})"
            low = (
                "the node is drained: gres count reported lower than configured" if have < want else "Slurm uses fewer"
            )
            yield Finding("gres.conf", first, ERROR, f"{message}: {low}", "Make both what the machine has")
        else:
            yield from _types(names, line, name, wanted, found)


def _types(names: str, line: int, name: str, wanted: Counts, found: Counts) -> Iterator[Finding]:
    want = {kind for (each, kind) in wanted if each == name and kind}
    have = {kind for (each, kind) in found if each == name and kind}
    if want and have and want != have:
        message = f"{names} has {name} of type {', '.join(sorted(want))}, and gres.conf says {', '.join(sorted(have))}"
        yield Finding("slurm.conf", line, ERROR, message, "Use one name of the model in both files")


def _gres_cores(site: Site) -> Iterator[Finding]:
    for record in site.gres:
        for name in record.nodes or tuple(site.nodes):
            cores = site.nodes[name].cores if name in site.nodes else None
            if cores is not None and record.cores and max(record.cores) >= cores:
                message = f"Cores has {max(record.cores)}, and {name} has the cores 0 to {cores - 1}"
                help_ = "Slurm counts cores here, not threads: divide what nvidia-smi or lscpu says accordingly"
                yield Finding("gres.conf", record.line, ERROR, message, help_)
                break


def _gres_twice(site: Site) -> Iterator[Finding]:
    for _, records in _groups(site):
        auto = _auto(records)
        for record in records:
            if auto is not None and record.name == "gpu":
                message = f"AutoDetect={auto.autodetect} (line {auto.line}) and Name=gpu are both for these nodes"
                help_ = "Leave one out: GPUs found and GPUs written may be counted twice"
                yield Finding("gres.conf", record.line, ERROR, message, help_)
        files = Counter(file for record in records if record.name == "gpu" for file in record.files)
        for record in records:
            again = next((file for file in record.files if record.name == "gpu" and files[file] > 1), None)
            if again is not None:
                message = f"{again} stands in more than one line for the same nodes"
                yield Finding("gres.conf", record.line, ERROR, message, "Name each device file once")


# -- nodes and partitions


def _nodes(site: Site) -> Iterator[Finding]:
    for name, first, line in site.again:
        message = f"{name} is defined a second time (first in line {first})"
        yield Finding("slurm.conf", line, ERROR, message, "Define each node once")
    for facts in {facts.line: facts for facts in site.nodes.values()}.values():
        cpus, cores, threads = facts.number("cpus", "procs"), facts.cores, facts.number("threadspercore") or 1
        if cpus is not None and cores is not None and cpus not in (cores, cores * threads):
            message = f"CPUs={cpus}, but the sockets have {cores} cores and {cores * threads} threads"
            help_ = "Write what `slurmd -C` says on the node: it is marked invalid otherwise"
            yield Finding("slurm.conf", facts.line, ERROR, message, help_)


def _partitions(site: Site) -> Iterator[Finding]:
    sets = {line.get("NodeSet") for line in site.lines.get("slurm.conf", ()) if line.kind == "nodeset"}
    defaults = [line for line in site.partitions.values() if line.get("Default").upper() == "YES"]
    for line in defaults[1:]:
        message = f"is the default too, as line {defaults[0].number} is"
        yield Finding("slurm.conf", line.number, ERROR, message, "Leave Default=YES to one partition")
    for line in site.partitions.values():
        nodes = line.get("Nodes")
        names = () if nodes.upper() in ("", "ALL") else site.names("slurm.conf", line.number, nodes)
        for name in names:
            if name not in site.nodes and name not in sets:
                message = f"{name} is no node here: slurmctld does not start"
                yield Finding("slurm.conf", line.number, ERROR, message, "Correct the name, or add the node")
                break
        if line.get("AllowAccounts") and "associations" not in site.get("AccountingStorageEnforce").lower():
            message = "AllowAccounts is not held to: AccountingStorageEnforce has no associations"
            yield Finding("slurm.conf", line.number, WARNING, message, "Add associations to AccountingStorageEnforce")


def _one_host(site: Site) -> Iterator[Finding]:
    hosts: dict[str, list[str]] = {}
    for name, facts in site.nodes.items():
        host = facts.words.get("nodehostname", name)
        if "[" not in host:
            hosts.setdefault(host, []).append(name)
    shared = [names for names in hosts.values() if len(names) > 1]
    for word in ("SlurmdSpoolDir", "SlurmdPidFile", "SlurmdLogFile") if shared else ():
        if word.lower() in site.settings and "%n" not in site.get(word):
            message = f"{fold(shared[0])} run on one host and would share {site.get(word)}"
            yield Finding("slurm.conf", site.line(word), ERROR, message, f"Put %n into {word}")


# -- limits, accounting, topology


def _limits(site: Site) -> Iterator[Finding]:
    cgroup = {key.lower(): value for line in site.lines.get("cgroup.conf", ()) for key, value in line.pairs}
    held = cgroup.get("constrainramspace", "no").lower() == "yes"
    by_task = "task/cgroup" in site.get("TaskPlugin").lower()
    if held and by_task and "overmemorykill" in site.get("JobAcctGatherParams").lower().replace("nooverm", ""):
        message = "OverMemoryKill and ConstrainRAMSpace both watch memory: slurmd does not start"
        yield Finding("slurm.conf", site.line("JobAcctGatherParams"), ERROR, message, "Leave OverMemoryKill out")
    if held and not by_task:
        message = "ConstrainRAMSpace has no effect without TaskPlugin=task/cgroup"
        yield Finding("slurm.conf", site.line("TaskPlugin"), WARNING, message, "Add task/cgroup to TaskPlugin")
    selects = site.get("SelectTypeParameters").lower()
    stated = any(word in site.settings for word in ("defmempercpu", "defmempernode", "defmempergpu"))
    if "memory" in selects and not stated:
        message = "memory is allocated, and a job that asks for none is given all of a node's"
        yield Finding("slurm.conf", site.line("SelectTypeParameters"), WARNING, message, "Set DefMemPerCPU")
    if held and selects and "memory" not in selects:
        message = f"ConstrainRAMSpace has no effect with SelectTypeParameters={site.get('SelectTypeParameters')}"
        yield Finding("slurm.conf", site.line("SelectTypeParameters"), WARNING, message, "Use CR_Core_Memory")


def _accounting(site: Site) -> Iterator[Finding]:
    dbd = {
        key.lower(): (value, line.number) for line in site.lines.get("slurmdbd.conf", ()) for key, value in line.pairs
    }
    with_dbd = site.get("AccountingStorageType").lower().endswith("slurmdbd")
    if site.get("AccountingStorageEnforce") and not with_dbd:
        message = "AccountingStorageEnforce has no effect without AccountingStorageType=accounting_storage/slurmdbd"
        yield Finding("slurm.conf", site.line("AccountingStorageEnforce"), ERROR, message, "Set it, or leave this out")
    host, (told, line) = site.get("AccountingStorageHost"), dbd.get("dbdhost", ("", 0))
    if with_dbd and host and told and host not in (told, "localhost") and host != dbd.get("dbdaddr", ("", 0))[0]:
        message = f"DbdHost={told}, and slurm.conf looks for it at {host}"
        yield Finding("slurmdbd.conf", line, WARNING, message, "Name the same host in both")
    if site.get("PreemptType").lower() == "preempt/qos" and not with_dbd:
        message = "PreemptType=preempt/qos needs slurmdbd: there is no QoS without"
        yield Finding(
            "slurm.conf", site.line("PreemptType"), ERROR, message, "Set AccountingStorageType, or another type"
        )


def _topology(site: Site) -> Iterator[Finding]:
    plugin = site.get("TopologyPlugin").lower()
    if "topology.conf" not in site.files:
        if plugin in ("topology/tree", "topology/block") and "topology.yaml" not in site.files:
            message = f"{plugin} needs a topology.conf, and there is none: slurmctld does not start"
            yield Finding("slurm.conf", site.line("TopologyPlugin"), ERROR, message, "Write one, or leave this out")
        return
    if not plugin:
        help_ = "Set TopologyPlugin=topology/tree (or topology/block) in slurm.conf"
        yield Finding("topology.conf", None, WARNING, "is not looked at: TopologyPlugin is not set", help_)
    where: dict[str, tuple[str, int]] = {}
    above: dict[str, int] = {}
    lines = site.lines["topology.conf"]
    switches = {name for line in lines for name in site.names("topology.conf", line.number, line.get("SwitchName"))
                if line.get("SwitchName")}  # fmt: skip
    for line in lines:
        own = line.get("SwitchName") or line.get("BlockName")
        for node in site.names("topology.conf", line.number, line.get("Nodes")) if line.get("Nodes") else ():
            if node not in site.nodes:
                message = f"{node} is no node of slurm.conf"
                yield Finding("topology.conf", line.number, ERROR, message, "Correct the name, or add the node")
            if node in where:
                message = f"{node} is in {where[node][0]} too (line {where[node][1]})"
                yield Finding("topology.conf", line.number, ERROR, message, "Leave each node one leaf")
            where.setdefault(node, (own, line.number))
        for child in site.names("topology.conf", line.number, line.get("Switches")) if line.get("Switches") else ():
            if child not in switches:
                message = f"{child} is no switch here"
                yield Finding("topology.conf", line.number, ERROR, message, "Correct the name, or add the switch")
            if child in above:
                message = f"{child} is below line {above[child]} too"
                yield Finding(
                    "topology.conf", line.number, ERROR, message, "Write spines that all reach the same as one"
                )
            above.setdefault(child, line.number)
    yield from _above(switches, set(above))
    lost = [node for node in site.nodes if node not in where]
    if lost and where:
        message = f"{fold(lost)} is in no leaf: Slurm places nothing there"
        yield Finding("topology.conf", None, ERROR, message, "Add it to the leaf that it is cabled to")


def _above(switches: set[str], below: set[str]) -> Iterator[Finding]:
    roots = sorted(switches - below)
    if len(roots) > 1:
        message = f"{', '.join(roots[:4])} have no switch above that joins them: no job can span them"
        yield Finding("topology.conf", None, WARNING, message, f"Add SwitchName=core Switches={fold(roots)}")


# -- what the machines are


def _inventory(site: Site, fleet: Fleet) -> Iterator[Finding]:
    for pool in fleet.pools:
        wanted = pool.gpus.count if pool.gpus else 0
        by_line: dict[tuple[int, int], list[str]] = {}
        missing = [name for name in pool.nodes if name not in site.nodes]
        if missing:
            message = f"{fold(missing)} of the pool {pool.name} is not there"
            yield Finding("slurm.conf", None, ERROR, message, "Add it, or take it out of the fleet file")
        for name in pool.nodes:
            if name in site.nodes:
                facts = site.nodes[name]
                count = sum(count for key, count in facts.gres.items() if key[0] == "gpu")
                if count != wanted:
                    by_line.setdefault((facts.line, count), []).append(name)
        for (line, count), names in by_line.items():
            message = f"{fold(names)} has {count} GPUs here, and {wanted} in the fleet file"
            yield Finding("slurm.conf", line, ERROR, message, "Make both what the machine has")
    known = set(fleet.nodes)
    strange = [name for name in site.nodes if name not in known]
    if strange:
        message = f"{fold(strange)} is in no pool of the fleet file"
        yield Finding("slurm.conf", site.nodes[strange[0]].line, WARNING, message, "Add it there, or remove it here")


RULES: tuple[Callable[[Site], Iterator[Finding]], ...] = (
    _format,
    _words,
    _gres_nodes,
    _gres_types,
    _gres_counts,
    _gres_cores,
    _gres_twice,
    _nodes,
    _partitions,
    _one_host,
    _limits,
    _accounting,
    _topology,
)
