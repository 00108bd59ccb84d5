"""Fleet -> the files of Slurm, as structure: keys and values that ``conf.py`` makes text of. Pure.

slurm.conf, gres.conf and cgroup.conf are the same on every host; slurmdbd.conf, which may hold a password, is for the
database daemon's host alone and readable by its user only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import yaml

from penstock.provisioning.conf import HEAD, ConfFile, Line
from penstock.provisioning.hostlist import expand, fold
from penstock.provisioning.spec import Fleet, Gpus, Partition, Pool, Topology, numbers

_MIB = 1 << 20
_YAML_SINCE = "25.05"  # topology.yaml
_WEIGHTS = {
    "age": "Age",
    "assoc": "Assoc",
    "fairshare": "Fairshare",
    "job_size": "JobSize",
    "partition": "Partition",
    "qos": "QOS",
}
_PREEMPT = {"partition": "preempt/partition_prio", "qos": "preempt/qos"}


def render(fleet: Fleet) -> tuple[ConfFile, ...]:
    """Every file, by name."""
    files = [ConfFile("slurm.conf", (*_settings(fleet), *_nodes(fleet), *_partitions(fleet)))]
    if any(pool.gpus for pool in fleet.pools):
        files.append(ConfFile("gres.conf", tuple(_gres(fleet.pools))))
    if fleet.slurm.cgroup.plugin != "none":
        files.append(ConfFile("cgroup.conf", tuple(_cgroup(fleet))))
    if fleet.topology is not None:
        files.append(_topology(fleet.name, fleet.topology, as_yaml=fleet.slurm.version >= _YAML_SINCE))
    if fleet.accounting is not None:
        files.append(ConfFile("slurmdbd.conf", tuple(_slurmdbd(fleet)), mode=0o600))
    return tuple(files)


# -- slurm.conf


def _settings(fleet: Fleet) -> Iterator[Line]:
    told: dict[str, str] = {"ClusterName": fleet.name}
    told |= _daemons(fleet) | _limits(fleet) | _scheduling(fleet)
    if fleet.accounting is not None:
        told |= _accounting(fleet)
    told = _over(told, fleet.slurm.extra)
    for key, value in told.items():
        yield Line(((key, value),))
        if key == "ClusterName":
            for one in fleet.controllers:
                host = f"{one.host}({one.address})" if one.address else one.host
                yield Line((("SlurmctldHost", host),))


def _over(told: dict[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """``extra`` in the place of what it names, whatever its case."""
    ours = {key.lower(): key for key in told}
    return told | {ours.get(key.lower(), key): value for key, value in extra.items()}


def _daemons(fleet: Fleet) -> dict[str, str]:
    slurm = fleet.slurm
    many = ".%n" if _several_on_a_host(fleet) else ""
    told = {
        "SlurmctldPort": str(slurm.ports.controller),
        "SlurmdPort": str(slurm.ports.node),
        "SlurmUser": slurm.user,
        "AuthType": "auth/munge",
        "StateSaveLocation": slurm.state_dir,
        "SlurmdSpoolDir": slurm.spool_dir + ("" if "%n" in slurm.spool_dir else many),
        "SlurmctldPidFile": f"{slurm.run_dir}/slurmctld.pid",
        "SlurmdPidFile": f"{slurm.run_dir}/slurmd{many}.pid",
        "SlurmctldLogFile": f"{slurm.log_dir}/slurmctld.log",
        "SlurmdLogFile": f"{slurm.log_dir}/slurmd{many}.log",
        "ReturnToService": "1",
    }
    return told | _auth(fleet)


def _auth(fleet: Fleet) -> dict[str, str]:
    told = {}
    if fleet.slurm.munge_socket:
        told["AuthInfo"] = f"socket={fleet.slurm.munge_socket}"
    if fleet.slurm.jwt_key:
        told |= {"AuthAltTypes": "auth/jwt", "AuthAltParameters": f"jwt_key={fleet.slurm.jwt_key}"}
    return told


def _several_on_a_host(fleet: Fleet) -> bool:
    hosts: Counter[str] = Counter()
    for pool in fleet.pools:
        names = pool.hostnames or pool.nodes
        hosts.update({names[0]: len(pool.nodes)} if len(names) == 1 else Counter(names))
    return max(hosts.values()) > 1


def _limits(fleet: Fleet) -> dict[str, str]:
    """How jobs are watched and held to what they asked for."""
    cgroup = fleet.slurm.cgroup
    told = {"SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core_Memory"}
    least = min(_usable(pool) / _cpus(pool) for pool in fleet.pools)
    stated = fleet.slurm.default_memory_per_cpu
    told["DefMemPerCPU"] = str(max(1, math.floor(least if stated is None else stated / _MIB)))
    if cgroup.plugin == "none":
        return told | {
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherParams": "OverMemoryKill",
        }
    told |= {"ProctrackType": "proctrack/cgroup", "TaskPlugin": "task/cgroup,task/affinity"}
    return told | {"JobAcctGatherType": "jobacct_gather/cgroup"}


def _cpus(pool: Pool) -> int:
    """Threads, where the file does not say that cores are meant."""
    return pool.threads if pool.cpus is None else pool.cpus


def _usable(pool: Pool) -> float:
    """MiB of a node, less what is kept for the system."""
    kept = pool.extra.get("MemSpecLimit", "0")
    return pool.memory / _MIB - (int(kept) if kept.isdecimal() else 0)


def _scheduling(fleet: Fleet) -> dict[str, str]:
    told = {"SchedulerType": "sched/backfill"}
    if any(pool.gpus for pool in fleet.pools):
        told["GresTypes"] = "gpu"
    if fleet.scheduler.parameters:
        words = [key if value is True else f"{key}={value}" for key, value in fleet.scheduler.parameters.items()]
        told["SchedulerParameters"] = ",".join(words)
    if fleet.scheduler.weights:
        told["PriorityType"] = "priority/multifactor"
        for name, weight in fleet.scheduler.weights.items():
            told[f"PriorityWeight{_WEIGHTS[name]}"] = str(weight)
    if fleet.scheduler.preempt is not None:
        mode = fleet.scheduler.preempt_mode
        told["PreemptType"] = _PREEMPT[fleet.scheduler.preempt]
        told["PreemptMode"] = "SUSPEND,GANG" if mode == "suspend" else mode.upper()
    if fleet.topology is not None:
        told["TopologyPlugin"] = f"topology/{fleet.topology.kind}"
    return told


def _accounting(fleet: Fleet) -> dict[str, str]:
    accounting = fleet.accounting
    assert accounting is not None
    models = dict.fromkeys(pool.gpus.model for pool in fleet.pools if pool.gpus)
    told = {
        "AccountingStorageType": "accounting_storage/slurmdbd",
        "AccountingStorageHost": accounting.host,
        "AccountingStoragePort": str(accounting.port),
    }
    if models:
        told["AccountingStorageTRES"] = ",".join(["gres/gpu", *(f"gres/gpu:{model}" for model in models)])
    if accounting.enforce:
        told["AccountingStorageEnforce"] = ",".join(accounting.enforce)
    if fleet.slurm.munge_socket:
        told["AccountingStoragePass"] = fleet.slurm.munge_socket
    return told


def _nodes(fleet: Fleet) -> Iterator[Line]:
    """A line for each run of a pool's nodes that have the same features, which racks may part."""
    racks = {name: rack.name for rack in fleet.racks for name in rack.nodes}
    for pool in fleet.pools:
        for run in _runs([racks.get(name) for name in pool.nodes]):
            rack = racks.get(pool.nodes[run.start])
            features = [*pool.features, *([f"rack_{rack}"] if rack else [])]
            yield _node_line(pool, run, features)


