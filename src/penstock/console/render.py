"""Templates and what they write with: every value that a template prints is sanitized, then escaped."""

from __future__ import annotations

import gzip
import hashlib
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from penstock.base.quantities import format_duration, format_memory, parse_time
from penstock.base.text import sanitize
from penstock.console.static import Assets

_SECURITY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "HX-Request, Cookie",
}
THEMES = ("light", "dark")


class Renderer:
    def __init__(self, assets: Assets) -> None:
        env = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_harmless,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        env.globals |= {"asset": assets.address, "span": span, "link": link}
        env.filters |= {
            "ago": ago,
            "until": until,
            "num": number,
            "count": count,
            "duration": duration,
            "money": money,
            "memory": format_memory,
            "ticked": ticked,
            "segment": lambda text: quote(str(text), safe=""),
        }
        self._env = env

    def text(self, template: str, context: Mapping[str, Any]) -> str:
        return self._env.get_template(template).render(context)

    def respond(
        self, request: Request, template: str, context: Mapping[str, Any], *, status: int = 200, part: str | None = None
    ) -> Response:
        """The whole page, or where the page refreshes itself (htmx) only ``part``: 204 when it has not changed."""
        theme = request.cookies.get("penstock_theme", "")
        shared = {"theme": theme if theme in THEMES else "", "path": request.url.path, "now": time.time()}
        headers = dict(_SECURITY)
        if part and request.headers.get("hx-request"):
            body = self.text(part, {**shared, **context, "whole": False}).encode()
            rev = hashlib.blake2b(body, digest_size=9).hexdigest()
            headers["Penstock-Rev"] = rev
            if request.headers.get("penstock-seen") == rev:
                return Response(status_code=204, headers=headers)
        else:
            body = self.text(template, {**shared, **context, "whole": True}).encode()
        if len(body) > 1400 and "gzip" in request.headers.get("accept-encoding", ""):
            body = gzip.compress(body, 3, mtime=0)
            headers["Content-Encoding"] = "gzip"
        return Response(body, status, media_type="text/html", headers=headers)


def _harmless(value: Any) -> Any:
    return sanitize(value) if type(value) is str else value


def ticked(text: str) -> Markup:
    """``backticks`` around commands become <code>; everything else is text."""
    parts = sanitize(str(text)).split("`")
    if len(parts) % 2 == 0:
        parts[-2:] = ["`".join(parts[-2:])]
    return Markup("").join(Markup("<code>{}</code>").format(p) if n % 2 else p for n, p in enumerate(parts))


def link(path: str, **query: Any) -> str:
    """``path`` with those of ``query`` that say something."""
    given = {k: v for k, v in query.items() if v not in (None, "", ())}
    return f"{path}?{urlencode(given, doseq=True)}" if given else path


def number(value: float | None) -> str:
    """At the most four significant digits, never e-notation for the numbers that people read often."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}" if 1e-4 <= abs(value) < 1e6 else f"{value:.3e}"


def money(value: float) -> str:
    """Two decimals, four below one; what is less than those show says so."""
    if 0 < abs(value) < 0.0001:
        return "<0.0001"
    return f"{value:,.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4f}"


def count(value: float) -> str:
    return f"{int(value):,}"


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "-"
    return format_duration(round(seconds) if seconds >= 10 else round(seconds, 1))


def ago(text: str | None) -> Markup:
    """A relative time whose exact one is in its title; console.js keeps it current."""
    if not text:
        return Markup('<span class="none">-</span>')
    return Markup('<time datetime="{0}" title="{1}" data-ago>{2}</time>').format(
        text, _exact(text), relative(time.time() - parse_time(text))
    )


def relative(seconds: float) -> str:
    """One unit; console.js words it the same way."""
    if seconds < 1.5:
        return "now"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit} ago"
    return f"{int(seconds)}s ago"


def until(text: str | None) -> Markup:
    """A time to come: how far off it is, with the exact one in its title."""
    if not text:
        return Markup('<span class="none">-</span>')
    left = parse_time(text) - time.time()
    told = "now" if left < 1.5 else f"in {duration(left)}"
    return Markup('<time datetime="{0}" title="{1}">{2}</time>').format(text, _exact(text), told)


def span(begin: str | None, end: str | None) -> Markup:
    """How long from ``begin`` to ``end``, or to now while there is no end."""
    if not begin:
        return Markup('<span class="none">-</span>')
    until = parse_time(end) if end else time.time()
    title = _exact(begin) + " to " + (_exact(end) if end else "now")
    kept = Markup("") if end else Markup(" data-since")
    return Markup('<time datetime="{0}" title="{1}"{2}>{3}</time>').format(
        begin, title, kept, duration(max(0.0, until - parse_time(begin)))
    )


def _exact(text: str) -> str:
    return text.replace("T", " ").replace("Z", " UTC")
