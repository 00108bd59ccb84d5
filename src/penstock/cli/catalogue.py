"""Every verb, in the order of ``penstock --help``: its name, one line of help, and the module that has it.

This table is all that the first help imports; a verb's module is imported when the verb is called.
"""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    name: str
    help: str
    module: str


CATALOGUE: tuple[tuple[str, tuple[Entry, ...]], ...] = (
    (
        "Jobs",
        (
            Entry("run", "run a command as a job, and follow it", "penstock.jobs.commands.run"),
            Entry("apply", "make jobs and services from a YAML file", "penstock.jobs.commands.apply"),
            Entry("get", "list jobs, services, nodes, events, users, ...; or show some", "penstock.cli.get"),
            Entry("describe", "all there is to know of a job, node or service", "penstock.cli.get"),
            Entry("logs", "a job's log, followed live with -f", "penstock.jobs.commands.show"),
            Entry("why", "why a job is as it is, and what would help", "penstock.jobs.commands.show"),
            Entry("cancel", "end jobs", "penstock.jobs.commands.show"),
            Entry("delete", "remove finished jobs", "penstock.jobs.commands.show"),
            Entry("shell", "open a terminal inside a running job", "penstock.jobs.commands.session"),
            Entry("exec", "run a command inside a running job", "penstock.jobs.commands.session"),
            Entry("port-forward", "reach a port inside a running job", "penstock.jobs.commands.session"),
            Entry("goodput", "where a training's wall time went, or the fleet's", "penstock.training.commands"),
            Entry("diagnose", "why a job is slow, hangs or failed, with evidence", "penstock.diagnosis.commands"),
            Entry("causes", "why trainings are slow or fail, and what to do", "penstock.diagnosis.knowledge.commands"),
            Entry("inject", "break something of a job on purpose: game days", "penstock.diagnosis.injecting.commands"),
            Entry("checkpoint", "list, verify, prune, export checkpoints; save now", "penstock.cli.checkpoint"),
            Entry("data", "list, verify, prepare data sets of tokens", "penstock.cli.data"),
        ),
    ),
    (
        "Serving",
        (
            Entry("serve", "serve a model: replicas behind the gateway", "penstock.serving.commands"),
            Entry("rollout", "how a new version comes in, and on what evidence", "penstock.serving.commands"),
            Entry("promote", "give the candidate all traffic now", "penstock.serving.commands"),
            Entry("rollback", "back to the version before", "penstock.serving.commands"),
            Entry("scale", "how many replicas a service has", "penstock.serving.commands"),
            Entry("serving", "API keys, traffic, pickles, replays; delete a service", "penstock.serving.commands"),
        ),
    ),
    (
        "Fleet",
        (
            Entry(
                "queues",
                "quotas, who uses and borrows what, who waits; apply a queue file",
                "penstock.scheduling.commands",
            ),
            Entry(
                "reservations", "keep nodes for some, or for maintenance", "penstock.scheduling.reservation_commands"
            ),
            Entry("engines", "where jobs may run, and what works there; add a Slurm", "penstock.fleet.engine_commands"),
            Entry("nodes", "list nodes: what they have, and what is in use", "penstock.fleet.commands"),
            Entry("health", "what is wrong with nodes, what was done, and why", "penstock.health.commands"),
            Entry("label", "say what nodes are: their rack, their block, anything", "penstock.fleet.commands"),
            Entry("cordon", "place no new jobs on a node", "penstock.fleet.commands"),
            Entry("uncordon", "place jobs on a node again", "penstock.fleet.commands"),
            Entry("drain", "cordon a node and move its jobs elsewhere", "penstock.fleet.commands"),
            Entry("lose", "a drill: as if a node's power went", "penstock.fleet.commands"),
            Entry("restore-node", "end that drill", "penstock.fleet.commands"),
            Entry("telemetry", "files for Prometheus and Grafana", "penstock.telemetry.monitoring.commands"),
            Entry("agent", "on each node: read its telemetry, tell what is wrong", "penstock.telemetry.commands"),
            Entry("provision", "Slurm's files from a fleet file; lint any", "penstock.provisioning.commands"),
        ),
    ),
    (
        "Ledger",
        (
            Entry("events", "what happened, who did it, and why", "penstock.cli.ledger"),
            Entry("audit", "verify or list the ledger", "penstock.cli.ledger"),
            Entry("cost", "what jobs used, and what that cost", "penstock.cost.commands"),
            Entry("budget", "what projects may spend a month", "penstock.cost.commands"),
        ),
    ),
    (
        "Capacity",
        (Entry("capacity", "replay a trace, size a fleet, make up work", "penstock.capacity.commands"),),
    ),
    (
        "Access",
        (
            Entry("project", "make and list projects, and say who may use them", "penstock.tenancy.commands"),
            Entry("user", "make and list users", "penstock.tenancy.commands"),
            Entry("token", "make, list and revoke tokens", "penstock.tenancy.commands"),
        ),
    ),
    (
        "Server",
        (
            Entry("up", "start a server on this machine", "penstock.cli.server"),
            Entry("backup", "write everything the server holds into a file", "penstock.cli.server"),
            Entry("restore", "put a backup in the place of what the server holds", "penstock.cli.server"),
            Entry("doctor", "check the way to the server, the token, the versions", "penstock.cli.about"),
            Entry("version", "show the versions of this program and of the server", "penstock.cli.about"),
        ),
    ),
)

ENTRIES: dict[str, Entry] = {entry.name: entry for _, entries in CATALOGUE for entry in entries}

GLOBAL_OPTIONS: tuple[tuple[str, str], ...] = (
    ("--url URL", "the server (PENSTOCK_URL); default: the data folder's"),
    ("--data-dir DIR", "the data folder (PENSTOCK_DATA_DIR)"),
    ("--project NAME", "the project (PENSTOCK_PROJECT); default: default"),
    ("-o, --output FORMAT", "table, json or yaml"),
    ("--no-color", "no colours (NO_COLOR)"),
    ("-h, --help", "this help, or a verb's"),
)

FIRST_STEPS = """\
First steps:
  penstock up                              # in one shell: a server on this machine
  penstock run --procs 2 -- python train.py
  penstock get"""


def help_text() -> str:
    """``penstock --help``, from this table alone."""
    lines = ["usage: penstock VERB [OPTIONS]", "", "Takes a GPU fleet from racks to served models.", ""]
    for title, entries in CATALOGUE:
        lines += [f"{title}:", *(f"  {entry.name:<14} {entry.help}" for entry in entries), ""]
    lines += ["Options of every verb:", *(f"  {option:<20} {text}" for option, text in GLOBAL_OPTIONS), ""]
    lines += [FIRST_STEPS, "", "`penstock VERB --help` explains a verb, with an example."]
    return "\n".join(lines)
