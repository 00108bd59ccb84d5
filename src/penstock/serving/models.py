"""Looks at a model when a service is made: what its replicas would refuse is refused at once, with why.

A model that was carried along is unpacked for that; one that lies on the nodes is read where the nodes are this machine. What cannot be
looked at in time, or only by somebody else, is left to the replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import posixpath
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from sqlalchemy.engine import Connection

from penstock.base.errors import NotFound, Problem
from penstock.base.resource import Actor
from penstock.jobs.view import engine_of
from penstock.scheduling import live
from penstock.serving import jobs, versions
from penstock.serving.fitness import fit
from penstock.serving.formats import Found
from penstock.serving.runtimes.spec import Format
from penstock.serving.spec import ServiceDocument, ServiceSpec

if TYPE_CHECKING:
    from penstock.serving.room import Serving

log = logging.getLogger("penstock.serving")
WITHIN_S = 30.0
AT_ONCE = 2  # models that are looked at
ROOM = "/var/tmp"  # noqa: S108 - of large files: /tmp may be memory
_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
_looking = asyncio.Semaphore(AT_ONCE)


@dataclass(frozen=True, slots=True)
class _Look:
    """``snapshot``: the file that holds the model; None: it lies at its path. ``user``: whose rights are enough."""

    model: str
    snapshot: str | None
    user: str | None
    pickles: bool


async def problems(serving: Serving, actor: Actor, document: ServiceDocument, path: str) -> list[Problem]:
    """Why no replica would serve its model; none where that is not known here, or where it has the model already."""
    look = await serving.room.store.read(lambda conn: _wanted(serving, conn, actor, document))
    if look is None:
        return []
    async with _looking:
        said = await asyncio.to_thread(_told, look)
    return [Problem(f"{path}.{one.path}", one.message) for one in _judged(said, look, document.spec)]


def _wanted(serving: Serving, conn: Connection, actor: Actor, document: ServiceDocument) -> _Look | None:
    spec, room = document.spec, serving.room
    project = document.project or "default"
    if spec.model is None or _known(conn, project, document):
        return None
    user = room.runs_as(actor)
    if room.as_root and user in (None, "root"):
        return None
    look = _Look(spec.model, None, user, versions.waived(conn, project))
    if spec.snapshot is not None:
        inside = not spec.model.startswith("/") and ".." not in spec.model.split("/")
        if not inside or not room.holds(conn, actor.user, spec.snapshot):
            return None  # `routes.check` says so
        return _Look(look.model, os.path.join(serving.place.snapshots, spec.snapshot), user, look.pickles)
    here = engine_of(live.current(conn), jobs.as_job(document.name, spec), project) in (None, room.engines.own.name)
    return look if here and spec.model.startswith("/") else None


def _known(conn: Connection, project: str, document: ServiceDocument) -> bool:
    """Whether the service runs this very thing: nothing new would be loaded."""
    try:
        row = versions.find(conn, project, document.name)
    except NotFound:
        return False
    return versions.template_of(ServiceSpec.model_validate_json(row.spec)) == versions.template_of(document.spec)


def _told(look: _Look) -> Mapping[str, Any]:
    """What a process of that user's says of it; empty where it says nothing. In a thread: uvloop starts no process as somebody else."""
    argv = [sys.executable, "-m", "penstock.serving.telling", look.model]
    with contextlib.ExitStack() as stack:
        try:
            rights = _rights(look.user)
            source: BinaryIO | int = subprocess.DEVNULL
            if look.snapshot is not None:
                source = stack.enter_context(open(look.snapshot, "rb"))
                folder = tempfile.mkdtemp(prefix="penstock-model-", dir=ROOM)
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                if rights:
                    os.chown(folder, rights["user"], rights["group"])
                argv.append(folder)
            said = subprocess.run(
                argv, stdin=source, stdout=subprocess.PIPE, timeout=WITHIN_S, check=True, cwd="/", env=_ENV, **rights
            )
            found: dict[str, Any] = json.loads(said.stdout)
        except (OSError, KeyError, ValueError, subprocess.SubprocessError) as error:
            log.warning("the model %s was not looked at: %r", look.model, error)
            return {}
    return found


def _rights(user: str | None) -> dict[str, Any]:
    """Of a process that runs as this user, where the server can be somebody else. Raises KeyError."""
    if os.geteuid() != 0 or user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": os.getgrouplist(user, entry.pw_gid)}


def _judged(said: Mapping[str, Any], look: _Look, spec: ServiceSpec) -> list[Problem]:
    if not said:
        return []
    if "error" in said:
        return [Problem("model", f"{look.model} {said['error']}")]
    path = look.model if look.snapshot is None else posixpath.basename(look.model)
    found = Found(Format(said["format"]), path, said["why"])
    return fit(found, spec.runtime, jobs.options(spec), pickles=look.pickles)[1]
