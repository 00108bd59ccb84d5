"""``penstock checkpoint ls|verify|prune|export|save``: a folder of checkpoints, on this machine and without torch.

``save`` alone speaks to a server: it asks a running job to save now.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput, NotFound, PenstockError
from penstock.client.verb import Column, Invocation, Verb

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.worker.checkpoint.folder import Entry

_COLUMNS = (
    Column("STEP", lambda row, _now: str(row["step"]), right=True),
    Column("SAVED", lambda row, now: _ago(now - row["at"]) if row["at"] else "-", right=True),
    Column("RANKS", lambda row, _now: str(row["ranks"] or "-"), right=True),
    Column("SIZE", lambda row, _now: _size(row["size"]) if row["size"] else "-", right=True),
    Column("STATE", lambda row, _now: row["state"]),
    Column("FOLDER", lambda row, _now: row["folder"]),
)


def _configure(parser: ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="ls|verify|prune|export|save")
    for name, text in (
        ("ls", "list what was committed; nothing but the manifests is read"),
        ("verify", "read every byte; exit status 1 where one is not as it was written"),
    ):
        verbs.add_parser(name, help=text, description=text).add_argument("folder", metavar="FOLDER")
    prune = verbs.add_parser("prune", help="remove all but the last verified ones")
    prune.add_argument("folder", metavar="FOLDER")
    prune.add_argument("--keep", type=int, required=True, metavar="N", help="at least 1; each is read before it counts")
    prune.add_argument("--keep-every", type=int, metavar="N", help="steps that are a multiple of N stay too")
    export = verbs.add_parser("export", help="the tensors as one safetensors file")
    export.add_argument("folder", metavar="FOLDER", help="of one checkpoint, or of all: the newest whole one")
    export.add_argument("out", metavar="FILE")
    export.add_argument("--part", default="model", help="default: model")
    save = verbs.add_parser("save", help="ask a running job to save now")
    save.add_argument("job", metavar="JOB")


def _run(call: Invocation, arguments: Namespace) -> int:
    if arguments.what == "save":
        return _save(call, arguments.job)
    try:
        from penstock.worker.checkpoint import folder
    except ImportError as missing:
        hint = "pip install 'penstock[checkpoint]'"
        raise InvalidInput(f"this needs the package {missing.name}", hint=hint) from missing
    if not os.path.isdir(arguments.folder):
        raise NotFound(f"{arguments.folder} is no folder", hint="Name the job's folder of checkpoints.")
    one = folder.entry_of(os.path.abspath(arguments.folder))
    entries = [one] if one is not None else folder.entries(arguments.folder)
    if arguments.what == "prune":
        return _prune(call, arguments)
    if arguments.what == "export":
        return _export(call, entries, arguments)
    return _list(call, entries, read=arguments.what == "verify")


def _list(call: Invocation, entries: list[Entry], *, read: bool) -> int:
    from penstock.worker.checkpoint import folder
    from penstock.worker.checkpoint.errors import CheckpointError
    from penstock.worker.checkpoint.reading import verify

    rows: list[dict[str, Any]] = []
    for entry in entries:
        row = {"step": entry.step, "at": 0.0, "ranks": 0, "size": 0, "state": "", "folder": entry.path}
        try:
            manifest = folder.checked_manifest(entry)
            row |= {"at": manifest.at, "ranks": manifest.world_size, "size": manifest.size}
            if read:
                verify(entry.path)
            row["state"] = "verified" if read else "committed"
        except CheckpointError as error:
            row["state"] = f"{error.code}: {error.message}"
        rows.append(row)
    if call.output.format == "table":
        call.output.table(_COLUMNS, rows, call.now)
    else:
        call.output.document({"items": rows})
    return 0 if all(row["state"] in {"committed", "verified"} for row in rows) else 1


def _prune(call: Invocation, arguments: Namespace) -> int:
    from penstock.worker.checkpoint import folder
    from penstock.worker.checkpoint.upkeep import Shelf

    if arguments.keep < 1:
        raise InvalidInput("--keep must be at least 1: the last checkpoint is never removed")
    lock = folder.Lock(arguments.folder, {"job": ""}, patience=0.0)
    lock.take()
    try:
        shelf = Shelf(arguments.folder, arguments.keep, arguments.keep_every)
        gone = shelf.prune()
    finally:
        lock.release()
    for entry in gone:
        call.output.line(f"step {entry.step}: removed ({entry.path})")
    for damaged in shelf.damaged.values():
        call.output.note(f"damaged, and counted for nothing: {damaged}")
    return 0


def _export(call: Invocation, entries: list[Entry], arguments: Namespace) -> int:
    from penstock.worker.checkpoint import folder
    from penstock.worker.checkpoint.errors import Damaged
    from penstock.worker.checkpoint.exporting import export

    for entry in reversed(entries):
        try:
            count, size = export(entry.path, folder.checked_manifest(entry), arguments.out, arguments.part)
        except Damaged as error:
            call.output.note(f"step {entry.step} is damaged and not used: {error.message}")
            continue
        call.output.line(f"step {entry.step}: {count} tensors, {_size(size)} -> {arguments.out}")
        return 0
    raise NotFound(
        f"no whole checkpoint in {arguments.folder}", hint="`penstock checkpoint verify` says what is wrong."
    )


def _save(call: Invocation, job: str) -> int:
    command = ["/bin/sh", "-c", ': > "${PENSTOCK_CKPT_DIR:?the job has no folder for checkpoints}/save-now"']
    with call.client.jobs.exec(job, command, tty=False, size=(80, 24)) as terminal:
        terminal.close_input()
        said = b"".join(terminal).decode(errors="replace").strip()
    if terminal.exit_code:
        raise PenstockError(f"{job}: {said or 'the request could not be left'}", hint="`penstock logs` shows the job.")
    call.output.line(f"{job}: asked to save; it does so at its next step")
    return 0


def _size(count: int) -> str:
    """Powers of 1024, three digits."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.3g} {units[0]}"


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


VERBS = {
    "checkpoint": Verb(
        "penstock checkpoint verify runs/checkpoints",
        _configure,
        _run,
        about="What penstock.checkpoint saved: docs/checkpoints.md. All but `save` work on a folder, without a server.",
    )
}
