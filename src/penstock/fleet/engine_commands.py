"""``penstock engines``: where jobs may run, what works there, and adding, changing and removing such places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput
from penstock.client.verb import Column, Invocation, Verb
from penstock.engines import kinds

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.client.resources import Resource
    from penstock.engines.adding import Option

_MARKS = {"works": "+", "limited": "~", "not": "-", "unknown": "?"}
_NAMED = 8  # nodes that are named; the document has all
_STYLES = {"yes": "green", "read-only": "", "reachable": "green"}


def reach(engine: Mapping[str, Any], _now: float = 0.0) -> str:
    """``reachable``, or since when it is not."""
    if engine.get("reachable"):
        return "reachable"
    since = engine.get("unknown_since")
    return f"unknown since {since}" if since else "not running"


def count(engine: Mapping[str, Any]) -> str:
    """Of nodes: ``7 of 8`` where one is left out."""
    left = len(engine.get("left_out") or ())
    return f"{engine['offered'] - left} of {engine['offered']}" if left else str(engine.get("nodes", 0))


def missing(engine: Mapping[str, Any]) -> list[str]:
    """Which nodes are left out and why, and below them what would set them apart."""
    by: dict[str, list[str]] = {}
    for one in engine.get("left_out") or ():
        by.setdefault(one["engine"], []).append(one["node"])
    lines = []
    for other, names in by.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        words = "nodes of these names" if len(names) > 1 else "a node of this name"
        lines.append(f"{', '.join(names[:_NAMED])}{more}: engine {other} has {words}")
    name = engine["name"]
    return [*lines, f"`penstock engines set {name} --node-prefix {name}-` sets them apart"] if lines else []


COLUMNS = (
    Column("NAME", lambda row, _: str(row["name"])),
    Column("TYPE", lambda row, _: str(row["type"])),
    Column("WHERE", lambda row, _: str(row.get("where") or "-")),
    Column("VERSION", lambda row, _: str(row.get("version") or "-")),
    Column("MANAGED", lambda row, _: "yes" if row.get("managed") else "read-only"),
    Column("STATE", reach, style=lambda text: _STYLES.get(text, "red")),
    Column("NODES", lambda row, _: count(row), right=True),
    Column("JOBS", lambda row, _: str(row.get("jobs", 0)), right=True),
)


def told(findings: Any) -> list[str]:
    """What works, what does not, and what would change it; a mark in front of each."""
    lines = []
    for one in findings or ():
        lines.append(f"{_MARKS.get(one['verdict'], '?')} {one['topic']}: {one['text']}")
        if one.get("help"):
            lines.append(f"    {one['help']}")
    return lines


def page(engine: Mapping[str, Any]) -> list[str]:
    """``penstock engines show``."""
    options = ", ".join(f"{name}={value}" for name, value in (engine.get("options") or {}).items())
    left = missing(engine)
    rows = [
        ("Name", engine["name"]),
        ("Type", engine["type"]),
        ("Where", engine.get("where")),
        ("Version", engine.get("version")),
        ("Managed", "yes" if engine.get("managed") else "read-only"),
        ("State", reach(engine)),
        ("Nodes", count(engine)),
        *zip(("Left out", *[""] * len(left)), left, strict=False),
        ("Jobs", str(engine.get("jobs", 0))),
        ("Options", options),
        ("Token", "kept" if engine.get("has_token") else ""),
        ("Probed", engine.get("probed_at")),
    ]
    lines = [f"{name + ':' if name else '':<14}{value}" for name, value in rows if value]
    found = told(engine.get("findings"))
    return [*lines, "", "+ works, ~ works with limits, - does not, ? not known:", *found] if found else lines


def _engines(call: Invocation, arguments: Namespace) -> int:
    what = arguments.what or "list"
    return {"list": _list, "show": _show, "add": _add, "probe": _probe, "set": _set, "remove": _remove}[what](
        call, arguments
    )


def _list(call: Invocation, _arguments: Namespace) -> int:
    rows = list(call.client.engines.list())
    if call.output.format == "table":
        call.output.table(COLUMNS, rows, call.now)
    else:
        call.output.document({"items": rows})
    return 0


def _show(call: Invocation, arguments: Namespace) -> int:
    if arguments.probe:
        return _written(call, call.client.engines.look(arguments.name))
    return _written(call, call.client.engines.get(arguments.name))


def _written(call: Invocation, engine: Resource) -> int:
    if call.output.format != "table":
        call.output.document(engine)
        return 0
    for line in page(engine):
        call.output.line(line)
    return 0


def _probe(call: Invocation, arguments: Namespace) -> int:
    body = {"type": arguments.kind, "options": _options(arguments), "managed": bool(arguments.manage)}
    found = call.client.engines.probe(body | _token(arguments))
    if call.output.format != "table":
        call.output.document(found)
        return 0
    call.output.line(f"{found['type']} {found['version']} at {found['where']}")
    for line in told(found["findings"]):
        call.output.line(line)
    call.output.note("nothing was changed, here or there")
    return 0


def _add(call: Invocation, arguments: Namespace) -> int:
    if arguments.dry_run:
        return _probe(call, arguments)
    body = {
        "type": arguments.kind,
        "name": arguments.name,
        "options": _options(arguments),
        "managed": bool(arguments.manage),
        "force": arguments.force,
    }
    code = _written(call, call.client.engines.add(body | _token(arguments)))
    call.output.note(f"engine {arguments.name} was added; jobs ask for it with `engine: {arguments.name}`")
    return code


def _set(call: Invocation, arguments: Namespace) -> int:
    options = _options(arguments) | {name.replace("-", "_"): None for name in arguments.unset or ()}
    body: dict[str, Any] = {"options": options, "force": arguments.force} | _token(arguments)
    if arguments.manage is not None:
        body["managed"] = arguments.manage
    if not options and len(body) == 2:
        raise InvalidInput("nothing to change was named", hint="penstock engines set --help")
    return _written(call, call.client.engines.change(arguments.name, body))


def _remove(call: Invocation, arguments: Namespace) -> int:
    for name in arguments.name:
        call.client.engines.remove(name, force=arguments.force)
        call.output.note(f"engine {name} was removed")
    return 0


def _options(arguments: Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in arguments.known:
        value = getattr(arguments, f"option_{option.name}")
        if value is None:
            continue
        found[option.name] = dict(map(_pair, value)) if option.form == "pairs" else value
    return found


def _pair(text: str) -> tuple[str, str | bool]:
    name, equals, value = text.lstrip("-").partition("=")
    return name, value if equals else True


def _token(arguments: Namespace) -> dict[str, str]:
    if not arguments.token_file:
        return {}
    try:
        with open(arguments.token_file, encoding="ascii") as file:
            text = file.read().strip()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the token cannot be read from {arguments.token_file}: {error}") from error
    return {"token": text.rpartition("=")[2]}  # as `scontrol token` writes it: SLURM_JWT=...


def _configure(parser: ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", metavar="list|add|show|probe|set|remove")
    what.add_parser("list", help="list the engines (this is what no word does)")
    _kinds(what.add_parser("add", help="probe a site and add it as an engine"), adding=True)
    show = what.add_parser("show", help="what an engine is, and what works there")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--probe", action="store_true", help="look at its site anew")
    _kinds(what.add_parser("probe", help="see what a site has; nothing is changed"), adding=False)
    change = what.add_parser("set", help="change an engine")
    change.add_argument("name", metavar="NAME")
    _settings(change, [option for kind in kinds.names() for option in kinds.options(kind)])
    change.add_argument("--unset", action="append", metavar="OPTION", help="take an option away: partition; may repeat")
    change.add_argument("--force", action="store_true", help="though the site does not answer")
    remove = what.add_parser("remove", help="offer an engine no more")
    remove.add_argument("name", nargs="+", metavar="NAME")
    remove.add_argument("--force", action="store_true", help="though jobs run there: they run on, unknown to Penstock")


def _kinds(parser: ArgumentParser, *, adding: bool) -> None:
    """A subcommand for each kind that there is, with that kind's options."""
    each = parser.add_subparsers(dest="kind", required=True, metavar="|".join(kinds.names()))
    for kind in kinds.names():
        one = each.add_parser(kind, help=f"an engine of type {kind}")
        if adding:
            one.add_argument("--name", required=True, metavar="NAME", help="what jobs call it")
            one.add_argument("--dry-run", action="store_true", help="probe, and add nothing")
            one.add_argument("--force", action="store_true", help="though the site does not answer")
        _settings(one, kinds.options(kind))


