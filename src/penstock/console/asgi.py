"""The console's routes. Thin on purpose: what draws pages (Jinja2, templates, view models) loads at the first page.

Seam with the API (docs/internals.md, "Console"): ``api.asgi.App`` stands in front and checks Host, Origin, session and body
size; ``Gate.ask`` calls the endpoints that programs call, so a page can show nothing that the API would refuse.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from penstock.base.errors import InvalidInput, NotFound, PenstockError, Unauthenticated
from penstock.base.resource import Actor
from penstock.console.gate import Gate
from penstock.console.static import Assets

if TYPE_CHECKING:
    from penstock.console.pages import Pages

__all__ = ["PUBLIC_PATHS", "Gate", "build", "own_path"]

PUBLIC_PATHS = ("/login", "/logout", "/favicon.ico", "/static/")  # what the API lets through without a session
_COOKIE_DAYS = 30
_FORM_BYTES = 65_536
_NODE_VERBS = frozenset({"cordon", "uncordon", "drain"})
_ROLLOUT_VERBS = frozenset({"promote", "rollback"})


def build(gate: Gate) -> list[BaseRoute]:
    """The console's routes. The last one answers whatever nothing else does, so they go to the end of the table."""
    console = _Console(gate)
    page, form = console.page, console.form
    return [
        Route("/static/{stamp}/{path:path}", console.static, methods=["GET", "HEAD"]),
        Route("/favicon.ico", console.favicon, methods=["GET"]),
        Route("/login", console.login_page, methods=["GET"]),
        Route("/login", console.login, methods=["POST"]),
        Route("/logout", console.logout, methods=["POST"]),
        Route("/", page("jobs"), methods=["GET"]),
        Route("/jobs/{project}/{name}", page("job"), methods=["GET"]),
        Route("/jobs/{project}/{name}/diagnosis", page("diagnosis"), methods=["GET"]),
        Route("/jobs/{project}/{name}/cancel", form(console.cancel), methods=["POST"]),
        Route("/jobs/{project}/{name}/save", form(console.save), methods=["POST"]),
        Route("/services", page("services"), methods=["GET"]),
        Route("/services/{project}/{name}", page("service"), methods=["GET"]),
        Route("/services/{project}/{name}/{verb}", form(console.roll), methods=["POST"]),
        Route("/queues", page("queues"), methods=["GET"]),
        Route("/capacity", page("capacity"), methods=["GET"]),
        Route("/capacity", form(console.ask_replay), methods=["POST"]),
        Route("/capacity/{id}", page("replay"), methods=["GET"]),
        Route("/capacity/{id}/remove", form(console.remove_replay), methods=["POST"]),
        Route("/cost", page("cost"), methods=["GET"]),
        Route("/cost/rows", page("cost_rows"), methods=["GET"]),
        Route("/cost/trace", page("cost_trace"), methods=["GET"]),
        Route("/goodput", page("goodput"), methods=["GET"]),
        Route("/nodes", page("nodes"), methods=["GET"]),
        Route("/health", page("health"), methods=["GET"]),
        Route("/nodes/{name}", page("node"), methods=["GET"]),
        Route("/nodes/{name}/{verb}", form(console.change_node), methods=["POST"]),
        Route("/events", page("events"), methods=["GET"]),
        Route("/{path:path}", console.missing, methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]),
    ]


