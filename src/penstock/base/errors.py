"""The one exception tree. Adapters translate foreign errors into these at the seam and chain the cause.

Every leaf carries a stable PascalCase ``code`` (what programs match on), an HTTP ``status``, a process
``exit_code`` and a one-line ``hint`` that says what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with an input: where (``path``, 1-based ``line`` when known) and what."""

    path: str
    message: str
    line: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "message": self.message, "line": self.line}

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.path}: {self.message}" if self.path else f"{where}{self.message}"


class PenstockError(Exception):
    """Base of every error that Penstock raises on purpose."""

    code: ClassVar[str] = "Internal"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    hint: ClassVar[str] = "This is a bug in Penstock: please report it with the server's log."

    def __init__(self, message: str, *, details: Iterable[Problem] = (), hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.advice = hint or self.hint

    def to_dict(self) -> dict[str, Any]:
        """The wire form, sent as ``application/problem+json``."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.advice,
            "details": [problem.to_dict() for problem in self.details],
        }


class InvalidInput(PenstockError):
    code, status, exit_code = "InvalidInput", 422, 2
    hint = "Correct what is named and send it again; nothing was changed."


class NotFound(PenstockError):
    code, status, exit_code = "NotFound", 404, 4
    hint = "Check the name and the project (`penstock get` lists what you can see)."


class Conflict(PenstockError):
    code, status, exit_code = "Conflict", 409, 5
    hint = "Read it again (`penstock get` with -o yaml) and decide on what is there now."


class Unauthenticated(PenstockError):
    code, status, exit_code = "Unauthenticated", 401, 3
    hint = "Give a token: PENSTOCK_TOKEN, or run on the server's machine, where its data folder holds one."


class Forbidden(PenstockError):
    code, status, exit_code = "Forbidden", 403, 3
    hint = "Ask an administrator of the project for a role that may do this."


class Unavailable(PenstockError):
    code, status, exit_code = "Unavailable", 503, 6
    hint = "Start a server with `penstock up`, or name one with --url or PENSTOCK_URL."


class OutOfSpace(PenstockError):
    code, status, exit_code = "OutOfSpace", 507, 7
    hint = "Free space where the data folder lies; the server goes on by itself once there is some."


class TooLarge(PenstockError):
    code, status, exit_code = "TooLarge", 413, 2
    hint = "Send less at once."


class Busy(PenstockError):
    code, status, exit_code = "Busy", 429, 6
    hint = "Try again in a moment."


class EngineFailure(PenstockError):
    code, status, exit_code = "EngineFailure", 502, 8
    hint = "See `penstock events` and the server's log for what the engine said."


class LedgerBroken(PenstockError):
    code, status, exit_code = "LedgerBroken", 500, 9
    hint = "Compare with a backup (`penstock audit verify` names the first bad row)."


LEAVES: tuple[type[PenstockError], ...] = (
    InvalidInput,
    NotFound,
    Conflict,
    Unauthenticated,
    Forbidden,
    Unavailable,
    OutOfSpace,
    TooLarge,
    Busy,
    EngineFailure,
    LedgerBroken,
)


def from_dict(body: Mapping[str, Any]) -> PenstockError:
    """The error that a server described, for the client to raise again; unknown codes become the base class."""
    kind = next((leaf for leaf in LEAVES if leaf.code == body.get("code")), PenstockError)
    details = [
        Problem(str(d.get("path", "")), str(d.get("message", "")), d.get("line")) for d in body.get("details") or ()
    ]
    return kind(str(body.get("message", "unknown error")), details=details, hint=body.get("hint"))
