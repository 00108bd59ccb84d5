"""``penstock nodes``, and the verbs that change what a node does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput
from penstock.base.quantities import format_memory
from penstock.client.verb import Column, Invocation, Verb
from penstock.fleet.labels import written

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.client.resources import Resource

Node = Mapping[str, Any]
_STYLES = {"Ready": "green", "Cordoned": "yellow", "Draining": "magenta", "Drained": "yellow", "NotReady": "red"}


def state(node: Node, _now: float = 0.0) -> str:
    """Ready, Cordoned, Draining, Drained (by its own site) or NotReady, the worst first."""
    if not node["ready"]:
        return "NotReady"
    if node["cordoned"]:
        return "Draining" if node.get("draining") else "Cordoned"
    return "Drained" if node.get("closed") else "Ready"


def _cpus(node: Node, _now: float = 0.0) -> str:
    return f"{node['allocated']['cpus']:g}/{node['capacity']['cpus']:g}"


def _memory(node: Node, _now: float = 0.0) -> str:
    return f"{format_memory(node['allocated']['memory'])}/{format_memory(node['capacity']['memory'])}"


def _gpus(node: Node, _now: float = 0.0) -> str:
    models = sorted({gpu.get("model") or "" for gpu in node["capacity"]["gpus"]} - {""})
    allocated = node["allocated"]
    counts = f"{allocated.get('gpu_parts', len(allocated['gpus'])):g}/{len(node['capacity']['gpus'])}"
    return f"{counts} {', '.join([*models, *_cut(node)])}".strip()


def _cut(node: Node) -> list[str]:
    """``16 x 3g.40gb``: MIG instances, by profile."""
    found = [one["profile"] for gpu in node["capacity"]["gpus"] for one in gpu.get("mig") or ()]
    return [f"{found.count(profile)} x {profile}" for profile in dict.fromkeys(found)]


def _place(node: Node) -> str:
    """Block and rack."""
    return "/".join(part for part in (node.get("topology") or {}).values() if part) or "-"


def _labels(node: Node) -> str:
    return ", ".join(f"{key}={value}" for key, value in (node.get("labels") or {}).items())


COLUMNS = (
    Column("NAME", lambda node, _: str(node["name"])),
    Column("STATE", state, style=lambda text: _STYLES.get(text, "")),
    Column("CPUS", _cpus, right=True),
    Column("MEMORY", _memory, right=True),
    Column("GPUS", _gpus),
    Column("PLACE", lambda node, _: _place(node)),
    Column("JOBS", lambda node, _: str(len(node.get("jobs") or ())), right=True),
    Column("WHY", lambda node, _: " ".join(str(node.get(key) or "") for key in ("reason", "message")).strip()),
)


ENGINE = Column("ENGINE", lambda node, _: str(node.get("engine") or ""))


def with_engines(nodes: Sequence[Node]) -> Sequence[Column]:
    """With the engine of each where there are several."""
    return (COLUMNS[0], ENGINE, *COLUMNS[1:]) if len({node.get("engine") for node in nodes}) > 1 else COLUMNS


def page(node: Node) -> list[str]:
    """``penstock describe node``."""
    jobs = ", ".join(f"{job['project']}/{job['name']}" for job in node.get("jobs") or ())
    rows = [
        ("Name", node["name"]),
        ("Engine", node.get("engine")),
        ("State", state(node)),
        ("Why", " ".join(str(node.get(key) or "") for key in ("reason", "message")).strip()),
        ("CPUs", f"{_cpus(node)} in use"),
        ("Memory", f"{_memory(node)} in use"),
        ("GPUs", f"{_gpus(node)} in use" if node["capacity"]["gpus"] else ""),
        ("Labels", _labels(node)),
        ("Jobs", jobs),
    ]
    return [f"{name + ':':<14}{value}" for name, value in rows if value]


def _nodes(call: Invocation, _arguments: Namespace) -> int:
    nodes = list(call.client.nodes.list())
    if call.output.format == "table":
        call.output.table(with_engines(nodes), nodes, call.now)
    else:
        call.output.document({"items": nodes})
    return 0


def _change(verb: str) -> Callable[[Invocation, Namespace], int]:
    def run(call: Invocation, arguments: Namespace) -> int:
        act: Callable[..., Resource] = getattr(call.client.nodes, verb)
        more = {"force": True} if getattr(arguments, "force", False) else {}
        changed = [act(name, arguments.reason, **more) for name in arguments.nodes]
        if call.output.format == "table":
            for node in changed:
                call.output.line(f"{node['name']}: {state(node)}")
        else:
            call.output.document(changed[0] if len(changed) == 1 else {"items": changed})
        return 0

    return run


def _label(call: Invocation, arguments: Namespace) -> int:
    changes, names = written(arguments.words)
    if not names or not changes:
        raise InvalidInput(
            "name at least one node and one label", hint="penstock label node-1 node-2 topology/rack=r7 old-"
        )
    nodes = call.client.nodes.label(names, changes)
    if call.output.format == "table":
        for node in nodes:
            call.output.line(f"{node['name']}: {_labels(node) or 'no labels'}")
    else:
        call.output.document({"items": nodes})
    return 0


def _words(parser: ArgumentParser) -> None:
    parser.add_argument("words", nargs="+", metavar="NODE|KEY=VALUE|KEY-", help="nodes, labels, labels to take away")


def _none(parser: ArgumentParser) -> None:
    """`nodes` takes no arguments."""


def _names(parser: ArgumentParser) -> None:
    parser.add_argument("nodes", nargs="+", metavar="NODE")
    parser.add_argument("--reason", metavar="TEXT", help="why, for the ledger")


def _opened(parser: ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("--force", action="store_true", help="though the node's own site (Slurm) has closed it")


VERBS = {
    "nodes": Verb("penstock nodes", _none, _nodes),
    "label": Verb(
        "penstock label node-3 node-4 topology/block=b1 topology/rack=r7\npenstock label node-3 topology/rack-",
        _words,
        _label,
        about="topology/block and topology/rack say where a node stands: jobs can ask to be in one of them.\n"
        "Flavors of a queue file may go by any label. All the nodes are labelled or none.",
    ),
    "cordon": Verb(
        "penstock cordon --reason 'new disk' node-1",
        _names,
        _change("cordon"),
        about="Jobs that run there go on. On a Slurm: state DRAIN, with the reason.",
    ),
    "uncordon": Verb(
        "penstock uncordon node-1",
        _opened,
        _change("uncordon"),
        about="A node that its own site has closed (somebody drained it in Slurm) stays closed without --force.",
    ),
    "drain": Verb(
        "penstock drain --reason 'new disk' node-1",
        _names,
        _change("drain"),
        about="Its jobs are stopped with their grace period and start again elsewhere. On a Slurm: as cordon, and Penstock's own\n"
        "jobs there are stopped; those of others run to their end.",
    ),
    "lose": Verb(
        "penstock lose node-1", _names, _change("lose"), about="For trying out what jobs do when a node dies."
    ),
    "restore-node": Verb("penstock restore-node node-1", _names, _change("restore")),
}