class _Console:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._assets = Assets()
        self._pages: Pages | None = None

    def _draw(self) -> Pages:
        """Loaded late: an idle server that nobody looks at saves Jinja2 and the compiled templates (about 4 MB)."""
        if self._pages is None:
            from penstock.console.pages import Pages  # noqa: PLC0415  # because an idle server saves 4 MB

            self._pages = Pages(self._gate, self._assets)
        return self._pages

    def page(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        async def show(request: Request, actor: Actor) -> Response:
            return await self._draw().show(name, request, actor)

        return self.form(show)

    def form(self, act: Callable[[Request, Actor], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """For the signed in alone; what the API refuses becomes a page that says so."""

        async def answer(request: Request) -> Response:
            actor = self._gate.signed_in(request)
            if actor is None:
                return _to_login(request)
            try:
                return await act(request, actor)
            except Unauthenticated:
                return _to_login(request)
            except PenstockError as error:
                return self._draw().error(request, error, actor)

        return answer

    async def cancel(self, request: Request, actor: Actor) -> Response:
        project, name = (quote(request.path_params[k], safe="") for k in ("project", "name"))
        body = _reason(await _fields(request))
        await self._gate.ask("POST", f"/api/v1/projects/{project}/jobs/{name}/cancel", actor, body=body)
        return RedirectResponse(f"/jobs/{project}/{name}", 303)

    async def save(self, request: Request, actor: Actor) -> Response:
        project, name = (quote(request.path_params[k], safe="") for k in ("project", "name"))
        await self._gate.ask("POST", f"/api/v1/projects/{project}/jobs/{name}/checkpoints/save", actor)
        return RedirectResponse(f"/jobs/{project}/{name}#saves-title", 303)

    async def roll(self, request: Request, actor: Actor) -> Response:
        project, name, verb = (quote(request.path_params[k], safe="") for k in ("project", "name", "verb"))
        if verb not in _ROLLOUT_VERBS:
            raise NotFound(f"services cannot be {verb!r}")
        await self._gate.ask("POST", f"/api/v1/projects/{project}/services/{name}/{verb}", actor)
        return RedirectResponse(f"/services/{project}/{name}", 303)

    async def change_node(self, request: Request, actor: Actor) -> Response:
        name, verb = request.path_params["name"], request.path_params["verb"]
        if verb not in _NODE_VERBS:
            raise NotFound(f"nodes cannot be {verb!r}")
        fields = await _fields(request)
        await self._gate.ask("POST", f"/api/v1/nodes/{quote(name, safe='')}/{verb}", actor, body=_reason(fields))
        back = own_path(fields.get("next", ""))
        return RedirectResponse(back if back.startswith("/nodes") else "/nodes", 303)

    async def ask_replay(self, request: Request, actor: Actor) -> Response:
        found = await self._draw().ask_replay(request, actor, await _fields(request))
        return RedirectResponse(found, 303) if isinstance(found, str) else found

    async def remove_replay(self, request: Request, actor: Actor) -> Response:
        await self._gate.ask("DELETE", f"/api/v1/capacity/replays/{quote(request.path_params['id'], safe='')}", actor)
        return RedirectResponse("/capacity", 303)

    async def login_page(self, request: Request) -> Response:
        return self._draw().login(request)

    async def login(self, request: Request) -> Response:
        fields = await _fields(request)
        after = own_path(fields.get("next", "/"))
        try:
            secret = await self._gate.log_in("".join(fields.get("token", "").split()))
        except Unauthenticated:
            return self._draw().login(request, refused=True, after=after)
        answer = RedirectResponse(after, 303)
        answer.set_cookie(self._gate.cookie, secret, max_age=_COOKIE_DAYS * 86400, **self._cookie_kind())
        return answer

    async def logout(self, request: Request) -> Response:
        secret = request.cookies.get(self._gate.cookie)
        if secret:
            await self._gate.log_out(secret)
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(self._gate.cookie, **self._cookie_kind())
        return answer

    def _cookie_kind(self) -> dict[str, Any]:
        return {"path": "/", "httponly": True, "samesite": "strict", "secure": self._gate.secure}

    async def static(self, request: Request) -> Response:
        found = self._assets.answer(request)
        return found or self._draw().error(request, NotFound("there is no such file"), None)

    async def favicon(self, request: Request) -> Response:
        return RedirectResponse(self._assets.address("favicon.svg"), 308)

    async def missing(self, request: Request) -> Response:
        actor = self._gate.signed_in(request)
        return self._draw().error(request, _no_page(), actor)


def _no_page() -> NotFound:
    return NotFound("There is no page at this address", hint="The menu above leads to all there are.")


def own_path(path: str) -> str:
    """Where to go after login: a path of this server, never another site's address."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if plain else "/"


def _to_login(request: Request) -> Response:
    if request.headers.get("hx-request"):
        return Response(status_code=401, headers={"HX-Redirect": "/login"})
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    after = wanted if request.method == "GET" and wanted != "/" else ""
    return RedirectResponse(f"/login?next={quote(after)}" if after else "/login", 303)


async def _fields(request: Request) -> dict[str, str]:
    """A small urlencoded form (Starlette's own parser needs a further package)."""
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > _FORM_BYTES:
            raise InvalidInput("the form is too large")
    return dict(parse_qsl(raw.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=40))


def _reason(fields: Mapping[str, str]) -> dict[str, str]:
    reason = fields.get("reason", "").strip()[:500]
    return {"reason": reason} if reason else {}
