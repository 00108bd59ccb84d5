"""The console's own files: found once, stamped with their hash (cached for ever by browsers), sent gzipped."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "static"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Assets:
    """Reads a file when it is first asked for and keeps its gzipped bytes (about 60 KB for all of them)."""

    def __init__(self) -> None:
        self._packed: dict[str, bytes] = {}
        self._stamps: dict[str, str] = {}

    def address(self, name: str) -> str:
        """``"console.css"`` -> ``"/static/<first of its hash>/console.css"``."""
        if name not in self._stamps:
            self._stamps[name] = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()[:12]
        return f"/static/{self._stamps[name]}/{name}"

    def answer(self, request: Request) -> Response | None:
        """None where there is no such file; only listed suffixes are ever read."""
        name = request.path_params["path"]
        path = (FOLDER / name).resolve()
        kind = _TYPES.get(path.suffix)
        if kind is None or not path.is_relative_to(FOLDER.resolve()) or not path.is_file():
            return None
        headers = {
            "Cache-Control": "public, max-age=31536000, immutable",
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(path.read_bytes(), media_type=kind, headers=headers)
        if name not in self._packed:
            self._packed[name] = gzip.compress(path.read_bytes(), 9, mtime=0)
        return Response(self._packed[name], media_type=kind, headers=headers | {"Content-Encoding": "gzip"})
