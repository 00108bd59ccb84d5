"""``penstock get`` and ``describe``: any kind, from the rooms' own columns and pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.base.errors import InvalidInput, NotFound, PenstockError
from penstock.client.verb import Column, Invocation, Verb
from penstock.jobs.commands import view
from penstock.training import commands as training

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.client.resources import Collection, Resource

MOST = 100  # jobs and events shown where no --limit is given
_EVENTS_SHOWN = 15  # in `describe`


class Listing(NamedTuple):
    """How one kind is listed: the client's collection, and where its columns are."""

    collection: str
    module: str
    columns: str


LISTINGS = {
    "job": Listing("jobs", "penstock.jobs.commands.view", "COLUMNS"),
    "service": Listing("services", "penstock.serving.terminal", "COLUMNS"),
    "node": Listing("nodes", "penstock.fleet.commands", "COLUMNS"),
    "event": Listing("events", "penstock.cli.ledger", "COLUMNS"),
    "user": Listing("users", "penstock.tenancy.commands", "USERS"),
    "token": Listing("tokens", "penstock.tenancy.commands", "TOKENS"),
    "project": Listing("projects", "penstock.tenancy.commands", "PROJECTS"),
}
_NAMED = ("job", "node", "service")  # kinds of which one can be read by its name
_KINDS = {form: kind for kind in LISTINGS for form in (kind, f"{kind}s")} | {"inferenceservice": "service"}


def _get(call: Invocation, arguments: Namespace) -> int:
    if arguments.limit < 1:
        raise InvalidInput(f"--limit {arguments.limit}: write a number, 1 or more")
    kind, names = _kind_and_names(arguments.what)
    listing = LISTINGS[kind]
    columns: Sequence[Column] = getattr(import_module(listing.module), listing.columns)
    collection: Collection = getattr(call.client, listing.collection)
    if names:
        return _named(call, kind, collection, names, columns)
    rows, more = _rows(call, kind, collection, arguments)
    if call.output.format != "table":
        call.output.document({"items": rows})
        return 0
    columns = _with_engines(kind, columns, rows)
    if kind == "job" and arguments.all_projects:
        columns = (view.PROJECT_COLUMN, *columns)
    if not rows:
        call.output.note(f"no {kind}s" + (f" in project {call.settings.project}" if kind == "job" else ""))
    else:
        call.output.table(columns, rows, call.now)
    if more:
        call.output.note(f"the newest {len(rows)} of more; --limit shows more, --phase or --query fewer")
    return 0


def _rows(call: Invocation, kind: str, collection: Collection, arguments: Namespace) -> tuple[list[Resource], bool]:
    """The rows, and whether there are more."""
    if kind == "event":
        return call.client.events.newest(arguments.limit), False
    if kind == "service":
        project = None if arguments.all_projects else call.settings.project
        return list(collection.list(project=project)), False
    if kind != "job":
        return list(collection.list()), False
    project = None if arguments.all_projects else call.settings.project
    only = {"phase": arguments.phase, "q": arguments.query, "engine": arguments.engine}
    only |= {} if arguments.all else {"replicas": "false"}
    found = list(collection.list(most=arguments.limit + 1, project=project, **only))
    if not found and project is not None and project != "default":
        _must_exist(call, project)
    return found[: arguments.limit], len(found) > arguments.limit


def _with_engines(kind: str, columns: Sequence[Column], rows: Sequence[Resource]) -> Sequence[Column]:
    """With their engine where there are several."""
    if kind == "node":
        found: Sequence[Column] = import_module("penstock.fleet.commands").with_engines(rows)
        return found
    engines = kind == "job" and any(map(view.engine_text, rows))
    return (columns[0], view.ENGINE_COLUMN, *columns[1:]) if engines else columns


def _must_exist(call: Invocation, project: str) -> None:
    """Raises NotFound: an empty list would hide a name that was mistyped."""
    if all(known.name != project for known in call.client.projects.list()):
        raise NotFound(f"there is no project {project!r} that you may see", hint="`penstock get projects` lists them.")


def _named(call: Invocation, kind: str, collection: Collection, names: Sequence[str], columns: Sequence[Column]) -> int:
    if kind not in _NAMED:
        known = {str(row.get("id") or row.get("name")): row for row in collection.list()}
        known |= {str(row.get("name")): row for row in known.values() if row.get("name")}
        missing = [name for name in names if name not in known]
        if missing:
            raise NotFound(f"there is no {kind} {missing[0]!r}")
        found, code = [known[name] for name in names], 0
    else:
        found, code = _each(call, collection, names)
    if call.output.format != "table":
        call.output.document(found[0] if len(names) == 1 else {"items": found})
    elif found:
        call.output.table(_with_engines(kind, columns, found), found, call.now)
    return code


def _each(call: Invocation, collection: Collection, names: Sequence[str]) -> tuple[list[Resource], int]:
    """Those that could be read; of the others it is told why not."""
    found, code = [], 0
    for name in names:
        try:
            found.append(_by_engine(collection, name) if ":" in name else collection.get(name))
        except PenstockError as error:
            if len(names) == 1:
                raise
            call.output.note(f"{name}: {error}")
            code = error.exit_code
    return found, code


