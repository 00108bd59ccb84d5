"""What the activator and the comparator are told of one service: a small file that the server replaces in one rename.

They outlive the server, so nothing is pushed to them: whichever of the three starts again finds the files as they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from penstock.serving.gateway.spec import Backend
from penstock.serving.state import WHOLE

FORMAT = 1
SERVICE_HEADER = "x-penstock-service"  # the gateway sets it, to PROJECT/NAME, on what it sends to the activator
VERSION_HEADER = "x-penstock-version"  # likewise: the version that the request was routed to
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def named(service: str) -> tuple[str, str] | None:
    """Project and name of PROJECT/NAME, as a header says it; None for what can be neither, and no path."""
    project, _, name = service.partition("/")
    return (project, name) if _NAME.fullmatch(project) and _NAME.fullmatch(name) else None


@dataclass(frozen=True, slots=True)
class Function:
    """A service's own judge of two answers, ``module:name``, importable in ``folder`` with ``python``. It runs as ``user``
    (uid, gid) where the comparator is root's; a comparator of root's without one refuses to run it.
    """

    target: str
    folder: str
    python: str
    user: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Shadow:
    """``share`` of WHOLE of what the stable version was asked is asked again of the candidate."""

    stable: int
    candidate: int
    share: int = WHOLE
    how: Literal["exact", "tolerance", "top1", "function"] = "tolerance"
    tolerance: float = 1e-3
    function: Function | None = None


@dataclass(frozen=True, slots=True)
class Orders:
    """``versions``: the replicas of each that are READY; a version that is not named does not exist. ``timeout``: of one
    answer, once it was sent to a replica. ``concurrency``: in one replica, of requests that were held.
    """

    project: str
    name: str
    versions: dict[int, tuple[Backend, ...]] = field(default_factory=dict)
    hold_requests: int = 1000
    hold_time: float = 60.0
    timeout: float = 60.0
    concurrency: int = 32
    max_body: int = 64 << 20
    shadow: Shadow | None = None

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Orders:
        """Raises ValueError for anything else."""
        try:
            body: dict[str, Any] = json.loads(text)
            body.pop("format")
            versions = {int(key): tuple(Backend(**one) for one in value) for key, value in body.pop("versions").items()}
            shadow = body.pop("shadow")
            return cls(**body, versions=versions, shadow=None if shadow is None else _shadow(shadow))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are no orders: {error!r}") from error


def _shadow(body: dict[str, Any]) -> Shadow:
    function = body.pop("function")
    if function is not None:
        user = function.pop("user")
        function = Function(**function, user=None if user is None else (user[0], user[1]))
    return Shadow(**body, function=function)


class Folder:
    """Where they lie: ``<folder>/PROJECT/NAME.json``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def put(self, orders: Orders) -> None:
        home = self.path / orders.project
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = home / f".{orders.name}.new"
        draft.write_text(orders.to_json())
        draft.replace(home / f"{orders.name}.json")

    def drop(self, project: str, name: str) -> None:
        """The service is no more."""
        (self.path / project / f"{name}.json").unlink(missing_ok=True)

    def stamp(self, project: str, name: str) -> tuple[int, int] | None:
        """Changes with every ``put``; None where there are no orders."""
        try:
            found = (self.path / project / f"{name}.json").stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_mtime_ns, found.st_ino

    def get(self, project: str, name: str) -> Orders | None:
        try:
            return Orders.from_json((self.path / project / f"{name}.json").read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def names(self) -> Iterator[tuple[str, str]]:
        for path in sorted(self.path.glob("*/*.json")):
            yield path.parent.name, path.stem
