"""The fleet file, as it is written: machines, how they are cabled, and the Slurm that is to run on them.

Every name, path and number is bounded here to what the files of Slurm can hold, so that nothing written can become another
option there; ``conf.py`` refuses it once more. Memory is in bytes, times in seconds.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from penstock.base.quantities import parse_duration, parse_memory
from penstock.provisioning import conf, hostlist, keys

Version = Literal["22.05", "23.02", "23.11", "24.05", "24.11", "25.05", "25.11"]


def _matching(pattern: str, told: str) -> AfterValidator:
    compiled = re.compile(pattern, re.ASCII)

    def check(value: str) -> str:
        if compiled.fullmatch(value) is None:
            raise ValueError(told)
        return value

    return AfterValidator(check)


def _fit(value: str) -> str:
    if problem := conf.unfit(value):
        raise ValueError(problem)
    return value


def _usual(value: str) -> str:
    if value.upper() in ("ALL", "DEFAULT", "NONE"):
        raise ValueError(f"{value!r} means something else in Slurm: choose another name")
    return value


def _not_default(value: str) -> str:
    if value.upper() == "DEFAULT":
        raise ValueError(f"{value!r} means something else in Slurm: choose another name")
    return value


def _scalar(value: object) -> object:
    """What YAML reads as a number or a truth is text to Slurm."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, (int, float)) else value


def _off(value: object) -> object:
    """YAML reads ``off`` as false."""
    return "off" if value is False else value


def _names(value: object) -> object:
    """``gpu[001-128]``, or a list of such."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("must be names, such as gpu[001-128], or a list of them")
    return tuple(name for item in items for name in hostlist.expand(item))


def _numbers(value: object) -> object:
    """``6818``, ``[26831-26838]``, or a list of numbers."""
    if isinstance(value, str):
        value = list(hostlist.expand(value))
    return tuple(value) if isinstance(value, list) else (value,)


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    seen: set[Any] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{value} stands there twice")
        seen.add(value)
    if not values:
        raise ValueError("must not be empty")
    return values


_NODE = _matching(r"[A-Za-z][A-Za-z0-9_-]{0,62}", "must be letters, digits, - and _, beginning with a letter")
_HOST = _matching(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,252}", "must be a host name or an address")
_PATH = _matching(r"/[A-Za-z0-9._/@+%-]*", "must be an absolute path of letters, digits and . _ / @ + -")
Word = Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,127}", "must be letters, digits and _ . @ + -")]
Node = Annotated[str, _NODE, AfterValidator(_usual)]
Named = Annotated[str, _NODE, AfterValidator(_not_default)]
Host = Annotated[str, _HOST]
Path = Annotated[str, _PATH]
Fit = Annotated[str, BeforeValidator(_scalar), AfterValidator(_fit)]
Nodes = Annotated[tuple[Node, ...], BeforeValidator(_names), AfterValidator(_once)]
Hosts = Annotated[tuple[Host, ...], BeforeValidator(_names)]
Port = Annotated[int, Field(strict=True, ge=1, le=65_535)]
Ports = Annotated[tuple[Annotated[int, Field(ge=1, le=65_535)], ...], BeforeValidator(_numbers)]
Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Weight = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)]
Memory = Annotated[int, BeforeValidator(parse_memory), Field(ge=1 << 20)]
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=60)]
User = Annotated[str, _matching(r"[a-z_][a-z0-9_-]{0,31}", "must be a Unix user")]
Value = Annotated[
    str, BeforeValidator(_scalar), _matching(r"[A-Za-z0-9_.:/+%@-]+", "must be letters, digits and _ . : / + % @ -")
]
Option = Annotated[str, _matching(r"[A-Za-z][A-Za-z0-9_]*", "must be letters, digits and _")]


def _parameter(value: object) -> object:
    """True stays what it is, and 1 is a number: to pydantic both are Literal[True]."""
    if value is False:
        raise ValueError("leave it out: a parameter without a value is true")
    return value if value is True else _scalar(value)


Parameter = Annotated[Annotated[bool, Field(strict=True)] | Value, BeforeValidator(_parameter)]


class Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


def _extra(file: str, ours: str, first: str = "") -> AfterValidator:
    """More of a file's own words: what ``file`` knows and no other field says (``ours``, in lower case)."""
    elsewhere = frozenset(ours.split())

    def check(value: dict[str, str]) -> dict[str, str]:
        for word in value:
            if word.lower() in elsewhere:
                raise ValueError(f"{word} is rendered from other fields of the fleet file: say it there")
            if not keys.known(file, word, first):
                near = keys.likest(file, word, first)
                raise ValueError(f"{word} is no word of {file}" + (f": did you mean {near}?" if near else ""))
        if len({word.lower() for word in value}) < len(value):
            raise ValueError("the same word stands there twice: Slurm does not look at case")
        return value

    return AfterValidator(check)


