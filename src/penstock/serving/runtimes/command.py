"""Any HTTP server: TGI, SGLang, a user's own. It is ready when its health path answers 200."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from penstock.base.errors import Problem
from penstock.serving.runtimes.spec import Format, Launch, Load, Model, Options, Ports, Request, Speaks


class Command:
    """``{port}``, ``{grpc_port}``, ``{host}`` and ``{model}`` in the command are filled in. Nothing is known of what it answers:
    that its health path answers is its warm-up.
    """

    name: ClassVar[str] = "command"
    speaks: ClassVar[frozenset[Speaks]] = frozenset({"http"})
    formats: ClassVar[frozenset[Format]] = frozenset()
    grpc: ClassVar[bool] = False
    grace: ClassVar[float] = 30.0

    def __init__(self, health: str = "/health") -> None:
        self._health = health

    def validate(self, options: Options, found: Format | None) -> list[Problem]:
        wrong = [] if options.command else [Problem("command", "say what the runtime `command` is to run")]
        if options.command and not any("{port}" in word for word in options.command):
            wrong.append(Problem("command", "must say {port}: the port that it is to listen at"))
        return wrong

    def launch(self, model: Model | None, options: Options, ports: Ports, folder: str) -> Launch:
        filled = {
            "{port}": str(ports.http),
            "{grpc_port}": str(ports.grpc),
            "{metrics_port}": str(ports.metrics),
            "{host}": ports.host,
            "{model}": model.path if model is not None else "",
        }
        return Launch(tuple(_fill(word, filled) for word in (*options.command, *options.args)), options.env)

    def ready(self, model: Model | None) -> Request:
        return Request("GET", self._health)

    def warming(self, model: Model | None, described: Mapping[str, object]) -> Request | None:
        return None

    def describe(self, model: Model | None) -> Request | None:
        return None

    def load(self, page: str) -> Load:
        return Load()

    def metrics(self) -> Request | None:
        return None


def _fill(word: str, filled: Mapping[str, str]) -> str:
    for name, value in filled.items():
        word = word.replace(name, value)
    return word
