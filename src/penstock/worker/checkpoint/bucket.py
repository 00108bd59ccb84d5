"""A tier in an object store (S3): where a rename is no commit, the manifest, put last, is.

A file is put as parts of a few chunks, each an object of its own: a part that is there and hashes right is not sent
again, and nothing but one part is held in memory. Each part is read back and hashed before the manifest follows.
Loading brings a checkpoint into the first folder, verified and committed there, and goes on as from any folder.
One job alone writes there (claim.py).
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import numpy as np
import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store
from xxhash import xxh3_128_hexdigest

from penstock.worker.checkpoint import folder
from penstock.worker.checkpoint.claim import Claim, Rhythm
from penstock.worker.checkpoint.errors import CheckpointError, Damaged
from penstock.worker.checkpoint.manifest import NAME, File, Manifest, read_manifest
from penstock.worker.checkpoint.memory import Bytes
from penstock.worker.checkpoint.reading import Want, read_files
from penstock.worker.checkpoint.retention import to_remove, undecided
from penstock.worker.checkpoint.writing import write_small

_STATUS: Final = re.compile(r"status code: (\d{3}[^:,]*)")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request may take, and how often it is made again; ``part`` is what one request carries."""

    timeout_s: float = 60.0
    retries: int = 6
    retry_for_s: float = 180.0
    part: int = 16 << 20
    rhythm: Rhythm = field(default_factory=Rhythm)


