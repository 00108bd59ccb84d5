"""What will and what will not work on a site, in plain words: from what was found there to findings. Pure.

Nothing here changes a site. What cannot be known by looking is said to be unknown, with how to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from penstock.base.quantities import format_duration
from penstock.engines.adding import Finding, Verdict
from penstock.engines.slurm import drained
from penstock.engines.slurm.facts import SHARED_TYPES, Facts, models, number, parameters, version
from penstock.engines.slurm.spec import Partition

WORKS, LIMITED, NOT, UNKNOWN = Verdict.WORKS, Verdict.LIMITED, Verdict.NOT, Verdict.UNKNOWN
OVERLAP = (20, 11)  # the first srun that shares a running job's allocation
ASKED_OFTEN = 5  # an ended job must be remembered for so many of our looks


def findings(facts: Facts) -> tuple[Finding, ...]:
    return tuple(found for part in _PARTS for found in part(facts))


def _release(facts: Facts) -> Iterator[Finding]:
    name = f"Slurm {facts.site.version or '(version unknown)'}, cluster {facts.site.cluster or '(name unknown)'}"
    api = f", asked by slurmrestd {facts.site.api}" if facts.site.api else ""
    old = (0, 0) < version(facts.site.version) < OVERLAP
    if old:
        yield Finding(
            "version",
            LIMITED,
            f"{name}{api}: older than what Penstock is tested with",
            "22.05 is the oldest tested; newer ones are better.",
        )
    else:
        yield Finding("version", WORKS, name + api)


def _sessions(facts: Facts) -> Iterator[Finding]:
    if not facts.commands:
        yield Finding(
            "sessions",
            NOT,
            "slurmrestd alone has no way into a running job: no shell, exec or port-forward",
            "Add --ssh user@login-node beside --rest.",
        )
    elif (0, 0) < version(facts.srun or facts.site.version) < OVERLAP:
        yield Finding(
            "sessions",
            NOT,
            "this srun has no --overlap: shell, exec and port-forward cannot enter a running job",
            "Slurm 20.11 and later have it.",
        )
    elif not facts.srun:
        yield Finding(
            "sessions", UNKNOWN, "srun was not found where Slurm's commands are", "Install slurm-client there."
        )
    else:
        yield Finding("sessions", WORKS, "shell, exec and port-forward, by srun --overlap")


def _submitter(facts: Facts) -> Iterator[Finding]:
    own = "each job is submitted as its submitter's own Unix user"
    if not facts.commands and facts.root:
        yield Finding("users", WORKS, f"the token is root's: {own}")
    elif not facts.commands:
        yield Finding(
            "users",
            LIMITED,
            f"all jobs run as {facts.user or 'the user of slurmrestd'}, whoever submitted them",
            "A token of root's or of SlurmUser's may submit as others: scontrol token username=root",
        )
    elif facts.root:
        yield Finding("users", WORKS, f"commands run as root there: {own}")
    elif facts.sudo:
        yield Finding("users", WORKS, f"{facts.user} may use sudo there: {own}")
    elif facts.user:
        yield Finding(
            "users",
            LIMITED,
            f"all jobs run as {facts.user}, who cannot become others there",
            "Reach the site as root, or let that user run commands as others by sudo without a password.",
        )
    else:
        yield Finding("users", UNKNOWN, "as whom commands run there is not known")


def _partitions(facts: Facts) -> Iterator[Finding]:
    wanted, known = facts.config.partition, {one.name for one in facts.site.partitions}
    if wanted and wanted not in known:
        yield Finding(
            "partition",
            NOT,
            f"there is no partition {wanted!r} here",
            f"There are: {', '.join(sorted(known)) or 'none'}.",
            wrong=True,
        )
    for one in facts.site.partitions:
        if not wanted or one.name == wanted:
            yield _partition(one)
    if not wanted and facts.site.partitions and not any(one.default for one in facts.site.partitions):
        yield Finding(
            "partition",
            LIMITED,
            "there is no default partition: every job must name one",
            "Add the engine with --partition NAME.",
        )


def _partition(one: Partition) -> Finding:
    words = [f"{len(one.nodes)} nodes"]
    words.append(f"jobs run at most {format_duration(one.max_time_s)}" if one.max_time_s else "jobs may run for ever")
    if one.default_time_s:
        words.append(f"{format_duration(one.default_time_s)} where none is asked for")
    if one.max_nodes is not None:
        words.append(f"at most {one.max_nodes} nodes each")
    if one.allow_accounts:
        words.append(f"only accounts {', '.join(one.allow_accounts)}")
    if one.allow_qos:
        words.append(f"only QoS {', '.join(one.allow_qos)}")
    text = f"{one.name}{' (default)' if one.default else ''}: {', '.join(words)}"
    up = one.state.upper() == "UP"
    if not up:
        return Finding(
            "partition", NOT, f"{text}; its state is {one.state}", f"scontrol update partition={one.name} state=UP"
        )
    limited = one.allow_accounts or one.allow_qos or not one.nodes
    return Finding("partition", LIMITED if limited else WORKS, text)


def _gpus(facts: Facts) -> Iterator[Finding]:
    if not facts.nodes:
        yield Finding("gpus", UNKNOWN, "no nodes were seen")
        return
    counts: dict[str, int] = {}
    for node in facts.nodes:
        for model, count in models(node.gres).items():
            counts[model] = counts.get(model, 0) + count
    if not counts:
        yield Finding(
            "gpus",
            NOT,
            f"none of {len(facts.nodes)} nodes has GPUs: jobs that ask for some are refused",
            "GresTypes=gpu, and gres.conf.",
        )
        return
    named = ", ".join(f"{count} x {model}" for model, count in sorted(counts.items()) if model)
    if "" in counts:
        yield Finding(
            "gpus",
            LIMITED,
            f"{named + ', ' if named else ''}{counts['']} GPUs of no model: jobs that ask for a model do not get these",
            "Name the model in gres.conf: Name=gpu Type=h100.",
        )
    else:
        yield Finding("gpus", WORKS, f"{named} on {sum(bool(models(node.gres)) for node in facts.nodes)} nodes")


def _closed(facts: Facts) -> Iterator[Finding]:
    for node in facts.nodes:
        why = drained.closed(node)
        if why:
            yield Finding(
                "nodes", LIMITED, f"{node.name}: {why}", "It stays so: Penstock opens no node that the site has closed."
            )


def _topology(facts: Facts) -> Iterator[Finding]:
    kind = facts.site.topology.rpartition("/")[2]
    if kind in {"tree", "block"} or any(node.topology for node in facts.nodes):
        yield Finding(
            "topology",
            WORKS,
            f"{facts.site.topology}: jobs of several nodes are kept close together, and nodes show where they stand",
        )
    else:
        yield Finding(
            "topology",
            LIMITED,
            f"{facts.site.topology or 'no topology plug-in'}: Slurm does not know which nodes are near each other",
            "TopologyPlugin=topology/tree and topology.conf; `penstock provision render slurm` writes both.",
        )


def _consumable(facts: Facts) -> Iterator[Finding]:
    plugin, params = facts.site.select.rpartition("/")[2], facts.site.config.get("SelectTypeParameters", "").upper()
    if plugin == "linear":
        yield Finding(
            "sharing",
            LIMITED,
            "select/linear: every job gets whole nodes, whatever it asks for",
            "SelectType=select/cons_tres",
        )
        return
    if plugin == "cons_res":
        yield Finding(
            "sharing",
            LIMITED,
            "select/cons_res: CPUs are shared out, but --gpus and --gpus-per-node are not understood",
            "SelectType=select/cons_tres",
        )
    elif plugin == "cons_tres":
        yield Finding("sharing", WORKS, "CPUs and GPUs of a node are shared between jobs (select/cons_tres)")
    else:
        yield Finding(
            "sharing", UNKNOWN, "how nodes are shared between jobs is not known (slurmrestd does not tell SelectType)"
        )
        return
    if "MEMORY" not in params:
        yield Finding(
            "memory",
            LIMITED,
            f"memory is not given out ({params or 'no SelectTypeParameters'}): jobs on one node may ask for more than it has",
            "SelectTypeParameters=CR_Core_Memory",
        )


def _enforced(facts: Facts) -> Iterator[Finding]:
    if not facts.site.config:
        yield Finding(
            "memory limit",
            UNKNOWN,
            "whether memory limits are enforced is not known (slurmrestd does not tell)",
            "Add --ssh beside --rest.",
        )
        return
    yes = {
        name
        for name in ("ConstrainRAMSpace", "ConstrainDevices")
        if facts.site.config.get(name, "").lower().startswith("yes")
    }
    by_cgroup = "task/cgroup" in facts.site.config.get("TaskPlugin", "")
    if by_cgroup and "ConstrainRAMSpace" in yes:
        yield Finding(
            "memory limit",
            WORKS,
            "a job that uses more memory than it asked for is killed (cgroups), and said to be OutOfMemory",
        )
    elif "overmemorykill" in facts.site.config.get("JobAcctGatherParams", "").lower():
        yield Finding(
            "memory limit",
            LIMITED,
            "memory is looked at now and then: a job that uses more is killed some seconds late",
        )
    else:
        yield Finding(
            "memory limit",
            NOT,
            "a job that uses more memory than it asked for is not killed: it may take its neighbours'",
            "TaskPlugin=task/cgroup, and ConstrainRAMSpace=yes in cgroup.conf",
        )
    if not (by_cgroup and "ConstrainDevices" in yes) and any(models(node.gres) for node in facts.nodes):
        yield Finding(
            "gpu fence",
            LIMITED,
            "a job is told its GPUs by CUDA_VISIBLE_DEVICES, and could reach the others of its node",
            "TaskPlugin=task/cgroup, and ConstrainDevices=yes in cgroup.conf",
        )


def _accounting(facts: Facts) -> Iterator[Finding]:
    if not facts.site.accounting and not facts.site.config:
        yield Finding(
            "accounting",
            UNKNOWN,
            "whether there is accounting is not known (slurmrestd does not tell)",
            "Add --ssh beside --rest.",
        )
        return
    age = number(facts.site.config.get("MinJobAge"))
    if "slurmdbd" not in facts.site.accounting:
        forgets = f" {format_duration(age)}" if age else ""
        yield Finding(
            "accounting",
            LIMITED,
            f"no slurmdbd: how a job ended is known only as long as slurmctld remembers it{forgets or ' (MinJobAge)'}; no cost of users outside Penstock before it was added",
            "AccountingStorageType=accounting_storage/slurmdbd",
        )
    elif facts.accounting_answers is False:
        yield Finding(
            "accounting", UNKNOWN, "slurmdbd is configured and does not answer now", "systemctl status slurmdbd"
        )
    else:
        yield Finding("accounting", WORKS, "slurmdbd: exit status, usage, and who cancelled are known also later")
    least = ASKED_OFTEN * facts.config.poll_s
    if age is not None and age < least:
        verdict = LIMITED if "slurmdbd" in facts.site.accounting else NOT
        yield Finding(
            "memory of jobs",
            verdict,
            f"slurmctld forgets ended jobs after {format_duration(age)}, and Penstock asks every {format_duration(facts.config.poll_s)}: an end may be missed"
            + (", and is then asked of slurmdbd" if verdict is LIMITED else ""),
            f"MinJobAge={max(300, int(least))}",
        )


def _quotas(facts: Facts) -> Iterator[Finding]:
    enforce = {word.strip().lower() for word in facts.site.enforce}
    if not facts.site.config and not enforce:
        return
    if "slurmdbd" not in facts.site.accounting:
        yield Finding(
            "quotas",
            NOT,
            "without accounting Slurm holds nobody to a quota: quotas of queues are not held here",
            "slurmdbd, then AccountingStorageEnforce=associations,limits,qos",
        )
    elif enforce & {"limits", "safe", "all"}:
        extra = "" if enforce & {"qos", "all", "safe"} else "; a job may name any QoS (qos is not enforced)"
        yield Finding(
            "quotas",
            LIMITED if extra else WORKS,
            f"limits of accounts are held (AccountingStorageEnforce={','.join(facts.site.enforce)}){extra}",
        )
    else:
        yield Finding(
            "quotas",
            NOT,
            f"limits of accounts are written down and not held (AccountingStorageEnforce={','.join(facts.site.enforce) or 'none'})",
            "AccountingStorageEnforce=associations,limits,qos",
        )


def _preemption(facts: Facts) -> Iterator[Finding]:
    kind, mode = facts.site.config.get("PreemptType", ""), facts.site.config.get("PreemptMode", "").upper()
    if not kind and not mode:
        return
    if kind.endswith("/none") or mode in {"", "OFF"}:
        yield Finding(
            "preemption",
            NOT,
            "nothing is preempted here, whatever its priority",
            "PreemptType=preempt/qos and PreemptMode=REQUEUE",
        )
    elif "REQUEUE" in mode:
        yield Finding(
            "preemption",
            WORKS,
            f"by {kind.rpartition('/')[2]}: preempted jobs are queued again, and go on from their checkpoint",
        )
    elif "SUSPEND" in mode:
        yield Finding(
            "preemption",
            LIMITED,
            f"preempted jobs are suspended ({mode}): they keep their GPUs' memory",
            "PreemptMode=REQUEUE",
        )
    else:
        yield Finding(
            "preemption",
            LIMITED,
            f"preempted jobs are ended ({mode}): Penstock starts a new attempt, if the job may restart",
        )


def _requeue(facts: Facts) -> Iterator[Finding]:
    if facts.site.config.get("JobRequeue", "1").strip() == "0":
        yield Finding(
            "node failure",
            LIMITED,
            "Slurm requeues nothing by itself (JobRequeue=0): Penstock submits a job of a failed node anew",
        )
    limit = number(facts.site.config.get("MaxArraySize"))
    if limit is not None:
        yield Finding(
            "arrays", WORKS if limit > 1000 else LIMITED, f"up to {max(limit - 1, 0)} tasks in one array of Slurm"
        )


def _seen(facts: Facts) -> Iterator[Finding]:
    private = facts.site.config.get("PrivateData", "none").lower()
    if "jobs" in private and not facts.root and facts.admin not in {"Administrator", "Operator"}:
        yield Finding(
            "other users",
            NOT,
            f"PrivateData={private}: {facts.user or 'this user'} sees only its own jobs, so what others use is not seen",
            "sacctmgr modify user NAME set adminlevel=Operator",
        )
    flags = facts.site.config.get("AccountingStoreFlags", "").lower()
    if "slurmdbd" in facts.site.accounting and "job_comment" not in flags:
        words = "accounting keeps no comments; Penstock finds its jobs by their names, and needs none"
        yield Finding("comments", WORKS, words)


def _files(facts: Facts) -> Iterator[Finding]:
    folder, system = facts.config.folder, facts.file_system
    limit = number(parameters(facts.site.config.get("SchedulerParameters")).get("max_script_size")) or 4 << 20
    if not facts.commands:
        yield Finding(
            "files",
            LIMITED,
            f"slurmrestd carries no files: logs and snapshots are there only where this machine has {folder} too",
            "Add --ssh user@login-node beside --rest.",
        )
    elif not facts.config.shared:
        yield Finding(
            "files",
            LIMITED,
            f"{folder} is not shared: files travel with the job; a batch script may have {limit >> 10} KiB here",
        )
    elif system in SHARED_TYPES:
        yield Finding("files", WORKS, f"{folder} lies on {system}, which compute nodes can have too")
    elif system:
        yield Finding(
            "files",
            UNKNOWN,
            f"{folder} lies on {system}, a disk of that machine: jobs on other machines would not see it",
            "Name a folder that all nodes have with --folder, or say --no-shared.",
        )
    else:
        yield Finding(
            "files",
            UNKNOWN,
            f"whether {folder} is the same on the compute nodes is not known",
            "Try a job; --no-shared where it is not.",
        )


def _folder(facts: Facts) -> Iterator[Finding]:
    """Only where something is wrong: that whoever submits can write there, one cannot know."""
    others = facts.root or facts.sudo
    if facts.closed_at and others:
        yield Finding(
            "folder",
            LIMITED,
            f"a user of no group of its own cannot write in {facts.closed_at}: such a one's jobs would end as LaunchFailed",
            f"chmod 1777 {facts.closed_at}, or let those who submit write there; or name another with --folder.",
        )
    elif facts.closed_at:
        yield Finding(
            "folder",
            NOT,
            f"{facts.user} cannot write in {facts.closed_at}: no job could run",
            "Let that user write there, or name another with --folder.",
        )


def _managing(facts: Facts) -> Iterator[Finding]:
    may = facts.root or facts.admin in {"Administrator", "Operator"}
    if not facts.config.managed:
        yield Finding(
            "manage",
            LIMITED,
            "read-only: jobs are run; nodes, accounts, associations and QoS are only read",
            "penstock engines set NAME --manage",
        )
    elif may:
        yield Finding("manage", WORKS, "nodes are drained and quotas written on Penstock's word, as you ask for it")
    elif facts.admin or facts.root is False:
        yield Finding(
            "manage",
            NOT,
            f"{facts.user or 'this user'} is no administrator of Slurm: it will refuse to drain nodes and write quotas",
            "sacctmgr modify user NAME set adminlevel=Administrator",
        )
    else:
        yield Finding("manage", UNKNOWN, "whether this user may change nodes and quotas is not known until it is tried")


_PARTS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    _release,
    _submitter,
    _partitions,
    _gpus,
    _closed,
    _topology,
    _consumable,
    _enforced,
    _accounting,
    _quotas,
    _preemption,
    _requeue,
    _sessions,
    _seen,
    _files,
    _folder,
    _managing,
)
