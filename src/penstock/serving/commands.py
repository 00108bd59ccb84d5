"""``penstock serve``, ``rollout``, ``promote``, ``rollback``, ``scale``, ``serving``: models before callers, and out again."""

from __future__ import annotations

import os
import re
import tempfile
import time
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput
from penstock.client.verb import Invocation, Verb, pairs
from penstock.serving import exporting, rollout_view, terminal
from penstock.serving.replays import arguments as replay

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.client.resources import Resource

_POLL_S = 0.2
_WAIT_S = 600.0
_RESOURCES = ("cpus", "memory", "gpus")
_PLAIN = ("runtime", "engine", "queue", "health")


def _serve_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="a file or folder: ONNX, safetensors, a Triton repository")
    add("--name", metavar="NAME", help="the service's name; default: the model's")
    add("--in-place", action="store_true", help="the nodes read MODEL where it lies, instead of a copy that is carried")
    add(
        "--exporter", metavar="MODULE:FUNCTION", help="MODEL is weights; this builds their torch module: served as ONNX"
    )
    add(
        "--input",
        action="append",
        metavar="NAME:TYPE[SIZES]",
        help="of the exporter: x:float32[1,8,8]; may be repeated",
    )
    add("--runtime", choices=("onnx", "triton", "vllm", "command"), metavar="NAME", help="onnx, triton, vllm, command")
    add("--replicas", type=int, metavar="N", help="so many replicas (default 1)")
    add("--min", type=int, metavar="N", help="scale by load, from N replicas (0: none while nobody asks)")
    add("--max", type=int, metavar="N", help="to N")
    add("--p95", metavar="TIME", help="the objective: 95 of 100 answers within 50ms")
    add("--cpus", metavar="N", help="CPUs of each replica (default 1)")
    add("--memory", metavar="SIZE", help="its memory: 512Mi, 8Gi")
    add("--gpus", type=int, metavar="N", help="its GPUs")
    add("--health", metavar="PATH", help="what a command answers with 200 once it is ready (default /health)")
    add(
        "--strategy",
        choices=("rolling", "blue_green", "canary", "shadow"),
        metavar="NAME",
        help="how a version comes in",
    )
    add("--env", action="append", metavar="NAME=VALUE", help="a variable; may be repeated")
    add("--venv", metavar="DIR", help="the environment that the runtime runs in (default: the server's)")
    add("--api-keys", action="store_true", help="callers show a key (`penstock serving key create NAME`)")
    add("--engine", metavar="NAME", help="the engine to run on (default: the queue's, else this server's own)")
    add("--queue", metavar="NAME", help="the queue that replicas wait in (default: the project's)")
    add("--detach", action="store_true", help="do not wait until a replica is ready")


def _serve(call: Invocation, arguments: Namespace) -> int:
    name = arguments.name or _name_of(arguments.model)
    spec = _spec(call, arguments)
    services = call.client.services
    body = services.create(name, spec)
    if not arguments.detach:
        body = _ready(call, name, body)
    if call.output.format != "table":
        call.output.document(body)
        return 0
    call.output.line(f"service {name}: {body.status['phase'].lower()}, {body.status['url']}")
    if call.output.terminal:
        call.output.note(f"how it is: penstock describe service/{name}    end it: penstock serving delete {name}")
    return 0


def _name_of(model: str | None) -> str:
    if not model:
        raise InvalidInput("the service has no name", hint="Give it one with --name.")
    stem = os.path.basename(os.path.abspath(model)).partition(".")[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:63] or "model"


