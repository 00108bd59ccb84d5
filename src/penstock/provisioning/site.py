"""What a folder of Slurm's files says, whoever wrote them: its nodes, its GPUs, its switches, each with its line. Pure."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from penstock.provisioning import hostlist
from penstock.provisioning.conf import Read, read

_GRES = re.compile(r"([A-Za-z_][\w.-]*)(?::([A-Za-z_][\w.-]*))?(?::no_consume)?(?::(\d+)([KMGT]?))?(?:\([^)]*\))?")
_SCALE = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
Counts = dict[tuple[str, str], int]  # (name, type) -> how many


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node of slurm.conf. ``cores`` is None where the file does not tell."""

    line: int
    words: Mapping[str, str]  # in lower case: what its line and those before it called DEFAULT say
    gres: Counts

    def number(self, *names: str) -> int | None:
        for name in names:
            with contextlib.suppress(ValueError):
                return int(self.words[name]) if name in self.words else None
        return None

    @property
    def cores(self) -> int | None:
        sockets, per_socket = self.number("sockets"), self.number("corespersocket")
        if sockets is None and "socketsperboard" in self.words:
            sockets = (self.number("socketsperboard") or 1) * (self.number("boards") or 1)
        if sockets is not None and per_socket is not None:
            return sockets * per_socket
        cpus = self.number("cpus", "procs")
        return None if cpus is None or sockets or per_socket else cpus // (self.number("threadspercore") or 1)


@dataclass(frozen=True, slots=True)
class GresRecord:
    """A line of gres.conf; ``nodes`` is None where it names none."""

    line: int
    nodes: tuple[str, ...] | None
    name: str
    type: str
    files: tuple[str, ...]
    count: int | None
    cores: tuple[int, ...]
    autodetect: str

    @property
    def total(self) -> int:
        return self.count if self.count is not None else len(self.files) or 1


@dataclass(slots=True)
class Site:
    """``unread``: (file, line, what is wrong) of values that cannot be read."""

    files: Mapping[str, str]
    lines: dict[str, list[Read]] = field(default_factory=dict)
    settings: dict[str, tuple[str, int]] = field(default_factory=dict)  # of slurm.conf, in lower case: value and line
    nodes: dict[str, NodeFacts] = field(default_factory=dict)
    again: list[tuple[str, int, int]] = field(default_factory=list)  # a node, its line, and that of its second record
    partitions: dict[str, Read] = field(default_factory=dict)
    gres: list[GresRecord] = field(default_factory=list)
    unread: list[tuple[str, int, str]] = field(default_factory=list)

    @classmethod
    def of(cls, files: Mapping[str, str]) -> Site:
        site = cls(files)
        site.lines = {name: read(text) for name, text in files.items() if name.endswith(".conf")}
        site._slurm()
        site.gres = [one for line in site.lines.get("gres.conf", ()) for one in site._gres(line)]
        return site

    def get(self, name: str, default: str = "") -> str:
        return self.settings.get(name.lower(), (default, 0))[0]

    def line(self, name: str) -> int | None:
        return self.settings[name.lower()][1] if name.lower() in self.settings else None

    def names(self, file: str, line: int, text: str) -> tuple[str, ...]:
        try:
            return hostlist.expand(text)
        except ValueError as exc:
            self.unread.append((file, line, str(exc)))
            return ()

    def _slurm(self) -> None:
        usual: dict[str, str] = {}
        for line in self.lines.get("slurm.conf", ()):
            if line.kind == "nodename":
                words = usual | {key.lower(): value for key, value in line.pairs}
                if line.get("nodename").upper() == "DEFAULT":
                    usual = {key: value for key, value in words.items() if key != "nodename"}
                else:
                    self._node(line, words)
            elif line.kind == "partitionname":
                self.partitions[line.get("partitionname")] = line
            elif line.kind not in ("nodeset", "downnodes", "frontendname"):
                self.settings.update({key.lower(): (value, line.number) for key, value in line.pairs})

    def _node(self, line: Read, words: dict[str, str]) -> None:
        counts = self.counts("slurm.conf", line.number, words.get("gres", ""))
        for name in self.names("slurm.conf", line.number, words["nodename"]):
            if name in self.nodes:
                self.again.append((name, self.nodes[name].line, line.number))
            self.nodes[name] = NodeFacts(line.number, words, counts)

    def counts(self, file: str, line: int, text: str) -> Counts:
        """``gpu:h100:8,nic:2`` by name and type."""
        found: Counts = {}
        for item in filter(None, text.split(",")):
            match = _GRES.fullmatch(item)
            if match is None:
                self.unread.append((file, line, f"{item!r} is no gres: write NAME:TYPE:COUNT, such as gpu:h100:8"))
                continue
            key = (match[1].lower(), match[2] or "")
            found[key] = found.get(key, 0) + int(match[3] or 1) * _SCALE[match[4] or ""]
        return found

    def _gres(self, line: Read) -> Iterator[GresRecord]:
        nodes, files, cores = line.get("NodeName"), line.get("File") or line.get("Files"), line.get("Cores")
        count = re.fullmatch(r"(\d+)([KMGT]?)", line.get("Count"))
        numbers: tuple[int, ...] = ()
        if cores:
            try:
                numbers = tuple(int(one) for one in hostlist.expand(f"[{cores.strip('[]')}]"))
            except ValueError:
                self.unread.append(("gres.conf", line.number, f"Cores={cores} are no numbers, such as 0-47"))
        yield GresRecord(
            line.number,
            self.names("gres.conf", line.number, nodes) if nodes else None,
            line.get("Name").lower(),
            line.get("Type"),
            self.names("gres.conf", line.number, files) if files else (),
            int(count[1]) * _SCALE[count[2]] if count else None,
            numbers,
            line.get("AutoDetect").lower(),
        )
