"""``penstock health``: nodes that are not well, findings with their evidence, the plan, the policy; ack and clear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput
from penstock.base.quantities import format_duration, parse_time
from penstock.client.verb import Column, Invocation, Verb

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

Item = Mapping[str, Any]
_SEVERITY = {"critical": "red", "warning": "yellow"}


def what(finding: Item) -> str:
    """``Xid 79``."""
    return f"{finding['rule']} {finding['code']}".strip()


def _age(at: str | None, now: float) -> str:
    return "-" if at is None else format_duration(max(0, round(now - parse_time(at))))


def _words(finding: Item) -> str:
    return str(finding["message"] or (finding["evidence"] or [""])[-1])


FINDINGS = (
    Column("NODE", lambda item, _: str(item["node"])),
    Column("FINDING", lambda item, _: what(item)),
    Column("DEVICE", lambda item, _: str(item["device"]) or "-"),
    Column("SEVERITY", lambda item, _: str(item["severity"]), style=lambda text: _SEVERITY.get(text, "")),
    Column("STATE", lambda item, _: state(item)),
    Column("TIMES", lambda item, _: str(item["count"]), right=True),
    Column("SEEN", lambda item, now: _age(item["at"], now), right=True),
    Column("BY", lambda item, _: str(item["source"])),
    Column("WHAT", lambda item, _: _words(item)),
)


def state(finding: Item) -> str:
    if not finding["active"]:
        return "ended"
    return f"known to {finding['acked_by']}" if finding["acked_by"] else "active"


def service(node: Item) -> str:
    """``drained`` or ``cordoned`` by Penstock's own doing, cordoned by others, or in service."""
    if node["out_since"] is not None:
        return "drained" if node["draining"] else "cordoned"
    return "cordoned by others" if node["cordoned"] else "in service"


def decisions(node: Item) -> list[str]:
    """What was done, or was not, in words: of those that say more than that it is looked at."""
    told = [one for one in node["decisions"] if one["held"] or one["verb"] != "observe"]
    return [_decision(one) for one in told or node["decisions"]]


def _decision(one: Item) -> str:
    if not one["held"]:
        return f"{one['verb']}: {one['reason']}"
    return f"not done ({one['held']}): {one['verb']}: {one['reason']}"


NODES = (
    Column("NODE", lambda item, _: str(item["node"])),
    Column("SERVICE", lambda item, _: service(item)),
    Column("OUT FOR", lambda item, now: _age(item["out_since"], now), right=True),
    Column("FINDINGS", lambda item, _: ", ".join(dict.fromkeys(what(one) for one in item["findings"])) or "-"),
    Column("WHAT WAS DECIDED", lambda item, _: "; ".join(decisions(item)) or "-"),
)


def whole(one: Item) -> str:
    """What a whole rack has, or another domain."""
    return f"{one['domain']}: {one['what']}: {one['reason']}"


def panel(node: Item) -> list[str]:
    """Of ``penstock describe node``: empty where there is nothing to say."""
    active = [one for one in node["findings"] if one["active"]]
    lines = [f"  {what(one)} on {one['device'] or 'the node'}: {_words(one)} ({state(one)})" for one in active]
    lines += [f"  {words}" for words in decisions(node)]
    lines += [f"  source {name or 'clock'}: {problem}" for name, problem in node["doubts"].items()]
    past = [one for one in node["outages"] if one["ended_at"] is not None]
    lines += [f"  was out {len(past)} times, at last for: {past[0]['reason']}"] if past else []
    return ["Health:", *lines] if lines else []


def _fleet(call: Invocation, _arguments: Namespace) -> int:
    found = call.client.health()
    if call.output.format != "table":
        call.output.document(found)
    elif found["items"]:
        for one in found["shared"]:
            call.output.line(whole(one))
        call.output.table(NODES, found["items"], call.now)
    else:
        call.output.note(f"nothing is known to be wrong with any of {found['nodes']} nodes")
    return 0


def _findings(call: Invocation, arguments: Namespace) -> int:
    items = call.client.findings(node=arguments.node, active=not arguments.all)
    if call.output.format != "table":
        call.output.document({"items": items})
    elif items:
        call.output.table(FINDINGS, items, call.now)
    else:
        call.output.note("no findings")
    return 0


def _plan(call: Invocation, _arguments: Namespace) -> int:
    made = call.client.health_plan()
    if call.output.format != "table":
        call.output.document(made)
        return 0
    for one in made["actions"]:
        call.output.line(f"{one['node']}: {one['verb']}: {one['reason']}")
    for one in made["shared"]:
        call.output.line(whole(one))
    for one in made["held"]:
        call.output.line(f"{one['node']}: not done ({one['why']}): {one['verb']}: {one['reason']}")
    if not made["actions"] and not made["held"]:
        call.output.note("nothing would be done")
    return 0