def _spec(call: Invocation, arguments: Namespace) -> dict[str, Any]:
    if arguments.model is None and not arguments.command:
        raise InvalidInput(
            "no model was given", hint="penstock serve model.onnx, or penstock serve --name x -- COMMAND"
        )
    spec: dict[str, Any] = {name: value for name in _PLAIN if (value := getattr(arguments, name)) is not None}
    if arguments.command:
        spec |= {"command": arguments.command, "runtime": "command"}
    if arguments.model is not None:
        spec |= _model(call, arguments)
    resources = {name: value for name in _RESOURCES if (value := getattr(arguments, name)) is not None}
    scaling = {name: value for name in ("min", "max") if (value := getattr(arguments, name)) is not None}
    scaling |= {"objective": {"p95": arguments.p95}} if arguments.p95 else {}
    if scaling and "max" not in scaling:
        scaling["max"] = max(scaling.get("min", 1), 1)
    parts = {
        "resources": resources,
        "autoscaling": scaling,
        "env": pairs(arguments.env, "--env"),
        "environment": {"venv": os.path.abspath(arguments.venv)} if arguments.venv else {},
        "rollout": {"strategy": arguments.strategy} if arguments.strategy else {},
        "exposed": {"api_keys": True} if arguments.api_keys else {},
    }
    spec |= {name: value for name, value in parts.items() if value}
    return spec if arguments.replicas is None else spec | {"replicas": arguments.replicas}


def _model(call: Invocation, arguments: Namespace) -> dict[str, Any]:
    if arguments.exporter and arguments.in_place:
        raise InvalidInput("--exporter and --in-place exclude each other", hint="What was exported is carried.")
    if arguments.exporter:
        with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
            target = os.path.join(folder, _name_of(arguments.model) + ".onnx")
            venv = call.settings.virtual_env
            parity = exporting.to_onnx(arguments.model, arguments.exporter, arguments.input or (), target, venv)
            call.output.note(
                f"exported: PyTorch and ONNX Runtime are {parity['difference']:.1e} apart at most over {parity['samples']} samples"
            )
            return dict(call.client.services.carry(target, call.settings.snapshot_max_bytes))
    if arguments.in_place:
        return {"model": os.path.abspath(arguments.model)}
    return dict(call.client.services.carry(arguments.model, call.settings.snapshot_max_bytes))


def _ready(call: Invocation, name: str, body: Resource) -> Resource:
    """Wait for a first replica; say why where it does not come."""
    told, until = "", time.monotonic() + _WAIT_S
    while body.phase == "Starting" and time.monotonic() < until:
        time.sleep(_POLL_S)
        body = call.client.services.get(name)
        words = str(body.status["message"])
        if words != told and call.output.format == "table":
            call.output.note(words)
        told = words
        if any(version["failures"] >= 3 for version in body.status["versions"]):
            raise InvalidInput(
                f"service {name} does not come up: {words}", hint=f"penstock describe service/{name}; penstock logs JOB"
            )
    return body


def _rollout_arguments(parser: ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="status|history")
    what.add_parser("status", help="the last rollout, with its evidence").add_argument(
        "name", metavar="NAME", type=_name
    )
    what.add_parser("history", help="all of them, the newest first").add_argument("name", metavar="NAME", type=_name)


def _rollout(call: Invocation, arguments: Namespace) -> int:
    found = call.client.services.rollouts(arguments.name)
    if arguments.what == "status":
        found = found[:1]
    if call.output.format != "table":
        call.output.document(found[0] if arguments.what == "status" and found else {"items": found})
        return 0
    if not found:
        call.output.note(f"{arguments.name} had no rollout yet")
    for one in found:
        rollout_view.show(call, one)
    return 0


def _name(text: str) -> str:
    """``service/digits``, as ``describe`` takes it, is ``digits``."""
    return text.removeprefix("service/").removeprefix("services/")


