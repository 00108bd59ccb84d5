"""What Slurm's commands print, read. Pure; total: a line that cannot be read is left out.

A job's name and an administrator's reason may hold any character. So every format string is given a separator that is
drawn anew for each question, which no text of a user's can know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from penstock.engines.slurm.spec import Partition, SlurmJob, SlurmNode

# squeue's letters, and sacct's fields, in the order that the readers below have them.
SQUEUE = ("%i", "%A", "%F", "%K", "%T", "%u", "%a", "%P", "%q", "%N", "%V", "%S", "%e", "%r", "%k", "%j")
SACCT = (
    "JobID", "JobIDRaw", "JobName", "State", "ExitCode", "User", "Account", "Partition", "QOS", "NodeList", "Submit", "Start",
    "End",
)  # fmt: skip
_KEY = re.compile(r"(?:^| )([A-Z][A-Za-z_:]*)=")
_UNAVAILABLE = re.compile(r"unable to contact|timed out|connection refused|communication connection|temporarily unable|"
                          r"zero bytes|munge|connection failure|unexpected message|backup controller|try again|"
                          r"is not responding|lost connection|resource temporarily|reset by peer|broken pipe|is unreachable|"
                          r"no route to host|host is down|not connected|connection abort|name resolution", re.IGNORECASE)  # fmt: skip
_MOST_HOSTS = 100_000
_BETWEEN = "\0"  # in no command's arguments, and so in no text of a user's


def hosts(text: str) -> tuple[str, ...]:
    """``node-[0-2,7],login`` as its names."""
    found: list[str] = []
    for piece in _pieces(text):
        found.extend(_expanded(piece))
        if len(found) > _MOST_HOSTS:
            break
    return tuple(found)


def _pieces(text: str) -> Iterator[str]:
    depth, begin = 0, 0
    for at, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            yield text[begin:at]
            begin = at + 1
    if text[begin:] and text[begin:] not in ("(null)", "None assigned", "n/a"):
        yield text[begin:]


def _expanded(piece: str) -> list[str]:
    head, bracket, rest = piece.partition("[")
    if not bracket:
        return [piece]
    spans, _, tail = rest.partition("]")
    names: list[str] = []
    for span in spans.split(","):
        first, _, last = span.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            continue
        end = int(last or first)
        if end - int(first) > _MOST_HOSTS:
            continue
        names += [f"{head}{number:0{len(first)}d}" for number in range(int(first), end + 1)]
    return [name + more for name in names for more in (_expanded(tail) if tail else [""])]


def rows(text: str, mark: str, separator: str) -> list[str]:
    """squeue's rows, each begun by ``mark``, in a form that is the same whatever the separator was."""
    return text.replace(separator, _BETWEEN).split(mark)[1:]


def job(row: str) -> SlurmJob | None:
    fields = row.removesuffix("\n").split(_BETWEEN)
    return _job(fields) if len(fields) == len(SQUEUE) else None


def _job(fields: Sequence[str]) -> SlurmJob | None:
    (
        _,
        number,
        array,
        index,
        state,
        user,
        account,
        partition,
        qos,
        nodes,
        submitted,
        start,
        end,
        reason,
        comment,
        name,
    ) = fields
    if not number.isdecimal():
        return None
    started, waits = _time(start), state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
    over = state not in ("RUNNING", "COMPLETING", "SUSPENDED", "CONFIGURING", "PENDING", "STOPPED", "SIGNALING")
    in_array = index.isdecimal() and array.isdecimal()
    return SlurmJob(
        int(number),
        name,
        state,
        "" if reason == "None" and not waits else reason,
        user,
        account,
        partition,
        qos,
        hosts(nodes),
        submitted_at=_time(submitted),
        started_at=None if waits else started,
        ended_at=_time(end) if over else None,
        start_estimate=started if waits else None,
        array_job=int(array) if in_array else None,
        array_index=int(index) if in_array else None,
        comment=comment,
    )


def finished(text: str, mark: str, users: Mapping[int, str]) -> list[SlurmJob]:
    """sacct's rows, ``mark`` between their fields; ``users``: names of Unix user ids that may be in them.

    A line ends between a time and a number: only there can no text of a user's be.
    """
    found = []
    first, *rest = text.split(mark)
    while len(rest) >= len(SACCT) - 1:
        *fields, last = rest[: len(SACCT) - 1]
        rest = rest[len(SACCT) - 1 :]
        end, _, following = last.partition("\n")
        job = _finished([first, *fields, end], users)
        first = following
        if job is not None:
            found.append(job)
    return found


def _finished(fields: Sequence[str], users: Mapping[int, str]) -> SlurmJob | None:
    key, number, name, state, exit_code, user, account, partition, qos, nodes, submitted, start, end = fields
    if not number.isdecimal():
        return None
    word, _, by = state.partition(" by ")
    array, _, index = key.partition("_")
    in_array = array.isdecimal() and index.isdecimal()
    code, _, number_of_signal = exit_code.partition(":")
    return SlurmJob(
        int(number),
        name,
        word.strip(),
        user=user,
        account=account,
        partition=partition,
        qos=qos,
        nodes=hosts(nodes),
        submitted_at=_time(submitted),
        started_at=_time(start),
        ended_at=_time(end),
        exit_code=int(code) if code.isdecimal() else None,
        signal=int(number_of_signal) or None if number_of_signal.isdecimal() else None,
        array_job=int(array) if in_array else None,
        array_index=int(index) if in_array else None,
        cancelled_by=users.get(int(by), f"user {by}") if by.isdecimal() else None,
    )


