"""What the client knows of kinds: where each one's resources live, and nothing of what they mean."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock.base.errors import Unavailable, from_dict
from penstock.client.sse import messages
from penstock.client.transport import quote

if TYPE_CHECKING:
    from penstock.client.transport import Transport

API = "/api/v1"
PAGE = 500  # the server's largest page
RESUME_PAUSES_S = (
    0.1,
    0.3,
    0.6,
    1.0,
    2.0,
    4.0,
    *(5.0,) * 10,
)  # between the tries to take up a stream again: a restart takes about 1 s, and one by hand is waited for a minute


class Kind(NamedTuple):
    """``plural`` is its part of the path; resources ``in_project`` live below ``/projects/{project}``.

    A list that is not ``paged`` comes whole and takes no ``limit``.
    """

    name: str
    plural: str
    in_project: bool = False
    paged: bool = True


class Resource(dict[str, Any]):
    """A resource as the server wrote it, with the fields that most have at hand."""

    @property
    def kind(self) -> str:
        return str(self.get("kind", ""))

    @property
    def name(self) -> str:
        return str(self.get("name", ""))

    @property
    def project(self) -> str:
        return str(self.get("project") or "")

    @property
    def generation(self) -> int:
        return int(self.get("generation", 0))

    @property
    def spec(self) -> dict[str, Any]:
        return dict(self.get("spec") or {})

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.get("status") or {})

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", ""))

    @property
    def reason(self) -> str:
        return str(self.status.get("reason") or self.get("reason") or "")


class Page(NamedTuple):
    items: list[Resource]
    next_cursor: str | None


class Collection:
    """The resources of one kind. ``project`` is where the names without one of their own are looked up."""

    def __init__(self, transport: Transport, kind: Kind, project: str) -> None:
        self._transport = transport
        self._project = project
        self.kind = kind

    def path(self, name: str | None = None, *rest: str, project: str | None = None) -> str:
        """The path of one resource, of its parts, or of the collection. Names are percent-encoded."""
        parts = [API]
        if self.kind.in_project:
            parts += ["projects", quote(project or self._project)]
        parts.append(self.kind.plural)
        return "/".join([*parts, *(quote(part) for part in (name, *rest) if part is not None)])

    def get(self, name: str, *, project: str | None = None) -> Resource:
        """Raises NotFound."""
        return Resource(self._transport.request("GET", self.path(name, project=project)).json())

    def page(self, *, limit: int = 100, cursor: str | None = None, **filters: Any) -> Page:
        """One page, in the server's order; pass ``next_cursor`` on as ``cursor`` for the next."""
        query = {**filters, "limit": limit, "cursor": cursor} if self.kind.paged else filters
        answer = self._transport.request("GET", f"{API}/{self.kind.plural}", query=query).json()
        return Page([Resource(item) for item in answer["items"]], answer.get("next_cursor"))

    def list(self, *, most: int | None = None, **filters: Any) -> Iterator[Resource]:
        """All resources (the first ``most``) that pass the filters, page by page as they are taken."""
        cursor: str | None = None
        left = most
        while left is None or left > 0:
            items, cursor = self.page(limit=PAGE if left is None else min(PAGE, left), cursor=cursor, **filters)
            yield from items
            left = None if left is None else left - len(items)
            if cursor is None:
                return

    def delete(self, name: str, *, project: str | None = None) -> None:
        self._transport.request("DELETE", self.path(name, project=project))

    def act(self, name: str, verb: str, body: Mapping[str, Any], *, project: str | None = None) -> Resource:
        """POSTs to ``NAME/VERB``. Every verb sets a state that it names, so it may be said twice."""
        answer = post(self._transport, self.path(name, verb, project=project), body, repeatable=True)
        return Resource(answer or {})

    def part(self, name: str, part: str, *, project: str | None = None, **query: Any) -> Any:
        """GETs ``NAME/PART``."""
        return self._transport.request("GET", self.path(name, part, project=project), query=query).json()


def follow(
    transport: Transport,
    path: str,
    *,
    after: str | None = None,
    finished: Callable[[Resource], bool] | None = None,
    query: Mapping[str, Any] | None = None,
) -> Iterator[Resource]:
    """What a stream of server-sent events tells, up to the one that is ``finished``.

    A stream that breaks off (a server that is restarted, say) is taken up again behind the last event. Raises
    Unavailable where that does not succeed, and at once where the stream never began.
    """
    heard, pauses = False, iter(RESUME_PAUSES_S)
    while True:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        try:
            with transport.stream(path, query=query, headers=headers) as stream:
                for message in messages(stream):
                    if message.event == "error":
                        raise from_dict(message.json())
                    heard, pauses, after = True, iter(RESUME_PAUSES_S), message.id or after
                    resource = Resource(message.json())
                    yield resource
                    if finished is not None and finished(resource):
                        return
            broken = Unavailable(f"{transport.address.url} ended the stream {path}")
        except Unavailable as error:
            broken = error
        pause_s = next(pauses, None)
        if pause_s is None or not heard:
            raise broken
        transport.pause(pause_s)
        transport.find_again()


def post(transport: Transport, path: str, body: object, *, key: str | None = None, repeatable: bool = False) -> Any:
    """POSTs JSON; answers the JSON that came back, or None. ``key`` makes a creation repeatable."""
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
    answer = transport.request(
        "POST", path, body=json.dumps(body).encode(), headers=headers, repeatable=repeatable or key is not None
    )
    return answer.json() if answer.body else None


def put(transport: Transport, path: str, body: object) -> Any:
    """PUTs JSON; answers the JSON that came back, or None."""
    answer = transport.request(
        "PUT", path, body=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    return answer.json() if answer.body else None
