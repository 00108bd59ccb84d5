"""The one way in which a request is refused: a status that the protocols share, and a message that says what and where."""

from __future__ import annotations


class Refused(Exception):
    """``status`` is HTTP's; gRPC's follows from it. ``retry_after``: seconds after which it may go well."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.retry_after = retry_after


def invalid(message: str) -> Refused:
    return Refused(400, message)


def not_found(message: str) -> Refused:
    return Refused(404, message)


def unavailable(message: str, retry_after: int = 1) -> Refused:
    return Refused(503, message, retry_after=retry_after)