def _by_engine(collection: Collection, name: str) -> Resource:
    """``c1:1234``, as engine c1 calls it. Raises NotFound."""
    found = next(iter(collection.list(most=1, q=name)), None)
    if found is None:
        raise NotFound(f"there is no job that its engine calls {name!r}")
    return found


def _describe(call: Invocation, arguments: Namespace) -> int:
    kind, names = _kind_and_names(arguments.what)
    pages: dict[str, Callable[[Invocation, str], dict[str, Any]]] = {
        "job": _whole_job,
        "node": _whole_node,
        "service": _whole_service,
    }
    if kind not in pages or not names:
        raise NotFound("describe takes jobs' names, or `node` or `service` and names", hint="penstock describe --help")
    whole = [pages[kind](call, name) for name in names]
    if call.output.format != "table":
        call.output.document(whole[0] if len(whole) == 1 else {"items": whole})
        return 0
    for number, body in enumerate(whole):
        if number:
            call.output.line()
        {"job": _print_job, "node": _print_node, "service": _print_service}[kind](call, body)
    return 0


def _whole_job(call: Invocation, name: str) -> dict[str, Any]:
    jobs = call.client.jobs
    job = jobs.get(name)
    parts = {"attempts": jobs.attempts(name), "cost": jobs.cost(name), "events": jobs.events(name)}
    return {**job, **parts, "checkpoints": jobs.checkpoints(name), "steps": jobs.steps(name)}


def _whole_node(call: Invocation, name: str) -> dict[str, Any]:
    nodes = call.client.nodes
    return {**nodes.get(name), "telemetry": nodes.telemetry(name), "health": nodes.part(name, "health")}


def _print_job(call: Invocation, body: dict[str, Any]) -> None:
    out = call.output
    for line in view.page(body, call.now):
        out.line(line)
    cost, money = body["cost"], import_module("penstock.cost.commands").money
    out.line(f"{'Cost:':<14}{money(cost['total'])} {cost['currency']}")
    if body["attempts"]:
        out.line("\nAttempts:")
        out.table(view.ATTEMPT_COLUMNS, body["attempts"], call.now)
    for line in import_module("penstock.diagnosis.steps_page").lines(body["steps"]):
        out.line(line)
    training.describe(call, body["checkpoints"])
    events = body["events"]
    if events:
        out.line(
            "\nEvents:" if len(events) <= _EVENTS_SHOWN else f"\nEvents (the last {_EVENTS_SHOWN} of {len(events)}):"
        )
        out.table(view.EVENT_COLUMNS, events[-_EVENTS_SHOWN:], call.now)


def _print_node(call: Invocation, body: dict[str, Any]) -> None:
    for line in import_module("penstock.fleet.commands").page(body):
        call.output.line(line)
    for line in import_module("penstock.telemetry.terminal").lines(body["telemetry"]):
        call.output.line(line)
    for line in import_module("penstock.health.commands").panel(body["health"]):
        call.output.line(line)


def _whole_service(call: Invocation, name: str) -> dict[str, Any]:
    services = call.client.services
    events = call.client.events.newest(_EVENTS_SHOWN, kind="InferenceService", project=call.settings.project, name=name)
    parts: dict[str, Any] = {"rollouts": services.rollouts(name), "traffic": services.traffic(name), "events": events}
    with suppress(PenstockError):  # who may not see what things cost
        parts["cost"] = services.cost(name)
    return {**services.get(name), **parts}


def _print_service(call: Invocation, body: dict[str, Any]) -> None:
    import_module("penstock.serving.terminal").describe(call, body)


def _kind_and_names(words: Sequence[str]) -> tuple[str, list[str]]:
    """``jobs``, ``job a b``, ``node/x``, or names alone, which are jobs'."""
    if not words:
        return "job", []
    kind, slash, name = words[0].partition("/")
    if slash and kind in _KINDS:
        return _KINDS[kind], [name, *words[1:]]
    if words[0] in _KINDS:
        return _KINDS[words[0]], list(words[1:])
    return "job", list(words)


def _get_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="*",
        metavar="KIND|NAME",
        help="jobs (default), services, nodes, events, users, tokens, projects; a kind and names; or jobs' names",
    )
    parser.add_argument("-A", "--all-projects", action="store_true", help="jobs of all projects that you may see")
    parser.add_argument("--all", action="store_true", help="jobs: finished replicas of services too")
    parser.add_argument(
        "--phase", action="append", metavar="PHASE", help="jobs in this phase, or active, or finished; may be repeated"
    )
    parser.add_argument("-q", "--query", metavar="TEXT", help="jobs whose name or user holds this text")
    parser.add_argument("--engine", metavar="NAME", help="jobs on this engine, where it is not the server's own")
    parser.add_argument("-n", "--limit", type=int, default=MOST, metavar="N", help=f"at the most N (default {MOST})")


def _describe_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="+", metavar="NAME", help="jobs' names, or node or service and names (service/digits)"
    )


VERBS = {
    "get": Verb(
        "penstock get\npenstock get jobs --phase active -A\npenstock get digits -o yaml\npenstock get c1:1234\npenstock get nodes -o json",
        _get_arguments,
        _get,
    ),
    "describe": Verb(
        "penstock describe digits\npenstock describe node node-0\npenstock describe service/digits",
        _describe_arguments,
        _describe,
    ),
}
