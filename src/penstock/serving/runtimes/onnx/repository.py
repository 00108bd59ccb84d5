"""Which models there are, which are loaded: FOLDER/NAME/VERSION/model.onnx, and single files that were named.

Of a model the newest version is loaded, unless the caller of `load` names others, in Triton's words
(``{"version_policy": {"specific": {"versions": [1, 2]}}}``, ``all``, or ``latest`` with ``num_versions``).
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from penstock.serving.runtimes.onnx.errors import Refused, invalid, not_found, unavailable
from penstock.serving.runtimes.onnx.version import Limits, State, Version, file_id

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
FILE = "model.onnx"
_DRAIN_S = 30.0


def check_name(name: str) -> str:
    """A model's name is one path segment that leads nowhere else."""
    if not NAME.fullmatch(name):
        raise invalid(f"model name {name!r:.100}: letters, digits, '.', '_' and '-', at most 128")
    return name


def file_of(path: str) -> str:
    """A model may be given as its file or the folder in which it lies."""
    return os.path.join(path, FILE) if os.path.isdir(path) else path


class Repository:
    """``folder`` may be empty; ``named`` are models given one by one: (name, version) -> path."""

    def __init__(self, folder: str | None, named: Mapping[tuple[str, str], str], limits: Limits) -> None:
        self.folder = folder
        self.named = dict(named)
        self.limits = limits
        self._loaded: dict[str, dict[str, Version]] = {}
        self._newest: dict[str, Version] = {}
        self._turn: dict[str, asyncio.Lock] = {}

    # ----------------------------------------------------------------------------------------------------- on disk

    def found(self) -> dict[str, dict[str, str]]:
        """Every model's versions and their files."""
        models: dict[str, dict[str, str]] = {}
        if self.folder is not None:
            for name in sorted(_folders(self.folder)):
                versions = self._versions_on_disk(name) if NAME.fullmatch(name) else {}
                if versions:
                    models[name] = versions
        for (name, version), path in self.named.items():
            models.setdefault(name, {})[version] = file_of(path)
        return models

    def _versions_on_disk(self, name: str) -> dict[str, str]:
        if self.folder is None:
            return {}
        root = os.path.join(self.folder, name)
        return {
            version: os.path.join(root, version, FILE)
            for version in _folders(root)
            if version.isascii() and version.isdigit() and os.path.isfile(os.path.join(root, version, FILE))
        }

    def _files(self, name: str) -> dict[str, str]:
        files = self._versions_on_disk(name)
        files |= {version: file_of(path) for (of, version), path in self.named.items() if of == name}
        return files

    # ------------------------------------------------------------------------------------------------------ loaded

    def loaded(self) -> Iterator[Version]:
        for versions in self._loaded.values():
            yield from versions.values()

    def version(self, name: str, version: str = "") -> Version:
        """A loaded one; the newest where none is named. Raises Refused (404: there is none such)."""
        if not version:
            newest = self._newest.get(name)
            if newest is not None:
                return newest
        else:
            there = self._loaded.get(name, {}).get(version)
            if there is not None:
                return there
        check_name(name)
        of = f" version {version[:40]}" if version else ""
        raise not_found(f"Request for unknown model: '{name}'{of} is not found")

    def versions(self, name: str) -> list[Version]:
        self.version(name)
        return list(self._loaded[name].values())

    def counted(self, name: str, version: str = "") -> list[Version]:
        """Whose statistics were asked for. Raises Refused, as Triton does with 400 here and 404 elsewhere."""
        try:
            return [self.version(name, version)] if version else self.versions(name)
        except Refused as error:
            raise invalid(error.message) from error

    def start_all(self) -> None:
        """Begin to load every model's newest version."""
        for name, files in self.found().items():
            self._begin(name, {version: files[version] for version in _chosen(files, {})}, self.limits)

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load what is on disk; what was loaded and is not chosen is unloaded. Raises Refused."""
        check_name(name)
        config = _config(parameters)
        async with self._turn.setdefault(name, asyncio.Lock()):
            files = self._files(name)
            if not files:
                raise not_found(f"failed to load '{name}', failed to poll from model repository")
            chosen = {version: files[version] for version in _chosen(files, config)}
            before = dict(self._loaded.get(name, {}))
            fresh = [
                Version(name, version, path, self.limits)
                for version, path in chosen.items()
                if not _same(before.get(version), path)
            ]
            for one in fresh:
                one.start()
            await asyncio.gather(*(one.settled() for one in fresh))
            broken = [one for one in fresh if not one.ready]
            if broken:
                why = broken[0].reason
                for one in fresh:
                    await one.close()
                if not before:
                    for one in fresh:
                        one.state, one.reason = State.UNAVAILABLE, why
                    self._loaded[name] = {one.version: one for one in fresh}
                    self._rank(name)
                raise invalid(f"failed to load '{name}', version {broken[0].version}: {why}")
            kept = {version: one for version, one in before.items() if version in chosen}
            self._loaded[name] = kept | {one.version: one for one in fresh}
            self._rank(name)
            await _end(one for one in before.values() if self._loaded[name].get(one.version) is not one)

    async def unload(self, name: str) -> None:
        """Take no more requests, answer what is there, give the memory back."""
        check_name(name)
        async with self._turn.setdefault(name, asyncio.Lock()):
            versions = self._loaded.pop(name, None)
            self._newest.pop(name, None)
            if versions is None:
                if not self._files(name):
                    raise not_found(f"failed to unload '{name}': no such model")
                return
            await _end(versions.values())

    async def close(self, within: float) -> None:
        """Answer what is there, for so long at most; end every process."""
        versions = list(self.loaded())
        await asyncio.gather(*(one.drain(within) for one in versions))
        await asyncio.gather(*(one.close() for one in versions))

    def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """Triton's repository index: what is on disk or loaded."""
        rows: list[dict[str, str]] = []
        found = self.found()
        for name in sorted(found.keys() | self._loaded.keys()):
            there = self._loaded.get(name, {})
            for one in there.values():
                if one.ready or not ready:
                    rows.append({"name": name, "version": one.version, "state": str(one.state), "reason": one.reason})
            if not there and not ready:
                rows.append({"name": name})
        return rows

    def ready(self) -> None:
        """Raises Refused while a model that is to be there is not."""
        for one in self.loaded():
            if not one.ready:
                raise unavailable(f"{one.label} is {one.state}: {one.reason or 'it loads'}")

    def _begin(self, name: str, files: Mapping[str, str], limits: Limits) -> None:
        self._loaded[name] = {version: Version(name, version, path, limits) for version, path in files.items()}
        self._rank(name)
        for one in self._loaded[name].values():
            one.start()

    def _rank(self, name: str) -> None:
        versions = self._loaded[name]
        self._newest[name] = versions[max(versions, key=int)]


