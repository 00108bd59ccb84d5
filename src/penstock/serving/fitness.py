"""Whether a runtime serves a model: asked when a service is made, and by each replica before it starts one."""

from __future__ import annotations

from penstock.base.errors import Problem
from penstock.serving.formats import Found
from penstock.serving.runtimes.known import default_for, runtime
from penstock.serving.runtimes.spec import Format, Options

WAIVE = "an administrator may waive that with `penstock serving pickles allow`"


def fit(found: Found | None, named: str | None, options: Options, *, pickles: bool) -> tuple[str, list[Problem]]:
    """The runtime's name, and what speaks against it. ``found`` None: there is no model, but a command. ``named``: the runtime
    that the service asks for. ``pickles``: its project waives their refusal.
    """
    if found is None:
        name = named or "command"
        return name, runtime(name).validate(options, None)
    if found.format is Format.PICKLE and not pickles:
        words = f"is a pickle ({found.why}), and reading it runs its code: export it to ONNX or safetensors, or {WAIVE}"
        return "", [Problem("model", words)]
    chosen = named or default_for(found.format, options.command)
    if found.format is Format.UNKNOWN and chosen != "command":
        return "", [Problem("model", f"cannot be served: {found.why}")]
    if chosen is None:
        weights = found.format is Format.SAFETENSORS
        more = "`penstock serve --exporter` makes ONNX of weights" if weights else "`runtime` names one"
        return "", [Problem("model", f"is served by no runtime here ({found.why or found.format}): {more}")]
    return chosen, runtime(chosen).validate(options, found.format)