def _runs(values: Sequence[object]) -> Iterator[range]:
    start = 0
    for at in range(1, len(values) + 1):
        if at == len(values) or values[at] != values[start]:
            yield range(start, at)
            start = at


def _node_line(pool: Pool, run: range, features: list[str]) -> Line:
    def of(values: tuple[str, ...] | None) -> str | None:
        if values is None:
            return None
        return values[0] if len(values) == 1 else fold(values[at] for at in run)

    ports = pool.port if pool.port is None or len(pool.port) == 1 else [pool.port[at] for at in run]
    port = None if ports is None else fold(map(str, ports)) if len(ports) == 1 else f"[{_span(ports)}]"
    line = Line.of(
        NodeName=fold(pool.nodes[at] for at in run),
        NodeAddr=of(pool.addresses),
        NodeHostname=of(pool.hostnames),
        Port=port,
        CPUs=_cpus(pool),
        Sockets=pool.sockets,
        CoresPerSocket=pool.cores_per_socket,
        ThreadsPerCore=pool.threads_per_core,
        RealMemory=pool.memory // _MIB,
        Gres=f"gpu:{pool.gpus.model}:{pool.gpus.count}" if pool.gpus else None,
        Feature=",".join(features) or None,
        Weight=pool.weight,
        State="UNKNOWN",
    )
    return _with(line, pool.extra)


def _span(values: Sequence[int]) -> str:
    """26831-26838, or each of them."""
    text = fold(f"p{value}" for value in values)
    return text.removeprefix("p").strip("[]")


def _with(line: Line, extra: Mapping[str, str]) -> Line:
    return Line(tuple(_over(dict(line.pairs), extra).items()))


def _partitions(fleet: Fleet) -> Iterator[Line]:
    for partition in fleet.partitions:
        yield _partition(partition, default=partition.default or len(fleet.partitions) == 1)