def cancellers(text: str) -> set[int]:
    """The Unix user ids that sacct's states name."""
    return {int(number) for number in re.findall(r"CANCELLED by (\d{1,10})", text)}


def _time(text: str) -> float | None:
    return float(text) if text.isdecimal() else None


def records(text: str) -> Iterator[dict[str, str]]:
    """`scontrol -o show`'s lines; a value reaches to the next known form of a key."""
    for line in text.splitlines():
        keys = list(_KEY.finditer(line))
        if keys:
            ends = [key.start() for key in keys[1:]] + [len(line)]
            yield {key[1]: line[key.end() : end].strip() for key, end in zip(keys, ends, strict=True)}


_SHARE = re.compile(r"Nodes=(?P<nodes>\S+) CPU_IDs=\S* Mem=\S* GRES=(?P<gres>\S*)")
_INDICES = re.compile(r"gpu[^,()]*\(IDX:(?P<indices>[^()]*)\)")


def devices(text: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """`scontrol -o -d show job`: the GPUs of running jobs, by key and node."""
    found = {}
    for line in text.splitlines():
        head = next(records(line), {})
        shares = {
            node: tuple(
                int(number) for index in _INDICES.finditer(share["gres"]) for number in _numbers(index["indices"])
            )
            for share in _SHARE.finditer(line)
            for node in hosts(share["nodes"])
        }
        if "JobId" in head and any(shares.values()):
            index = head.get("ArrayTaskId", "")
            found[f"{head['ArrayJobId']}_{index}" if index.isdecimal() else head["JobId"]] = shares
    return found


def _numbers(spans: str) -> list[str]:
    return [name for name in hosts(f"[{spans}]") if name.isdecimal()]


_REASON = re.compile(r"(?P<reason>.*) \[(?P<by>[^\[\]@]*)@(?P<at>\d+)\]", re.DOTALL)


def nodes(text: str) -> list[SlurmNode]:
    """`scontrol -o -d show node`."""
    found = []
    for line in text.splitlines():
        before, _, reason = line.partition(" Reason=")
        record = next(records(before), {})
        if "NodeName" not in record:
            continue
        why = _REASON.match(reason)
        found.append(
            SlurmNode(
                record["NodeName"],
                record.get("State", "UNKNOWN"),
                _int(record.get("CPUTot")),
                _int(record.get("RealMemory")) << 20,
                _empty(record.get("Gres")),
                _empty(record.get("GresUsed")),
                (why["reason"] if why else reason).strip(),
                why["by"] if why else "",
                float(why["at"]) if why else None,
                tuple(filter(None, record.get("Partitions", "").split(","))),
                tuple(filter(None, _empty(record.get("AvailableFeatures")).split(","))),
                address=record.get("NodeAddr", ""),
            )
        )
    return found


def _int(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _empty(text: str | None) -> str:
    return "" if text is None or text in ("(null)", "N/A") else text


def topology(text: str) -> dict[str, str]:
    """`scontrol show topology` as each node's way from the top: ``spine.leaf1.node-0``."""
    above: dict[str, str] = {}
    leaves: dict[str, str] = {}
    for record in records(text):
        switch = record.get("SwitchName")
        if switch is None:
            continue
        for below in hosts(record.get("Switches", "")):
            above[below] = switch
        if record.get("Level", "0") == "0":
            leaves.update(dict.fromkeys(hosts(record.get("Nodes", "")), switch))
    return {node: ".".join([*_way(leaf, above), node]) for node, leaf in leaves.items()}


def _way(switch: str, above: Mapping[str, str]) -> list[str]:
    way = [switch]
    while (switch := above.get(switch, "")) and switch not in way:
        way.insert(0, switch)
    return way


def settings(text: str) -> dict[str, str]:
    """`scontrol show config`."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and (key := name.strip()):
            found[key] = _empty(value.strip())
    return found


def partitions(text: str) -> list[Partition]:
    """`scontrol -o show partition`."""
    return [
        Partition(
            record["PartitionName"],
            record.get("Default") == "YES",
            record.get("State", ""),
            duration(record.get("MaxTime", "")),
            duration(record.get("DefaultTime", "")),
            hosts(_empty(record.get("Nodes"))),
            _all(record.get("AllowAccounts")),
            _all(record.get("AllowQos")),
            _int(record.get("MaxNodes")) or None,
            record.get("PreemptMode", ""),
        )
        for record in records(text)
        if "PartitionName" in record
    ]


def _all(text: str | None) -> tuple[str, ...]:
    return () if text in (None, "ALL", "(null)") else tuple(filter(None, str(text).split(",")))


def duration(text: str) -> float | None:
    """``1-02:03:04`` in seconds; None for none and UNLIMITED."""
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdecimal() for part in (*parts, *([days] if dash else []))):
        return None
    seconds = 0
    for part in parts:
        seconds = seconds * 60 + int(part)
    return float(seconds + 86400 * int(days or 0))


def unavailable(said: str) -> bool:
    """Whether what a command said of its failure means that Slurm did not answer, rather than that it would not."""
    return _UNAVAILABLE.search(said) is not None
