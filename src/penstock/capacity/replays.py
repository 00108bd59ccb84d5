"""Replays that people ask the server for: each runs in a process of its own, one at a time; their answers are kept in the
data folder, ``replays/<id>/``, the newest ``KEPT`` of them. Nothing of a replay runs in the server's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Connection

from penstock.base.errors import Busy, InvalidInput, NotFound, PenstockError
from penstock.base.ids import new_id
from penstock.base.quantities import format_time
from penstock.capacity.asked import ReplayForm, task
from penstock.store.store import Store

log = logging.getLogger("penstock.capacity")

KEPT = 50
MOST_IN_LINE = 8
LIMIT_S = 900.0  # of wall time
HISTORY = "history.csv"
_LINE_BYTES = 1 << 16
_FINAL = frozenset({"done", "failed", "cancelled"})
Fleet = Callable[[Connection], Sequence[tuple[int, str]]]
Trace = Callable[[Connection, float, float], Iterator[Mapping[str, Any]]]  # (conn, now, since) -> rows


class Replays:
    """``trace`` gives the house's own jobs as rows, ``today`` the queue file that holds, ``fleet`` (GPUs, model) of every
    node: jobs/, scheduling/ and fleet/ know them.
    """

    def __init__(
        self, store: Store, data_dir: str, trace: Trace, today: Callable[[Connection], str], fleet: Fleet
    ) -> None:
        self._store, self._trace, self._today, self.fleet = store, trace, today, fleet
        self._folder, self.traces = Path(data_dir, "replays"), Path(data_dir, "traces")
        self._turn = asyncio.Semaphore(1)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._records: dict[str, dict[str, Any]] = {}  # of those that are not over

    # -- asking

    async def ask(self, form: ReplayForm, actor: str) -> dict[str, Any]:
        """Put one in line. Raises Busy, NotFound for a trace that is not there."""
        if len(self._tasks) >= MOST_IN_LINE:
            raise Busy(f"{len(self._tasks)} replays are in line already", hint="Wait for one of them, or cancel one.")
        if form.source.kind == "trace":
            self._trace_file(form.source.name)
        now = self._store.clock()
        id_ = new_id(now, os.urandom(10))
        record = {
            "kind": "Replay",
            "id": id_,
            "by": actor,
            "created_at": format_time(now),
            "state": "waiting",
            "message": "",
            "progress": None,
            "asked": form.model_dump(mode="json"),
        }
        await asyncio.to_thread(self._make_room, id_, record)
        self._records[id_] = record
        self._tasks[id_] = asyncio.create_task(self._work(id_, form, record))
        self._tasks[id_].add_done_callback(lambda _: self._tasks.pop(id_, None))
        return record

    def _trace_file(self, name: str | None) -> Path:
        path = self.traces / (name or "")
        if not name or not path.is_file():
            raise NotFound(f"there is no trace {name!r}", hint=f"Put the file into {self.traces}.")
        return path

    def _make_room(self, id_: str, record: Mapping[str, Any]) -> None:
        for old in self._ids()[KEPT - 1 :]:
            if old not in self._records:
                shutil.rmtree(self._folder / old, ignore_errors=True)
        (self._folder / id_).mkdir(parents=True, mode=0o700)
        self._write(id_, record)

    def _write(self, id_: str, record: Mapping[str, Any]) -> None:
        path = self._folder / id_ / "replay.json"
        staged = path.with_suffix(".new")
        staged.write_text(json.dumps(record))
        staged.replace(path)

    # -- running

    async def _work(self, id_: str, form: ReplayForm, record: dict[str, Any]) -> None:
        try:
            async with self._turn:
                record |= {"state": "running", "message": "reading the jobs"}
                await self._prepare(id_, form)
                await asyncio.wait_for(self._run(id_, record), LIMIT_S)
        except TimeoutError:
            record |= {"state": "failed", "message": f"it took longer than {LIMIT_S / 60:.0f} minutes"}
        except asyncio.CancelledError:
            record |= {"state": "cancelled", "message": record.get("stop") or "the server was stopped"}
        except (PenstockError, OSError) as error:
            record |= {"state": "failed", "message": str(error)}
        record |= {"progress": None, "finished_at": format_time(self._store.clock())}
        record.pop("stop", None)
        for name in (HISTORY, "synth.csv", "task.json"):
            (self._folder / id_ / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # deleted meanwhile
            self._write(id_, record)
        self._records.pop(id_, None)

    async def _prepare(self, id_: str, form: ReplayForm) -> None:
        now, folder = self._store.clock(), self._folder / id_
        since = 0.0 if form.source.days is None else now - form.source.days * 86400.0

        def work(conn: Connection) -> None:
            gpus = sum(each for each, _ in self.fleet(conn))
            made: dict[str, Any] = task(form, self._today(conn), gpus) | {"parent": os.getpid()}
            if form.source.kind == "own":
                made["rows"] = _write_rows(folder / HISTORY, self._trace(conn, now, since))
            elif form.source.kind == "trace":
                made["trace"] = str(self._trace_file(form.source.name))
            (folder / "task.json").write_text(json.dumps(made))

        await self._store.read_long(work)

    async def _run(self, id_: str, record: dict[str, Any]) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-s", "-P", "-m", "penstock.capacity.child", str(self._folder / id_),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=self._folder / id_, env={}, limit=_LINE_BYTES, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        problem: Mapping[str, Any] | None = None
        try:
            tail = asyncio.create_task(process.stderr.read(_LINE_BYTES))
            async for line in process.stdout:
                said = json.loads(line)
                problem = said.get("error")
                if problem is None:
                    record |= {"message": "", "progress": said}
            code = await process.wait()
            complaint = (await tail).decode("utf-8", "replace")
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if code == 0:
            record |= {"state": "done", "message": ""}
            return
        if problem is None:
            log.warning("replay %s ended with %s: %s", id_, code, complaint[-2000:])
            raise InvalidInput(f"its process ended with {code} before it was done")
        record["problem"] = problem
        raise InvalidInput(str(problem["message"]))

    # -- reading

    def _ids(self) -> list[str]:
        """The newest first: ids sort by time."""
        with contextlib.suppress(FileNotFoundError):
            return sorted((entry.name for entry in os.scandir(self._folder) if entry.is_dir()), reverse=True)
        return []

    async def listing(self) -> list[dict[str, Any]]:
        return await asyncio.to_thread(lambda: [record for id_ in self._ids() if (record := self._record(id_))])

    async def get(self, id_: str) -> dict[str, Any]:
        """With its result, once it has one. Raises NotFound."""
        return await asyncio.to_thread(self._whole, id_)

    def _whole(self, id_: str) -> dict[str, Any]:
        record = self._record(id_) if id_.isalnum() else None
        if record is None:
            raise NotFound(f"there is no replay {id_!r}")
        path = self._folder / id_ / "result.json"
        return record | {"result": json.loads(path.read_text()) if record["state"] == "done" else None}

    def _record(self, id_: str) -> dict[str, Any] | None:
        if id_ in self._records:
            return dict(self._records[id_])
        try:
            record: dict[str, Any] = json.loads((self._folder / id_ / "replay.json").read_text())
        except (OSError, ValueError):
            return None
        if record["state"] not in _FINAL:
            record |= {"state": "failed", "message": "the server stopped before it was done", "progress": None}
        return record

    async def remove(self, id_: str, actor: str) -> None:
        """Cancel it where it is not over, and delete it where it is. Raises NotFound."""
        record = self._records.get(id_)
        work = self._tasks.get(id_)
        if record is not None and work is not None:
            record["stop"] = f"cancelled by {actor}"
            work.cancel()
            await asyncio.wait([work])
            return
        await self.get(id_)
        await asyncio.to_thread(shutil.rmtree, self._folder / id_, ignore_errors=True)

    async def close(self) -> None:
        """End what runs; call it before the store is closed."""
        tasks = list(self._tasks.values())
        for each in tasks:
            each.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _write_rows(path: Path, rows: Iterator[Mapping[str, Any]]) -> int:
    """How many."""
    count = 0
    with path.open("w", newline="") as file:
        writer: csv.DictWriter[str] | None = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)
            count += 1
        if writer is None:
            file.write("submit,duration_s,gpus\n")
    return count