def _partition(partition: Partition, *, default: bool) -> Line:
    line = Line.of(
        PartitionName=partition.name,
        Nodes="ALL" if isinstance(partition.nodes, str) else fold(partition.nodes),
        Default="YES" if default else None,
        MaxTime=slurm_time(partition.max_time),
        DefaultTime=None if partition.default_time is None else slurm_time(partition.default_time),
        PriorityTier=partition.priority_tier,
        PriorityJobFactor=partition.priority_factor,
        PreemptMode=partition.preempt_mode and partition.preempt_mode.upper(),
        AllowAccounts=",".join(partition.allow_accounts) or None,
        AllowQos=",".join(partition.allow_qos) or None,
        State=partition.state.upper(),
    )
    return _with(line, partition.extra)


def slurm_time(seconds: float | None) -> str:
    """7-00:00:00; INFINITE."""
    if seconds is None:
        return "INFINITE"
    minutes, rest = divmod(math.ceil(seconds), 60)
    days, minutes = divmod(minutes, 1440)
    return f"{days}-{minutes // 60:02}:{minutes % 60:02}:{rest:02}"


# -- the other files


def _gres(pools: Sequence[Pool]) -> Iterator[Line]:
    for pool in pools:
        if pool.gpus is not None:
            yield from _gpu_lines(fold(pool.nodes), pool.gpus)


def _gpu_lines(nodes: str, gpus: Gpus) -> Iterator[Line]:
    """A line for each set of cores; each names its nodes, so that one file serves every host, the controller's too."""
    if gpus.autodetect is not None:
        yield Line.of(NodeName=nodes, AutoDetect=gpus.autodetect)
        return
    if not gpus.affinity:
        yield Line.of(NodeName=nodes, Name="gpu", Type=gpus.model, File=gpus.device_files)
        return
    files = expand(gpus.device_files)
    for one in gpus.affinity:
        here = fold(files[number] for number in numbers(one.gpus))
        yield Line.of(NodeName=nodes, Name="gpu", Type=gpus.model, File=here, Cores=one.cores)


def _cgroup(fleet: Fleet) -> Iterator[Line]:
    cgroup = fleet.slurm.cgroup
    told = {
        "CgroupPlugin": cgroup.plugin if cgroup.plugin == "autodetect" else f"cgroup/{cgroup.plugin}",
        "ConstrainCores": _yes(cgroup.cores),
        "ConstrainRAMSpace": _yes(cgroup.memory),
        "ConstrainSwapSpace": _yes(cgroup.swap),
        "ConstrainDevices": _yes(cgroup.devices),
    }
    for key, value in _over(told, cgroup.extra).items():
        yield Line(((key, value),))


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _topology(name: str, topology: Topology, *, as_yaml: bool) -> ConfFile:
    if as_yaml:
        body = yaml.safe_dump([{"topology": name, "cluster_default": True, **_as_yaml(topology)}], sort_keys=False)
        return ConfFile("topology.yaml", text=f"{HEAD}\n---\n{body}")
    lines = [
        Line.of(
            SwitchName=one.name,
            Nodes=fold(one.nodes) if one.nodes else None,
            Switches=fold(one.switches) if one.switches else None,
        )
        for one in topology.switches
    ]
    lines += [Line.of(BlockName=one.name, Nodes=fold(one.nodes)) for one in topology.blocks]
    if topology.block_sizes:
        lines.append(Line.of(BlockSizes=",".join(map(str, topology.block_sizes))))
    return ConfFile("topology.conf", tuple(lines))


def _as_yaml(topology: Topology) -> dict[str, object]:
    if topology.kind == "tree":
        switches = [
            {"switch": one.name} | ({"nodes": fold(one.nodes)} if one.nodes else {"children": fold(one.switches or ())})
            for one in topology.switches
        ]
        return {"tree": {"switches": switches}}
    blocks = [{"block": one.name, "nodes": fold(one.nodes)} for one in topology.blocks]
    sizes = {"block_sizes": list(topology.block_sizes)} if topology.block_sizes else {}
    return {"block": sizes | {"blocks": blocks}}


def _slurmdbd(fleet: Fleet) -> Iterator[Line]:
    accounting, slurm = fleet.accounting, fleet.slurm
    assert accounting is not None
    database = accounting.database
    told = {"DbdHost": accounting.host}
    if accounting.address:
        told["DbdAddr"] = accounting.address
    told |= {"DbdPort": str(accounting.port), "SlurmUser": slurm.user, "AuthType": "auth/munge"}
    told |= _auth(fleet)
    told |= {
        "LogFile": f"{slurm.log_dir}/slurmdbd.log",
        "PidFile": f"{slurm.run_dir}/slurmdbd.pid",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": database.host,
        "StoragePort": str(database.port),
        "StorageUser": database.user,
        "StorageLoc": database.name,
    }
    if database.password is not None:
        told["StoragePass"] = database.password
    for key, value in _over(told, accounting.extra).items():
        yield Line(((key, value),))
