"""Control groups: cgroup v2 first (``cgroup.kill``, ``cgroup.freeze``), v1 for what v2 does not offer here, else nothing.

Machines mix both ("hybrid"): v2 may hold no controllers at all while v1 holds cpu, memory and pids. So every duty is
given to the first hierarchy that can do it: ending to v2 (else the v1 freezer), each limit to v2, else to v1.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

from penstock.engines.local import procs

_CONTROLLERS = ("memory", "cpu", "pids")
_PERIOD_US = 100_000  # the kernel's default CFS period
_STALE_S = 300.0


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


class Layout:
    """Where on this machine each duty can be done. ``limits`` maps a controller to the folder of its groups; ``homes``
    maps such a folder to the group that this process is in there.
    """

    def __init__(
        self, unified: str | None, limits: dict[str, str], freezer: str | None, homes: dict[str, str] | None = None
    ) -> None:
        self.unified = unified
        self.limits = limits
        self.freezer = freezer
        self.homes = homes or {}

    @property
    def contains(self) -> bool:
        """Whether a whole group can be ended at once."""
        return self.unified is not None or self.freezer is not None


def discover(mounts: str = "/proc/self/mounts", own: str = "/proc/self/cgroup") -> Layout:
    """Find (and make) the ``penstock`` folder of every hierarchy that lets us. Never raises."""
    try:
        table, groups = _read(mounts), _read(own)
    except OSError:
        return Layout(None, {}, None)
    ours = {names: path for _, names, path in (line.split(":", 2) for line in groups.splitlines())}
    unified: str | None = None
    v1: dict[str, str] = {}
    homes: dict[str, str] = {}
    for line in table.splitlines():
        _, point, kind, options = line.split()[:4]
        if kind == "cgroup2" and unified is None:
            unified = _base(point, ours.get("", "/"))
            if unified:
                homes[unified] = point + ours.get("", "/").rstrip("/")
        elif kind == "cgroup":
            for name in (*_CONTROLLERS, "freezer"):
                if name in options.split(",") and (base := _base(point, _own_v1(ours, name))):
                    v1[name] = base
                    homes[base] = point + _own_v1(ours, name).rstrip("/")
    limits = {name: v1[name] for name in _CONTROLLERS if name in v1}
    if unified:
        limits.update(dict.fromkeys(_enable(unified), unified))
    return Layout(unified, limits, v1.get("freezer"), homes)


def _own_v1(ours: dict[str, str], controller: str) -> str:
    return next((path for names, path in ours.items() if controller in names.split(",")), "/")


def _base(point: str, own: str) -> str | None:
    """``penstock`` below our own group, so that limits set on us hold for jobs too; below the root where that fails."""
    for parent in dict.fromkeys((point + own.rstrip("/"), point)):
        base = parent + "/penstock"
        try:
            os.makedirs(base, mode=0o755, exist_ok=True)
            if os.access(base, os.W_OK):
                return base
        except OSError:
            continue
    return None


def _enable(base: str) -> list[str]:
    """Switch controllers on for the children of ``base`` (v2); those that end up on."""
    for folder in (os.path.dirname(base), base):
        for name in _CONTROLLERS:
            with contextlib.suppress(OSError):
                _write(f"{folder}/cgroup.subtree_control", f"+{name}")
    try:
        return [name for name in _read(f"{base}/cgroup.subtree_control").split() if name in _CONTROLLERS]
    except OSError:
        return []


class Cage:
    """The control groups of one rank group (or, with children, of a whole attempt)."""

    def __init__(self, layout: Layout, name: str) -> None:
        self._layout = layout
        self._name = name
        self._folders: list[str] = []
        self._limited: dict[str, str] = {}

    def create(self, *, cpus: float | None, memory: int | None, pids: int | None) -> list[str]:
        """Make the groups and set the limits. Answers what could not be limited ("memory: no such controller here")."""
        wanted = {"cpu": cpus, "memory": memory, "pids": pids}
        self._limited = {c: base for c, base in self._layout.limits.items() if wanted[c] is not None}
        bases = [self._layout.unified or self._layout.freezer, *self._limited.values()]
        for base in dict.fromkeys(base for base in bases if base):
            folder = f"{base}/{self._name}"
            try:
                _make(folder, base if base == self._layout.unified else None)
            except OSError:
                self._limited = {c: b for c, b in self._limited.items() if b != base}
            else:
                self._folders.append(folder)
        missing = [f"{c}: no such controller here" for c in ("cpu", "memory") if wanted[c] and c not in self._limited]
        for controller, base in self._limited.items():
            try:
                self._limit(controller, f"{base}/{self._name}", float(wanted[controller] or 0))
            except OSError as error:
                missing.append(f"{controller}: {error.strerror}")
        return missing

    def _limit(self, controller: str, folder: str, value: float) -> None:
        v2 = folder.startswith(f"{self._layout.unified}/")
        if controller == "cpu":
            quota = max(1000, int(value * _PERIOD_US))
            _write(
                *((f"{folder}/cpu.max", f"{quota} {_PERIOD_US}") if v2 else (f"{folder}/cpu.cfs_quota_us", str(quota)))
            )
        elif controller == "pids":
            _write(f"{folder}/pids.max", str(int(value)))
        elif v2:
            _write(f"{folder}/memory.max", str(int(value)))
            for name, text in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                with contextlib.suppress(OSError):
                    _write(f"{folder}/{name}", text)
        else:
            _write(f"{folder}/memory.limit_in_bytes", str(int(value)))
            with contextlib.suppress(OSError):
                _write(f"{folder}/memory.memsw.limit_in_bytes", str(int(value)))

    def join(self) -> None:
        """Move the calling process in; what it forks from then on is inside too."""
        for folder in self._folders:
            _write(f"{folder}/cgroup.procs", "0")

    @property
    def contains(self) -> bool:
        """Whether all that is inside can be ended at once, and whoever joins can leave again."""
        return bool(self._folders) and all(os.path.dirname(folder) in self._layout.homes for folder in self._folders)

    def leave(self) -> None:
        """Move the calling process back out, to where it was; what it started inside stays. An alien group, from which
        we cannot get out, is given up: what is in it is then ended as anybody's children are.
        """
        for folder in self._folders:
            try:
                _write(f"{self._layout.homes[os.path.dirname(folder)]}/cgroup.procs", "0")
            except OSError:
                self._folders = []
                return

    def pids(self) -> list[int] | None:
        """Who is inside; None when no group is there to tell."""
        if not self._folders:
            return None
        found: list[int] = []
        stack = [self._folders[0]]
        while stack:
            folder = stack.pop()
            with contextlib.suppress(OSError):
                found.extend(map(int, _read(f"{folder}/cgroup.procs").split()))
                stack.extend(_subfolders(folder))
        return found

    def out_of_memory(self) -> bool:
        """Whether the kernel has ended a process of this group for its memory limit."""
        base = self._limited.get("memory")
        if base is None:
            return False
        folder = f"{base}/{self._name}"
        for name in ("memory.events", "memory.oom_control"):
            with contextlib.suppress(OSError):
                counts = dict(line.split() for line in _read(f"{folder}/{name}").splitlines())
                return int(counts.get("oom_kill", 0)) > 0
        return False

    def kill(self) -> bool:
        """End everything inside at once. False when there is no group that can."""
        if not self._folders:
            return False
        folder = self._folders[0]
        if os.path.exists(f"{folder}/cgroup.kill"):
            with contextlib.suppress(OSError):
                _write(f"{folder}/cgroup.kill", "1")
            return True
        self._freeze(folder, frozen=True)
        procs.send(self.pids() or (), signal.SIGKILL)
        self._freeze(folder, frozen=False)
        return True

    def _freeze(self, folder: str, *, frozen: bool) -> None:
        for name, text in (("cgroup.freeze", "01"[frozen]), ("freezer.state", "FROZEN" if frozen else "THAWED")):
            with contextlib.suppress(OSError):
                _write(f"{folder}/{name}", text)
                return

    def remove(self, wait_s: float = 5.0) -> None:
        """Take the folders away, waiting for what was killed inside to be gone; missing ones are fine."""
        deadline = time.monotonic() + wait_s
        for folder in self._folders:
            while not _remove(folder) and time.monotonic() < deadline:
                time.sleep(0.002)

    def attach(self) -> Cage:
        """Take over the folders that a dead supervisor left under this name."""
        bases = [self._layout.unified, self._layout.freezer, *self._layout.limits.values()]
        folders = [f"{base}/{self._name}" for base in dict.fromkeys(bases) if base]
        self._folders = [folder for folder in folders if os.path.isdir(folder)]
        return self


def _make(folder: str, unified: str | None) -> None:
    """mkdir; below an attempt's own folder the controllers must be passed on first (v2)."""
    try:
        os.mkdir(folder)
    except FileNotFoundError:
        parent = os.path.dirname(folder)
        os.mkdir(parent)
        if unified:
            _enable(parent)
        os.mkdir(folder)
    except FileExistsError:
        pass
    else:
        return


def sweep(layout: Layout, older_than_s: float = _STALE_S) -> int:
    """Remove groups that were left empty by supervisors which were killed together with all who would have tidied up.

    Only old ones, so that a group which was just made, and is still empty, is left alone. The number removed.
    """
    removed = 0
    now = time.time()
    for base in {layout.unified, layout.freezer, *layout.limits.values()} - {None}:
        for path in _subfolders(base or ""):
            with contextlib.suppress(OSError):
                if now - os.stat(path).st_ctime > older_than_s:
                    removed += _remove(path)
    return removed


def _remove(folder: str) -> bool:
    """rmdir of a group and those below it. True when it is gone."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        for path in _subfolders(folder):
            _remove(path)
        return False
    return True


def _subfolders(folder: str) -> list[str]:
    """Empty when the folder is gone."""
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_dir()]
    except OSError:
        return []
