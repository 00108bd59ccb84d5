"""Runs a service's own comparing function, ``python judge.py MODULE:NAME``, in a process that may crash or hang.

It runs in the service's environment, so it needs nothing but Python's own library: it is a file, not a module of Penstock's.
A line of JSON comes in for each pair of answers, a line goes out. What the function prints goes to standard error.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import resource
import sys
from typing import Any

MEMORY = 4 << 30


def value(told: dict[str, Any]) -> Any:
    """What the function is given of one answer: JSON as its value, other text as text, everything else as bytes."""
    body = base64.b64decode(told["body"])
    kind = told["content_type"]
    if "json" in kind:
        try:
            return json.loads(body)
        except ValueError:
            return body
    return body.decode("utf-8", "replace") if kind.startswith("text/") else body


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.path.insert(0, os.getcwd())
    module, _, name = sys.argv[1].partition(":")
    function = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{sys.argv[1]} is no function")
    for line in sys.stdin:
        told = json.loads(line)
        found = function(value(told["stable"]), value(told["candidate"]))
        agrees, why = (found[0], str(found[1])) if isinstance(found, tuple) and len(found) == 2 else (found, "")
        json.dump({"agrees": bool(agrees), "why": why[:1000]}, answers)
        answers.write("\n")
        answers.flush()


if __name__ == "__main__":
    main()