class Bucket:
    """``keep`` verified checkpoints under ``url`` (s3://bucket/prefix), written at no more than ``bytes_per_s``.

    Where the store is and who asks is said by the environment, as for any S3 client: AWS_ENDPOINT_URL,
    AWS_ACCESS_KEY_ID, AWS_REGION and so on.
    """

    def __init__(
        self,
        url: str,
        keep: int,
        bytes_per_s: float | None,
        patience: Patience = Patience(),
        owner: Mapping[str, Any] | None = None,
    ) -> None:
        if not url.removeprefix("s3://").strip("/"):
            raise CheckpointError(f"{url} names no bucket", hint="Write s3://BUCKET/PREFIX.")
        self.directory = url.rstrip("/")
        self._keep = keep
        self._bytes_per_s = bytes_per_s
        self._patience = patience
        self._verified: set[str] = set()
        self.damaged: dict[str, str] = {}
        with self._told():
            self._store = S3Store.from_url(
                self.directory,
                client_options={
                    "timeout": timedelta(seconds=patience.timeout_s),
                    "allow_http": os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"),
                },
                retry_config={
                    "max_retries": patience.retries,
                    "retry_timeout": timedelta(seconds=patience.retry_for_s),
                },
            )
        self._claim = Claim(self.directory, self._store, owner or {}, self._told, patience.rhythm)

    def take(self) -> None:
        """Have the prefix for this job alone. Raises FolderInUse, or OSError where the store does not answer."""
        self._claim.hold()

    def entries(self) -> list[folder.Entry]:
        """What is committed there, oldest first. Raises OSError where the store does not answer."""
        return self._committed(self._listed())

    def promote(self, entry: folder.Entry) -> bool:
        """Copy one checkpoint there; False where it is already. Raises OSError, Damaged or FolderInUse."""
        if not self.begin(entry):
            return False
        self.carry(entry, folder.checked_manifest(entry).files)
        self.conclude(entry)
        return True

    def begin(self, entry: folder.Entry) -> bool:
        """Make room for one; False where it is already. Raises OSError or FolderInUse."""
        self._claim.hold()
        there = self._listed()
        committed = self._committed(there)
        if any(one.id == entry.id for one in committed):
            return False
        self._clear(there, {os.path.basename(one.path) for one in (entry, *committed)})
        return True

    def carry(self, entry: folder.Entry, files: Sequence[File]) -> None:
        """Put some of its files: each node those that it has. Raises OSError or Damaged."""
        name = os.path.basename(entry.path)
        there = self._listed(name)
        began, sent = time.monotonic(), 0
        for file in files:
            for index, start in enumerate(range(0, file.size, step := self._step(file))):
                key, size = f"{name}/{file.name}/{index:06}", min(step, file.size - start)
                if there.get(key) == size and not self._fault(key, file, start, self._get(key)):
                    continue  # it came before the last copy was cut short
                data = np.empty(size, np.uint8)
                read_files(entry.path, [file], {file.name: [Want(start, data)]}, frozenset(), lanes=1)
                self._put(key, data.tobytes())
                if fault := self._fault(key, file, start, self._get(key)):
                    raise Damaged(fault)
                sent += size
                if self._bytes_per_s:
                    time.sleep(max(0.0, sent / self._bytes_per_s - (time.monotonic() - began)))

    def conclude(self, entry: folder.Entry) -> None:
        """See that all parts are there, and put the manifest: from here on it is a checkpoint. Raises OSError or Damaged."""
        name = os.path.basename(entry.path)
        there = self._listed(name)
        for file in folder.checked_manifest(entry).files:
            size = sum(size for key, size in there.items() if key.startswith(f"{name}/{file.name}/"))
            if size != file.size:
                raise Damaged(f"{self.directory}/{name}/{file.name} has {size} bytes, and was written with {file.size}")
        self._claim.hold()  # another may have taken it meanwhile
        with open(os.path.join(entry.path, NAME), "rb") as source:
            self._put(f"{name}/{NAME}", source.read())
        self.manifest(folder.Entry(f"{self.directory}/{name}", entry.step, entry.id))
        self._verified.add(entry.id)
        self.prune()

    def fetch(self, entry: folder.Entry, directory: str) -> folder.Entry:
        """Bring one of ``entries()`` into a folder, verified, and commit it there. Raises OSError or Damaged."""
        manifest = self.manifest(entry)
        name = os.path.basename(entry.path)
        there = self._listed(name)
        temporary = folder.temporary(directory, entry.id)
        shutil.rmtree(temporary, ignore_errors=True)
        os.makedirs(temporary)
        try:
            for file in manifest.files:
                with open(os.path.join(temporary, os.path.basename(file.name)), "wb") as target:
                    target.writelines(data for _, data in self._parts(there, name, file))
                    target.flush()
                    os.fsync(target.fileno())
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        write_small(os.path.join(temporary, NAME), self._get(f"{name}/{NAME}"))
        damaged = os.path.join(directory, name)
        if os.path.exists(damaged):
            folder.remove(damaged)
        return folder.Entry(folder.commit(directory, temporary, entry.step, entry.id), entry.step, entry.id)

    def close(self) -> None:
        self._claim.release()

    def manifest(self, entry: folder.Entry) -> Manifest:
        """Raises OSError, Damaged or NewerFormat."""
        what = f"{entry.path}/{NAME}"
        manifest = read_manifest(self._get(f"{os.path.basename(entry.path)}/{NAME}"), what)
        if (manifest.id, manifest.step) != (entry.id, entry.step):
            raise Damaged(f"{what} is of {manifest.step}-{manifest.id}, another checkpoint")
        return manifest

    def verify(self, entry: folder.Entry, there: dict[str, int] | None = None) -> Manifest:
        """Read one to the last byte. Raises OSError, Damaged or NewerFormat."""
        name = os.path.basename(entry.path)
        manifest = self.manifest(entry)
        there = self._listed(name) if there is None else there
        for file in manifest.files:
            for _ in self._parts(there, name, file):
                pass
        return manifest

    def prune(self, every: int | None = None) -> list[folder.Entry]:
        """Remove what may go, and answer it: each of the last ``keep`` is read before it counts. Raises OSError."""
        there = self._listed()
        entries = self._committed(there)
        if len(entries) <= self._keep:
            return []
        while (entry := undecided(entries, self._verified, self.damaged, self._keep)) is not None:
            try:
                self.verify(entry, there)
                self._verified.add(entry.id)
            except CheckpointError as error:
                self.damaged[entry.id] = error.message
        gone = to_remove(entries, self._verified, self._keep, every)
        for entry in gone:
            name = os.path.basename(entry.path)
            self._delete([f"{name}/{NAME}"])  # from here on it is no checkpoint
            self._delete([key for key in there if key.startswith(f"{name}/") and key != f"{name}/{NAME}"])
        return gone

    # ------------------------------------------------------------------------------------------------------- inside

    def _step(self, file: File) -> int:
        return max(1, self._patience.part // file.chunk) * file.chunk

    def _parts(self, there: dict[str, int], name: str, file: File) -> Iterator[tuple[int, bytes]]:
        """A file's parts, each verified before it is handed out. Raises Damaged."""
        at = 0
        for key in sorted(key for key in there if key.startswith(f"{name}/{file.name}/")):
            data = self._get(key)
            if fault := self._fault(key, file, at, data):
                raise Damaged(fault)
            yield at, data
            at += len(data)
        if at != file.size:
            raise Damaged(f"{self.directory}/{name}/{file.name} has {at} bytes, and was written with {file.size}")

    def _fault(self, key: str, file: File, start: int, data: bytes) -> str:
        """What is wrong with a part that was read; empty where it is what was written."""
        view: Bytes = np.frombuffer(data, np.uint8)
        last = start + len(view) == file.size
        if start % file.chunk or not (last or (len(view) and len(view) % file.chunk == 0)):
            return f"{self.directory}/{key} has {len(view)} bytes, which no part has"
        for at in range(0, len(view), file.chunk):
            if xxh3_128_hexdigest(view[at : at + file.chunk].data) != file.digest((start + at) // file.chunk):
                return f"{self.directory}/{key}: bytes from {at} on are not what was written"
        return ""

    def _committed(self, there: dict[str, int]) -> list[folder.Entry]:
        names = (key.partition("/")[0] for key in there if key.count("/") == 1 and key.endswith(f"/{NAME}"))
        found = [entry for name in names if (entry := folder.entry_of(f"{self.directory}/{name}"))]
        return sorted(found, key=lambda entry: entry.id)

    def _clear(self, there: dict[str, int], stay: set[str]) -> None:
        """Remove copies that were cut short and overtaken."""
        names = {key.partition("/")[0] for key in there} - stay
        self._delete([key for key in there if (name := key.partition("/")[0]) in names and folder.entry_of(name)])

    # ------------------------------------------------------------------------------------------------------ requests

    def _listed(self, name: str | None = None) -> dict[str, int]:
        with self._told():
            return {item["path"]: item["size"] for batch in obstore.list(self._store, name) for item in batch}

    def _get(self, key: str) -> bytes:
        with self._told():
            return obstore.get(self._store, key).bytes().to_bytes()

    def _put(self, key: str, data: bytes) -> None:
        with self._told():
            obstore.put(self._store, key, data, use_multipart=False)

    def _delete(self, keys: list[str]) -> None:
        if keys:
            with self._told():
                obstore.delete(self._store, keys)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What the client says in many words, in few."""
        try:
            yield
        except (BaseError, FileNotFoundError, PermissionError) as error:
            text = " ".join(str(error).split())
            tries = f" (asked {self._patience.retries + 1} times)"
            if found := _STATUS.search(text):
                said = f"the store answered {found[1].strip()}{tries if found[1].startswith('5') else ''}"
            elif "timed out" in text or "timeout" in text.lower().replace("retry_timeout", ""):
                said = f"the store did not answer within {self._patience.timeout_s:g} s{tries}"
            else:
                said = text[:300]
            raise OSError(f"{self.directory}: {said}") from error
