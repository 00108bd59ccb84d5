"""The gateway as the reconciler has it: told what is wanted, it returns once Envoy routes so.

Make before break. Endpoints and new clusters come first, then the routes, and a cluster that no route names any more stays
for as long as a request of its may last: one that is tried again finds it still there.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from penstock.base.errors import EngineFailure, InvalidInput, PenstockError, Problem, Unavailable
from penstock.serving.gateway import counters
from penstock.serving.gateway.admin import Admin
from penstock.serving.gateway.check import check, check_rendered, settle
from penstock.serving.gateway.process import Process
from penstock.serving.gateway.render import (
    BOOTSTRAP,
    CERTIFICATE,
    CLUSTERS,
    LIMITS,
    LISTENERS,
    ROUTE_FILE,
    inline,
    render,
    response,
    version_of,
)  # fmt: skip
from penstock.serving.gateway.spec import Gateway
from penstock.serving.gateway.words import ADMIN, RATE_LIMIT, ROUTES, eds_file
from penstock.serving.state import Counts

log = logging.getLogger("penstock.gateway")

_CONFIRM_S = 10.0
_ASKED = r"\.(version_text|warming_clusters|update_rejected|update_failure)$"
_LOG_BYTES, _LOGS = 64 << 20, 3


class Publisher:
    """One gateway, in ``folder``. Envoy lives on when this is closed, and when the server dies; `stop` ends it."""

    def __init__(
        self,
        folder: Path,
        *,
        path: Path | None = None,
        concurrency: int | None = None,
        restarted: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.process = Process(self.folder, path=path, concurrency=concurrency, restarted=restarted)
        self.gateway: Gateway | None = None
        self.left_out: tuple[Problem, ...] = ()  # of what was published last: whose, and why
        self.watches = watches()
        self._files: dict[str, str] = {}  # as they lie on disk
        self._leaving: dict[str, float] = {}  # clusters that no route names, and when they go
        self._again: set[str] = set()  # what Envoy did not take the last time
        self._turn = asyncio.Lock()

    @property
    def _admin(self) -> Admin:
        return Admin(self.folder)

    async def start(self) -> None:
        """Read what lies there and adopt the Envoy that runs by it; one that should run and does not is started."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._read()
        if BOOTSTRAP in self._files and LISTENERS in self._files:
            await self.process.ensure(self._admin)

    def _read(self) -> None:
        for path in [*sorted(self.folder.glob("*/*.json")), self.folder / BOOTSTRAP]:
            if path.exists():
                self._files[str(path.relative_to(self.folder))] = path.read_text()
        if ADMIN not in self._files.get(BOOTSTRAP, ADMIN):
            del self._files[BOOTSTRAP]  # an older Penstock's, with a port: the first publish has a new Envoy take over

    async def close(self) -> None:
        await self.process.forget()

    async def stop(self, grace: float = 30.0) -> None:
        """The last service is gone: drain, and end Envoy, whoever has started it."""
        async with self._turn:
            if not self._files:
                self._read()
            if BOOTSTRAP in self._files and (self.process.running is not None or self.process.adopt()):
                await self.process.stop(self._admin, grace)

    # ------------------------------------------------------------------------------------------------------ publish

    async def publish(self, gateway: Gateway) -> None:
        """What one service has wrong is left out and told of in ``left_out``. Raises InvalidInput, and changes nothing, where
        nothing can be published; EngineFailure where Envoy refuses what it is told, which then is as before.
        """
        async with self._turn:
            files, left_out = await asyncio.to_thread(self._checked, gateway)  # 0.1 s for 100 services
            if files.get(BOOTSTRAP) != self._files.get(BOOTSTRAP):
                await self._begin(files)
            await self._change(files)
            self.gateway = gateway
            for problem in left_out:
                if problem not in self.left_out:
                    log.warning("the gateway leaves out %s", problem)
            self.left_out = tuple(left_out)

    def _checked(self, wanted: Gateway) -> tuple[dict[str, str], list[Problem]]:
        problems = [*check(wanted), *_unreadable(wanted)]
        if problems:
            raise InvalidInput("the gateway cannot be as it is wanted", details=problems)
        gateway, left_out = settle(wanted)
        files = render(gateway, str(self.folder), inline(gateway, self._files, self.watches))
        routes = json.loads(files[ROUTE_FILE])["resources"][0]
        problems = check_rendered(json.loads(files[CLUSTERS])["resources"], routes)
        if problems:
            raise EngineFailure("the gateway's files do not hold together", details=problems)
        return files, left_out

    async def _begin(self, files: Mapping[str, str]) -> None:
        """All is new, or what Envoy reads only as it starts has changed: by a hot restart then."""
        old = self._admin if BOOTSTRAP in self._files else None
        if old is None or LISTENERS not in self._files:
            for path in files:
                self._write(path, files[path])
        self._write(BOOTSTRAP, files[BOOTSTRAP])
        if old is not None and self.process.running is not None and self.process.running.alive():
            await self.process.upgrade(self._admin)

    async def _change(self, files: dict[str, str]) -> None:
        await self.process.ensure(self._admin)
        wanted = _clusters(files[CLUSTERS])
        now = asyncio.get_running_loop().time()
        linger = _longest(files[ROUTE_FILE])
        gone = {name: text for name, text in _clusters(self._files.get(CLUSTERS, "")).items() if name not in wanted}
        for name in gone:
            self._leaving.setdefault(name, now + linger)
        self._leaving = {name: at for name, at in self._leaving.items() if name in gone}
        kept = {name: gone[name] for name, at in self._leaving.items() if at > now}
        files = {**files, CLUSTERS: _union(files[CLUSTERS], kept)}
        first = [path for path in files if path.startswith("eds/")]
        await self._tell(files, [*first, LIMITS, *([CERTIFICATE] if CERTIFICATE in files else []), CLUSTERS])
        await self._tell(files, [LISTENERS, ROUTE_FILE])
        for name in gone.keys() - kept.keys():
            self._leaving.pop(name, None)
        for path in self._files.keys() - files.keys() - {eds_file(name) for name in kept}:
            if path.startswith("eds/"):
                self._remove(path)

    async def _tell(self, files: Mapping[str, str], paths: Sequence[str]) -> None:
        """Write what changed, and wait until Envoy goes by it and no new cluster is still warming up."""
        changed = [path for path in paths if path in self._again or self._files.get(path) != files[path]]
        if not changed:
            return
        before = {path: self._files.get(path) for path in changed}
        refused = await self._refused()
        for path in changed:
            self._write(path, files[path])
        names = {_statistic(path): version_of(files[path]) for path in paths if path != CERTIFICATE}
        try:
            await self._confirm(names, refused)
        except PenstockError as error:
            for path, text in before.items():
                if isinstance(error, EngineFailure) and text is not None:
                    self._write(path, text)
            self._again.update(paths)
            raise
        self._again.difference_update(paths)

    async def _refused(self) -> int:
        return _refusals(await self._admin.stats(_ASKED))

    async def _confirm(self, wanted: Mapping[str, str], refused: int) -> None:
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + _CONFIRM_S, 0.001
        missing: dict[str, str] = {}
        while loop.time() < deadline:
            found = await self._admin.stats(_ASKED)
            if _refusals(found) > refused:
                raise EngineFailure(f"Envoy refuses its configuration: {self.process.last_words()}")
            missing = {
                name: version for name, version in wanted.items() if found.get(name + ".version_text") != version
            }
            if not missing and found.get("cluster_manager.warming_clusters", "0") == "0":
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)
        what = ", ".join(sorted(missing)) or "new clusters"
        raise Unavailable(f"Envoy has not taken {what} in {_CONFIRM_S:g} s: {self.process.last_words()}")

    # -------------------------------------------------------------------------------------------------------- files

    def _write(self, path: str, text: str) -> None:
        """In one rename; readable by the server's user alone."""
        place = self.folder / path
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.new")
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        draft.replace(place)
        self._files[path] = text

    def _remove(self, path: str) -> None:
        (self.folder / path).unlink(missing_ok=True)
        self._files.pop(path, None)

    # ------------------------------------------------------------------------------------------------------- counts

    async def counts(self) -> Mapping[counters.Key, Counts]:
        """Of every version that Envoy has; none where no Envoy runs. To be asked about once a second: it also sees to the
        access log's size.
        """
        if BOOTSTRAP not in self._files or self.process.running is None:
            return {}
        await self._turn_log()
        return counters.parse(await self._admin.ask(counters.question()))

    async def _turn_log(self) -> None:
        """At 64 MiB a new one is begun; the last three are kept."""
        path = self.gateway.access_log if self.gateway is not None else None
        if path is not None and _turned(Path(path)):
            await self._admin.ask("/reopen_logs", method="POST")


