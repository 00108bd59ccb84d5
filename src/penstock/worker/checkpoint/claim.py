"""That one job alone writes to a prefix of an object store, which has no lock.

``owner.json`` says whose the prefix is, and is put anew as a heartbeat. It is taken with a condition (put only where
none is, or where it is still the one that was read); a store that knows no conditions is asked again a little later,
and the last writer has it. An owner whose heartbeat stood still is dead; so, at once, is an earlier attempt of the
same job, and a process of this host that is no more. Whoever finds another's name there has lost the prefix, and
writes nothing more.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from penstock.worker.checkpoint.errors import FolderInUse

OWNER: Final = "owner.json"


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Seconds: between heartbeats, after which an owner is dead, and before a store without conditions is asked again."""

    beat_s: float = 30.0
    dead_after_s: float = 600.0
    settle_s: float = 1.0


class Told(Protocol):
    def __call__(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True)
class _Seen:
    body: Mapping[str, Any]
    etag: str | None
    age_s: float


class Claim:
    """The prefix of ``store``, for ``owner`` (job, attempt). ``told`` turns the client's errors into OSError."""

    def __init__(
        self, url: str, store: S3Store, owner: Mapping[str, Any], told: Told, rhythm: Rhythm = Rhythm()
    ) -> None:
        self._url = url
        self._store = store
        self._told = told
        self._rhythm = rhythm
        self._body = {**owner, "host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)}
        self._etag: str | None = None
        self._held = False
        self._lost = ""
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self) -> None:
        """Take the prefix, or see that it is still ours. Raises FolderInUse, naming the owner, or OSError."""
        with self._turn:
            if self._lost:
                raise FolderInUse(self._lost)
            there = self._read()
            if self._held:
                self._still_ours(there)
                return
            if there is not None and (who := self._alive(there)):
                raise FolderInUse(f"{self._url} is in use by {who}")
            self._put(there)
            self._held = True
        self._thread = threading.Thread(target=self._beat, name="penstock-claim", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Take the name away, if it is still ours: the next job need not wait."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        if not self._held:
            return
        self._held = False
        try:
            there = self._read()
            if there is not None and there.body.get("token") == self._body["token"]:
                with self._told():
                    obstore.delete(self._store, [OWNER])
        except OSError:  # it grows old by itself
            pass

    # ------------------------------------------------------------------------------------------------------- inside

    def _beat(self) -> None:
        while not self._over.wait(self._rhythm.beat_s):
            try:
                with self._turn:
                    self._still_ours(self._read())
                    self._put(self._seen())
            except FolderInUse:  # said at the next copy
                return
            except OSError:  # the store does not answer: a later beat may find it
                continue

    def _seen(self) -> _Seen:
        return _Seen(self._body, self._etag, 0.0)

    def _still_ours(self, there: _Seen | None) -> None:
        if there is not None and there.body.get("token") == self._body["token"]:
            self._etag = there.etag
            return
        who = _named(there.body) if there is not None else "somebody who removed the owner's name"
        self._lost = f"{self._url} was taken over by {who}"
        raise FolderInUse(self._lost)

    def _read(self) -> _Seen | None:
        with self._told():
            try:
                found = obstore.get(self._store, OWNER)
            except FileNotFoundError:
                return None
            data, meta = found.bytes().to_bytes(), found.meta
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        return _Seen(
            body if isinstance(body, dict) else {}, meta["e_tag"], time.time() - meta["last_modified"].timestamp()
        )

    def _put(self, over: _Seen | None) -> None:
        """Write our name where there is none, or over the one that was read. Raises FolderInUse where somebody was faster."""
        data = json.dumps({**self._body, "at": time.time()}).encode()
        mode: Any = "create" if over is None else {"e_tag": over.etag}
        kept = True
        with self._told():
            try:
                put = obstore.put(self._store, OWNER, data, mode=mode, use_multipart=False)
                self._etag = put["e_tag"]
            except (AlreadyExistsError, PreconditionError):
                kept = False
            except BaseError as error:
                if "501 Not Implemented" not in str(error):
                    raise
                obstore.put(self._store, OWNER, data, use_multipart=False)
        if kept and not self._held:
            time.sleep(self._rhythm.settle_s)  # a store may take no notice of conditions, and say nothing
        there = self._read()
        if there is None or there.body.get("token") != self._body["token"]:
            who = _named(there.body) if there is not None else "somebody else"
            self._lost = f"{self._url} was taken over by {who}" if self._held else ""
            raise FolderInUse(self._lost or f"{self._url} is in use by {who}")
        self._etag = there.etag

    def _alive(self, there: _Seen) -> str:
        """Who it is that still holds the prefix; empty where it may be taken."""
        body, same_host = there.body, there.body.get("host") == self._body["host"]
        if same_host and not _runs(body.get("pid")):
            return ""
        if body.get("job") and body["job"] == self._body.get("job") and not (same_host and _runs(body.get("pid"))):
            return ""
        if self._age(there) > self._rhythm.dead_after_s:
            return ""
        return _named(body)

    def _age(self, there: _Seen) -> float:
        """How old the heartbeat is by the store's own clock, which an object put now tells."""
        probe = f"clock-{self._body['token']}"
        with self._told():
            obstore.put(self._store, probe, b"", use_multipart=False)
            now = obstore.head(self._store, probe)["last_modified"].timestamp()
            obstore.delete(self._store, [probe])
        return there.age_s - (time.time() - now)


def _runs(pid: object) -> bool:
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _named(body: Mapping[str, Any]) -> str:
    who = f"job {body['job']}" if body.get("job") else "a process outside any job"
    return f"{who} (process {body.get('pid', '?')} on {body.get('host', '?')})"