def _folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _same(loaded: Version | None, path: str) -> bool:
    """Whether this very file is loaded already."""
    if loaded is None or not loaded.ready or loaded.path != path:
        return False
    return loaded.file == file_id(path)


async def _end(versions: Iterable[Version]) -> None:
    for one in list(versions):
        await one.drain(_DRAIN_S)
        await one.close()
    _trim()


def _trim() -> None:
    """Give back to the system what the requests of an unloaded model left in this process' heap; glibc's alone has that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _config(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The ``config`` parameter of `load`: JSON with a version policy; nothing else can be changed in passing."""
    for name in parameters:
        if name != "config":
            raise invalid(f"load: parameter {name!r:.60} is not taken: models come from the repository")
    text = parameters.get("config", "{}")
    try:
        config = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(f"load: config: is no JSON: {error!s:.100}") from error
    if not isinstance(config, dict):
        raise invalid("load: config: is an object")
    return config


def _chosen(files: Mapping[str, str], config: Mapping[str, Any]) -> list[str]:
    """The versions that a version policy picks, oldest first."""
    order = sorted(files, key=int)
    policy = config.get("version_policy") or {"latest": {"num_versions": 1}}
    kinds = policy if isinstance(policy, dict) else {}
    try:
        if "all" in kinds:
            return order
        if "specific" in kinds:
            wanted = [str(int(version)) for version in kinds["specific"]["versions"]]
            missing = [version for version in wanted if version not in files]
            if missing or not wanted:
                raise invalid(
                    f"load: there is no version {', '.join(missing) or 'named'}; there are {', '.join(order)}"
                )
            return sorted(set(wanted), key=int)
        count = int(kinds["latest"].get("num_versions", 1))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise invalid("load: config: version_policy: name `latest`, `all` or `specific`") from error
    return order[-max(1, count) :]