def _unreadable(gateway: Gateway) -> Iterator[Problem]:
    for field, path in (("tls_cert", gateway.tls_cert), ("tls_key", gateway.tls_key)):
        if path is not None and not os.access(path, os.R_OK):
            yield Problem(field, f"{path} cannot be read")


def _turned(path: Path) -> bool:
    if not path.exists() or path.stat().st_size < _LOG_BYTES:
        return False
    for number in range(_LOGS - 1, 0, -1):
        old = path.with_name(f"{path.name}.{number}")
        if old.exists():
            old.replace(path.with_name(f"{path.name}.{number + 1}"))
    path.replace(path.with_name(f"{path.name}.1"))
    return True


def _refusals(found: Mapping[str, str]) -> int:
    return sum(int(value) for name, value in found.items() if name.endswith(("rejected", "failure")))


def watches() -> int:
    """How many endpoint files Envoy may watch. Each costs it an inotify instance, of which a user has 128 unless the
    machine says otherwise, and without one it aborts. Twice as many are in use while one Envoy takes over from another.
    """
    try:
        limit = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    except (OSError, ValueError):
        limit = 128
    return max(0, min((limit - 48) // 2, 2000))


def _clusters(text: str) -> dict[str, dict[str, object]]:
    return {one["name"]: one for one in json.loads(text)["resources"]} if text else {}


def _union(text: str, more: Mapping[str, dict[str, object]]) -> str:
    return response([*_clusters(text).values(), *(more[name] for name in sorted(more))]) if more else text


def _longest(routes: str) -> float:
    """How long a request may last: the longest time of any route."""
    hosts = json.loads(routes)["resources"][0]["virtual_hosts"]
    times = [route["route"]["idle_timeout"] for host in hosts for route in host["routes"] if "route" in route]
    return max((float(time.removesuffix("s")) for time in times), default=0.0)


def _statistic(path: str) -> str:
    """Where Envoy says which version of a file it goes by."""
    folder, _, name = path.partition("/")
    if folder == "eds":
        return f"cluster.{name.removesuffix('.json').replace('.', '/')}"
    return {
        CLUSTERS: "cluster_manager.cds",
        LISTENERS: "listener_manager.lds",
        ROUTE_FILE: f"http.gateway.rds.{ROUTES}",
        LIMITS: f"extension_config_discovery.http_filter.{RATE_LIMIT}",
    }[path]