def _named(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", type=_name)


def _scale_arguments(parser: ArgumentParser) -> None:
    _named(parser)
    parser.add_argument("replicas", type=int, metavar="N")


def _promote(call: Invocation, arguments: Namespace) -> int:
    body = call.client.services.promote(arguments.name)
    version = (body.status["rollout"] or {}).get("candidate", "")
    words = f"{arguments.name}: version {version} goes on to its next step; `penstock rollout status` shows it"
    return _told(call, body, words)


def _rollback(call: Invocation, arguments: Namespace) -> int:
    body = call.client.services.rollback(arguments.name)
    rollout = body.status["rollout"] or {}
    kept = min(rollout.get("stable", 0), rollout.get("candidate", 0))
    return _told(call, body, f"{arguments.name}: back to version {kept}" if kept else f"{arguments.name}: rolled back")


def _scale(call: Invocation, arguments: Namespace) -> int:
    body = call.client.services.scale(arguments.name, arguments.replicas)
    return _told(call, body, f"{arguments.name}: {arguments.replicas} replicas")


def _told(call: Invocation, body: Any, words: str) -> int:
    if call.output.format == "table":
        call.output.line(words)
    else:
        call.output.document(body)
    return 0


def _serving_arguments(parser: ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="traffic|key|pickles|replay|delete")
    what.add_parser("traffic", help="what the gateway counted, by version").add_argument(
        "name", metavar="NAME", type=_name
    )
    key = what.add_parser("key", help="API keys of a service")
    key.add_argument("do", choices=("create", "list", "delete"))
    key.add_argument("name", metavar="NAME", type=_name)
    key.add_argument("key", nargs="?", metavar="KEY", help="the key's name (default: default)")
    pickles = what.add_parser("pickles", help="allow pickled models in a project: reading one runs its code")
    pickles.add_argument("do", choices=("allow", "refuse"))
    replay.configure(what.add_parser("replay", help="run a trace of requests against policies of autoscaling"))
    what.add_parser("delete", help="end a service; its replicas drain").add_argument("name", metavar="NAME", type=_name)


def _serving(call: Invocation, arguments: Namespace) -> int:
    if arguments.what == "replay":
        from penstock.serving.replays import commands  # noqa: PLC0415 - pydantic and the simulator, for this verb alone

        return commands.replay(call, arguments)
    services = call.client.services
    if arguments.what == "delete":
        services.delete(arguments.name)
        return _told(
            call, {"kind": "InferenceService", "name": arguments.name}, f"{arguments.name}: its replicas drain"
        )
    if arguments.what == "pickles":
        body = services.allow_pickles(call.settings.project, allowed=arguments.do == "allow")
        return _told(call, body, f"pickles in {call.settings.project}: {arguments.do}")
    if arguments.what == "key":
        return _key(call, arguments)
    rows = services.traffic(arguments.name)
    if call.output.format == "table":
        terminal.traffic(call, rows)
    else:
        call.output.document({"items": rows})
    return 0


def _key(call: Invocation, arguments: Namespace) -> int:
    services, key = call.client.services, arguments.key or "default"
    if arguments.do == "create":
        made = services.add_key(arguments.name, key)
        if not made["asked_for"] and call.output.format == "table":
            call.output.note(f"{arguments.name} asks nobody for a key: its spec needs `exposed: {{api_keys: true}}`")
        return _told(call, made, str(made["key"]))
    if arguments.do == "delete":
        services.remove_key(arguments.name, key)
        return _told(call, {"name": key}, f"{arguments.name}: key {key} is no more")
    rows = services.keys(arguments.name)
    if call.output.format == "table":
        terminal.keys(call, rows)
    else:
        call.output.document({"items": rows})
    return 0


VERBS = {
    "serve": Verb(
        example="""\
penstock serve model.onnx --name digits
penstock serve model.onnx --name digits --min 0 --max 4 --p95 50ms
penstock serve --name files --health / -- python -m http.server {port}""",
        configure=_serve_arguments,
        run=_serve,
        takes_command=True,
        about="""\
The model is carried to the server, its format is told by its content, and each replica is a job. Callers reach it below
/PROJECT/NAME/ on the gateway. A command behind -- is any HTTP server; {port} and {model} in it are filled in.""",
    ),
    "rollout": Verb("penstock rollout status digits\npenstock rollout history digits", _rollout_arguments, _rollout),
    "promote": Verb("penstock promote digits", _named, _promote),
    "rollback": Verb("penstock rollback digits", _named, _rollback),
    "scale": Verb("penstock scale digits 3", _scale_arguments, _scale),
    "serving": Verb(
        "penstock serving key create digits\npenstock serving traffic digits\npenstock serving delete digits\n"
        "penstock serving replay requests.csv --curve curve.json --policy penstock,kpa,fixed=4 --objective p95=300ms",
        _serving_arguments,
        _serving,
        about="`replay` needs no server: it runs a trace of requests against the very planner that scales services, against "
        "Knative's and Kubernetes' rules, and a fixed number. docs/serving.md says how traces and curves are written.",
    ),
}