def _said(verb: str, done: str) -> Callable[[Invocation, Namespace], int]:
    def run(call: Invocation, arguments: Namespace) -> int:
        if not arguments.words:
            raise InvalidInput(f"say of which node: `penstock health {verb} NODE [RULE [CODE]]`")
        node, rule, code = (*arguments.words, "", "")[:3]
        body = {"node": node, "rule": rule, "code": code, "device": arguments.device, "reason": arguments.reason}
        answer = call.client.health_say(verb, {key: value for key, value in body.items() if value})
        if call.output.format != "table":
            call.output.document(answer)
            return 0
        for one in answer["findings"]:
            call.output.line(f"{one['node']}: {what(one)} {one['device']} {done}".replace("  ", " "))
        return 0

    return run


def _policy(call: Invocation, arguments: Namespace) -> int:
    rule, code = _named(arguments.show)
    found = call.client.health_policy(rule, code)
    if call.output.format != "table":
        call.output.document(found)
        return 0
    if arguments.show and not found["rules"]:
        raise InvalidInput(f"{arguments.show!r} is in no rule: what is found of it is only looked at")
    if len(found["rules"]) == 1:
        for line in _rule(found["rules"][0]):
            call.output.line(line)
        return 0
    call.output.line(f"policy {found['version']}")
    for name in ("budget", "breaker", "common", "domain", "trust", "lemon", "escalate"):
        call.output.line(f"{name + ':':<10}" + ", ".join(f"{key} {value:g}" for key, value in found[name].items()))
    call.output.table(_RULES, found["rules"], call.now)
    return 0


def _named(show: str | None) -> tuple[str | None, str | None]:
    """``79`` is an Xid, one of more than four digits an SXid, anything else a rule."""
    if show is None or not show.isdecimal():
        return show, None
    return ("Xid" if len(show) < 5 else "SXid"), show


def _answer(answer: Item | None) -> str:
    if answer is None:
        return "-"
    return str(answer["do"]) + (f", then {answer['advise']}" if answer["advise"] else "")


def _rule(rule: Item) -> list[str]:
    repeat = rule["repeat"]
    rows: Sequence[tuple[str, object]] = (
        ("Rule", f"{what(rule)} {rule['title']}".strip()),
        ("Means", rule["cause"]),
        ("Reaches", rule["scope"]),
        ("Does", _answer(rule["answer"]) + (" (shadow: only told)" if rule["shadow"] else "")),
        ("If fatal", _answer(rule["fatal"]) if rule["fatal"] else ""),
        ("Waits for", f"{rule['after']} within {format_duration(rule['within_s'])}" if rule["after"] > 1 else ""),
        ("Shared", f"{rule['shared']}: of many nodes of one rack it is the rack's" if rule["shared"] else ""),
        ("Must last", format_duration(rule["holds_s"]) if rule["holds_s"] else ""),
        ("Repeated", _repeat(repeat) if repeat else ""),
        ("Returns", _returns(rule) if rule["answer"]["do"] in {"cordon", "drain"} or repeat else ""),
        ("Further", rule["follow_up"]),
        *((f"{name} says", words) for name, words in rule["sources"].items()),
    )
    return [f"{name + ':':<14}{value}" for name, value in rows if value]


def _repeat(repeat: Item) -> str:
    words = f"{repeat['after']} times within {format_duration(repeat['within_s'])} on one device"
    words += f" with {repeat['jobs']} different jobs" if repeat["jobs"] else ""
    many = f"; on {repeat['many']} devices with one project's jobs it is the application" if repeat["many"] else ""
    return f"{_answer(repeat['answer'])}, after {words}{many}"


def _returns(rule: Item) -> str:
    return f"after {format_duration(rule['quiet_s'])} without it" + (", and a check" if rule["check"] else "")


_RULES = (
    Column("RULE", lambda item, _: what(item)),
    Column("NAME", lambda item, _: str(item["title"]) or "-"),
    Column("REACHES", lambda item, _: str(item["scope"])),
    Column("DOES", lambda item, _: _answer(item["answer"])),
    Column("SHADOW", lambda item, _: "yes" if item["shadow"] else "-"),
    Column("SOURCES", lambda item, _: "; ".join(f"{name}: {words}" for name, words in item["sources"].items())),
)