More = dict[Option, Fit]
SlurmExtra = Annotated[
    More,
    _extra(
        "slurm.conf",
        "nodename partitionname nodeset downnodes frontendname include clustername slurmctldhost controlmachine "
        "topologyplugin grestypes slurmctldport slurmdport slurmuser",
    ),
]
NodeExtra = Annotated[
    More,
    _extra(
        "slurm.conf",
        "nodename nodeaddr nodehostname port cpus procs boards sockets socketsperboard cores corespersocket "
        "threadspercore realmemory gres feature features weight",
        "nodename",
    ),
]
PartitionExtra = Annotated[
    More,
    _extra(
        "slurm.conf",
        "partitionname nodes default maxtime defaulttime priority prioritytier priorityjobfactor preemptmode "
        "allowaccounts allowqos state",
        "partitionname",
    ),
]
DbdExtra = Annotated[
    More,
    _extra(
        "slurmdbd.conf",
        "dbdhost dbdaddr dbdport slurmuser storagehost storageport storageuser storagepass storageloc include",
    ),
]
CgroupExtra = Annotated[
    More,
    _extra(
        "cgroup.conf",
        "include cgroupplugin constraincores constrainramspace constraindevices constrainswapspace",
    ),
]


class Affinity(Form):
    """Which cores are near which of a node's GPUs. Cores are counted as Slurm counts: no threads, from 0, by socket."""

    gpus: Annotated[str, _matching(r"\d+(-\d+)?(,\d+(-\d+)?)*", "must be numbers, such as 0-3")]
    cores: Annotated[str, _matching(r"\d+(-\d+)?(,\d+(-\d+)?)*", "must be numbers, such as 0-47")]