def _settings(parser: ArgumentParser, options: Any) -> None:
    known: dict[str, Option] = {option.name: option for option in options}
    parser.set_defaults(known=tuple(known.values()))
    for option in known.values():
        _argument(parser, option)
    manage = parser.add_mutually_exclusive_group()
    words = "let Penstock change nodes and quotas there"
    manage.add_argument("--manage", action="store_true", default=None, dest="manage", help=words)
    manage.add_argument(
        "--no-manage", action="store_false", default=None, dest="manage", help="only read (the default)"
    )
    parser.add_argument(
        "--token-file", metavar="FILE", help="what the site wants to be shown; kept on the server in a file"
    )


def _argument(parser: ArgumentParser, option: Option) -> None:
    dest = f"option_{option.name}"
    if option.form == "switch":
        either = parser.add_mutually_exclusive_group()
        plain = {True: option.flag, False: f"--no-{option.flag[2:]}"}
        for value, flag in plain.items():
            words = option.help if value else f"the opposite of {option.flag}"
            action = "store_true" if value else "store_false"
            either.add_argument(flag, action=action, default=None, dest=dest, help=words)
    elif option.form == "pairs":
        parser.add_argument(option.flag, action="append", dest=dest, metavar=option.metavar, help=option.help)
    else:
        parser.add_argument(option.flag, dest=dest, metavar=option.metavar, help=option.help)


VERBS = {
    "engines": Verb(
        "penstock engines\n"
        "penstock engines probe slurm --ssh anna@login1\n"
        "penstock engines add slurm --name c1 --ssh anna@login1 --partition gpu\n"
        "penstock engines set c1 --manage\n"
        "penstock engines remove c1",
        _configure,
        _engines,
        about="Adding an engine looks at its site and says what will and will not work there. Nothing is changed at a site,\n"
        "but for the jobs that are run, until --manage says that nodes and quotas are Penstock's to change.",
    ),
}