def _check(call: Invocation, arguments: Namespace) -> int:
    """Without names: what came of the last one."""
    node, *names = _of_node("check", arguments)
    found = call.client.check(node, names) if names else call.client.checks(node)
    if call.output.format != "table":
        call.output.document(found)
        return 0
    waiting, last = found.get("waiting"), found.get("last")
    if waiting:
        call.output.line(f"{node} is asked for {', '.join(waiting['checks'])} ({waiting['why']}); its agent tells")
    for words in (last or {}).get("words", {}).values():
        call.output.line(words)
    if not waiting and not last:
        call.output.note(f"{node} was asked for no check yet")
    return 0


def _incidents(call: Invocation, arguments: Namespace) -> int:
    node = _of_node("incidents", arguments)[0]
    items = call.client.incidents(node)
    if call.output.format != "table":
        call.output.document({"items": items})
        return 0
    for one in reversed(items):
        call.output.line(one["markdown"])
    if not items:
        call.output.note(f"the ledger has no incident of {node}")
    return 0


def _evidence(call: Invocation, arguments: Namespace) -> int:
    node = _of_node("evidence", arguments)[0]
    path = arguments.file or f"evidence-{node}.zip"
    body = call.client.evidence(node)
    try:
        with open(path, "xb") as file:
            file.write(body)
    except FileExistsError as error:
        raise InvalidInput(f"{path} is there already", hint="Name another with --file.") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}") from error
    call.output.note(f"{path}: {len(body)} bytes; manifest.json has each file's hash")
    return 0


def _take(call: Invocation, arguments: Namespace) -> int:
    if len(arguments.words) != 1 or not arguments.file:
        raise InvalidInput("say whose, and from where: `penstock health take gpud --file states.json --node node-3`")
    try:
        with open(arguments.file, "rb") as file:
            said = file.read()
    except OSError as error:
        raise InvalidInput(f"{arguments.file} cannot be read: {error.strerror}") from error
    answer = call.client.take_in(arguments.words[0], said, arguments.node or "")
    if call.output.format != "table":
        call.output.document(answer)
        return 0
    call.output.line(f"{answer['findings']} findings, {answer['new']} of them new")
    if answer["unknown_nodes"]:
        call.output.note(f"of nodes that are not here, and left out: {', '.join(answer['unknown_nodes'])}")
    return 0


def _of_node(verb: str, arguments: Namespace) -> list[str]:
    if not arguments.words or (verb != "check" and len(arguments.words) > 1):
        raise InvalidInput(f"say of which node: `penstock health {verb} NODE`")
    return list(arguments.words)


_WHAT: Mapping[str, Callable[[Invocation, Namespace], int]] = {
    "nodes": _fleet,
    "findings": _findings,
    "plan": _plan,
    "ack": _said("ack", "is known: nothing is done about it"),
    "clear": _said("clear", "has ended"),
    "policy": _policy,
    "check": _check,
    "incidents": _incidents,
    "evidence": _evidence,
    "take": _take,
}


def _health(call: Invocation, arguments: Namespace) -> int:
    if arguments.words and arguments.what in {"nodes", "findings", "plan", "policy"}:
        raise InvalidInput(f"`penstock health {arguments.what}` takes no further words: {' '.join(arguments.words)}")
    return _WHAT["plan" if arguments.dry_run else arguments.what](call, arguments)


def _arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("what", nargs="?", default="nodes", choices=tuple(_WHAT), help="default: nodes")
    add(
        "words",
        nargs="*",
        metavar="NODE [RULE [CODE]]",
        help="ack, clear: which findings; check: NODE and which checks; take: which program",
    )
    add("--node", metavar="NODE", help="findings: of this one; take: of findings that name none")
    add("--all", action="store_true", help="findings: those that have ended too")
    add("--device", default="", metavar="DEVICE", help="ack, clear: of this one")
    add("--reason", default="", metavar="TEXT", help="clear: why, for the ledger")
    add("--show", metavar="XID", help="policy: one rule, with what each source says: 79, 20034, LinkFlap")
    add("--file", metavar="FILE", help="take: what that program said; evidence: where the zip goes")
    add("--dry-run", action="store_true", help="what would be done now; the same as `penstock health plan`")


VERBS = {
    "health": Verb(
        "penstock health\n"
        "penstock health findings --node node-3\n"
        "penstock health plan\n"
        "penstock health ack node-3 Xid 63\n"
        "penstock health clear node-3 --reason 'new riser'\n"
        "penstock health policy --show 79\n"
        "penstock health check node-3 clock fio\n"
        "penstock health incidents node-3 > incident.md\n"
        "penstock health evidence node-3\n"
        "penstock health take gpud --file states.json --node node-3",
        _arguments,
        _health,
        about="What agents, checks and programs of others find; what was done about it by the policy, and what was not, and\n"
        "why. `ack`: nothing is to be done until it comes anew. `clear`: it is mended.",
    )
}