class Gpus(Form):
    """Of one node. ``files``: their device files, one each; ``autodetect``: a library that slurmd was built with finds them."""

    model: Annotated[str, _matching(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", "must be letters, digits, _ . and -")]
    count: Annotated[int, Field(strict=True, ge=1, le=1024)]
    files: (
        Annotated[str, _matching(r"/[A-Za-z0-9._/@+,\[\]-]+", "must be device files, such as /dev/nvidia[0-7]")] | None
    ) = None
    autodetect: Literal["nvml", "nvidia", "rsmi", "oneapi", "nrt"] | None = None
    affinity: tuple[Affinity, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.autodetect is not None and (self.files or self.affinity):
            raise ValueError("autodetect finds the device files and cores itself: leave files and affinity out")
        files = hostlist.expand(self.device_files)
        if len(set(files)) != self.count:
            raise ValueError(f"files names {len(set(files))} device files for a count of {self.count}")
        told = [gpu for one in self.affinity for gpu in numbers(one.gpus)]
        if told and sorted(told) != list(range(self.count)):
            raise ValueError(f"affinity must name each GPU from 0 to {self.count - 1} once")
        return self

    @property
    def device_files(self) -> str:
        return self.files or (f"/dev/nvidia[0-{self.count - 1}]" if self.count > 1 else "/dev/nvidia0")


def numbers(text: str) -> list[int]:
    """``0-3,8`` -> 0, 1, 2, 3, 8. Raises ValueError."""
    return [int(one) for one in hostlist.expand(f"[{text}]")]


class Pool(Form):
    """Nodes of one kind. ``addresses`` and ``hostnames`` are as many as the nodes, or one for all of them."""

    name: Word
    nodes: Nodes
    addresses: Hosts | None = None
    hostnames: Hosts | None = None
    port: Ports | None = None
    cpus: Count | None = None
    sockets: Count | None = None
    cores_per_socket: Count | None = None
    threads_per_core: Count | None = None
    memory: Memory
    gpus: Gpus | None = None
    features: tuple[Word, ...] = ()
    weight: Weight | None = None
    extra: NodeExtra = Field(default_factory=dict)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for name in ("addresses", "hostnames", "port"):
            count = len(getattr(self, name) or (1,))
            if count not in (1, len(self.nodes)):
                raise ValueError(f"{name} has {count} for {len(self.nodes)} nodes: write one for each, or one for all")
        layout = (self.sockets, self.cores_per_socket, self.threads_per_core)
        if None in layout and (any(layout) or self.cpus is None):
            raise ValueError("write sockets, cores_per_socket and threads_per_core, or cpus alone")
        if self.cpus is not None and all(layout) and self.cpus not in (self.cores, self.threads):
            raise ValueError(f"cpus is {self.cpus}, but the sockets have {self.cores} cores and {self.threads} threads")
        if self.gpus is not None:
            for one in self.gpus.affinity:
                if max(numbers(one.cores)) >= self.cores:
                    raise ValueError(
                        f"gpus.affinity names core {max(numbers(one.cores))}, but the node's cores are 0 to "
                        f"{self.cores - 1}: Slurm counts cores, not threads"
                    )
        return self

    @property
    def cores(self) -> int:
        return (self.sockets or 0) * (self.cores_per_socket or 0) or self.cpus or 0

    @property
    def threads(self) -> int:
        """What Slurm calls CPUs."""
        return self.cores * (self.threads_per_core or 1) if self.sockets else self.cpus or 0


class Rack(Form):
    name: Word
    nodes: Nodes


class Switch(Form):
    """A leaf has nodes; a spine, and whatever is above, has switches."""

    name: Node
    nodes: Nodes | None = None
    switches: Nodes | None = None

    @model_validator(mode="after")
    def _either(self) -> Self:
        if (self.nodes is None) == (self.switches is None):
            raise ValueError("a switch has nodes, or switches: write one of the two")
        return self


class Block(Form):
    """Nodes of one NVLink domain, say."""

    name: Node
    nodes: Nodes


class Topology(Form):
    kind: Literal["tree", "block"]
    switches: tuple[Switch, ...] = ()
    blocks: tuple[Block, ...] = ()
    block_sizes: tuple[Count, ...] = ()

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if self.kind == "tree" and (not self.switches or self.blocks or self.block_sizes):
            raise ValueError("a tree has switches, and neither blocks nor block_sizes")
        if self.kind == "block" and (not self.blocks or self.switches):
            raise ValueError("kind: block has blocks, and no switches")
        if list(self.block_sizes) != sorted(set(self.block_sizes)):
            raise ValueError("block_sizes must grow")
        return self


class Partition(Form):
    name: Named
    nodes: Nodes | Literal["all"] = "all"
    default: bool = False
    state: Literal["up", "down", "drain", "inactive"] = "up"
    max_time: Seconds | None = None
    default_time: Seconds | None = None
    priority_tier: Annotated[int, Field(strict=True, ge=0, le=65_533)] | None = None
    priority_factor: Annotated[int, Field(strict=True, ge=0, le=65_533)] | None = None
    preempt_mode: Annotated[Literal["off", "requeue", "cancel", "suspend"], BeforeValidator(_off)] | None = None
    allow_accounts: tuple[Word, ...] = ()
    allow_qos: tuple[Word, ...] = ()
    extra: PartitionExtra = Field(default_factory=dict)


class Controller(Form):
    """Where slurmctld runs; the first is the primary."""

    host: Host
    address: Host | None = None


class Database(Form):
    host: Host = "localhost"
    port: Port = 3306
    name: Annotated[str, _matching(r"[A-Za-z0-9_]{1,64}", "must be letters, digits and _")] = "slurm_acct_db"
    user: Word = "slurm"
    password: Fit | None = None


class Accounting(Form):
    """slurmdbd and its database."""

    host: Host
    address: Host | None = None
    port: Port = 6819
    database: Database = Field(default_factory=Database)
    enforce: tuple[Literal["associations", "limits", "qos", "safe", "wckeys", "nojobs", "nosteps"], ...] = (
        "associations",
        "limits",
        "qos",
    )
    extra: DbdExtra = Field(default_factory=dict)


class Scheduler(Form):
    """``parameters``: of SchedulerParameters; true stands for a bare one. ``weights``: of priority/multifactor."""

    parameters: dict[Option, Parameter] = Field(default_factory=dict)
    weights: dict[Literal["age", "assoc", "fairshare", "job_size", "partition", "qos"], Weight] = Field(
        default_factory=dict
    )
    preempt: Literal["partition", "qos"] | None = None
    preempt_mode: Literal["requeue", "cancel", "suspend"] = "requeue"


class Cgroup(Form):
    """What control groups hold jobs to. ``plugin: none``: no control groups; memory is then watched by sampling."""

    plugin: Literal["autodetect", "v1", "v2", "none"] = "autodetect"
    cores: bool = True
    memory: bool = True
    devices: bool = True
    swap: bool = False
    extra: CgroupExtra = Field(default_factory=dict)


class SlurmPorts(Form):
    controller: Port = 6817
    node: Port = 6818


class Slurm(Form):
    """The installation: what version the files are for, who runs slurmctld, where it keeps what."""

    version: Version = "24.11"
    user: User = "slurm"
    state_dir: Path = "/var/spool/slurmctld"
    spool_dir: Path = "/var/spool/slurmd"
    log_dir: Path = "/var/log/slurm"
    run_dir: Path = "/run"
    munge_socket: Path | None = None
    jwt_key: Path | None = None
    ports: SlurmPorts = Field(default_factory=SlurmPorts)
    default_memory_per_cpu: Memory | None = None
    cgroup: Cgroup = Field(default_factory=Cgroup)
    extra: SlurmExtra = Field(default_factory=dict)


class Fleet(Form):
    """The whole file."""

    kind: Literal["Fleet"]
    name: Annotated[str, _matching(r"[a-z][a-z0-9_-]{0,39}", "must be small letters, digits, - and _, at most 40")]
    controllers: Annotated[tuple[Controller, ...], Field(min_length=1)]
    pools: Annotated[tuple[Pool, ...], Field(min_length=1)]
    racks: tuple[Rack, ...] = ()
    topology: Topology | None = None
    partitions: Annotated[tuple[Partition, ...], Field(min_length=1)]
    accounting: Accounting | None = None
    scheduler: Scheduler = Field(default_factory=Scheduler)
    slurm: Slurm = Field(default_factory=Slurm)

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(name for pool in self.pools for name in pool.nodes)
