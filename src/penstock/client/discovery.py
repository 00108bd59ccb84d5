"""Finding a server and the token for it.

The local token is an administrator's: it is sent to the server that wrote it (the address in the same folder's
``server.json``) and to no other, whatever URL somebody is talked into giving.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from penstock.base.errors import Unavailable
from penstock.client.transport import parse_url

SERVER_FILE = "server.json"  # {"url", "pid", "version", "ca"}: written by the server when it listens
TOKEN_FILE = "token"  # noqa: S105 - a file's name; the file is readable by its owner alone


class Place(NamedTuple):
    """A server's URL, the token to show it, the one certificate to trust (a PEM file; None: the system's), and where this was learnt."""

    url: str
    token: str | None
    ca: str | None
    source: str


def find(url: str | None, token: str | None, data_dir: str | None) -> Place:
    """What was given wins over what the data folder says. Raises Unavailable where neither names a server."""
    local = _local(data_dir) if data_dir else None
    if url is None:
        if local is None:
            raise Unavailable(f"no server is known: {data_dir or 'no data folder'} holds no {SERVER_FILE}")
        return local._replace(token=token or local.token)
    if local is not None and parse_url(local.url) == parse_url(url):
        return Place(url, token or local.token, local.ca, local.source)
    return Place(url, token, None, "--url or PENSTOCK_URL")


def _local(data_dir: str) -> Place | None:
    path = f"{data_dir}/{SERVER_FILE}"
    try:
        with open(path, encoding="utf-8") as file:
            written = json.load(file)
        url, ca = str(written["url"]), written.get("ca")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Unavailable(f"cannot read {path}: {error}") from error
    return Place(url, _token(data_dir), str(ca) if ca else None, path)


def _token(data_dir: str) -> str | None:
    try:
        with open(f"{data_dir}/{TOKEN_FILE}", encoding="utf-8") as file:
            return file.read().strip() or None
    except OSError:  # not ours to read: the server will say that it wants one
        return None
