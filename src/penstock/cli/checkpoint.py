"""``penstock checkpoint ls|verify|prune|export|import|save``: checkpoints of a folder or an object store, without torch.

``save`` alone speaks to a server: it asks a running job to save now.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput, NotFound, Unavailable
from penstock.base.quantities import parse_memory
from penstock.client.verb import Column, Invocation, Verb

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.worker.checkpoint.shelves import Shelves

_WHERE = "of a job's checkpoints, or s3://BUCKET/PREFIX"
_NO_FOLDER = "Name a folder of checkpoints (a job's is its $PENSTOCK_CKPT_DIR), or s3://...; `penstock describe JOB` lists a job's."
_COLUMNS = (
    Column("STEP", lambda row, _now: str(row["step"]), right=True),
    Column("SAVED", lambda row, now: _ago(now - row["at"]) if row["at"] else "-", right=True),
    Column("RANKS", lambda row, _now: str(row["ranks"] or "-"), right=True),
    Column("SIZE", lambda row, _now: _size(row["size"]) if row["size"] else "-", right=True),
    Column("STATE", lambda row, _now: row["state"]),
    Column("FOLDER", lambda row, _now: row["folder"]),
)


def _configure(parser: ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="ls|verify|prune|export|import|save")
    for name, text in (
        ("ls", "list what was committed; nothing but the manifests is read"),
        ("verify", "read every byte; exit status 1 where one is not as it was written, or none is there"),
    ):
        verbs.add_parser(name, help=text, description=text).add_argument("folder", metavar="FOLDER", help=_WHERE)
    prune = verbs.add_parser("prune", help="remove all but the last verified ones")
    prune.add_argument("folder", metavar="FOLDER", help=_WHERE)
    prune.add_argument("--keep", type=int, required=True, metavar="N", help="at least 1; each is read before it counts")
    prune.add_argument("--keep-every", type=int, metavar="N", help="steps that are a multiple of N stay too")
    export = verbs.add_parser("export", help="the tensors as safetensors, or all of it as a folder of PyTorch's DCP")
    export.add_argument("folder", metavar="FOLDER", help="of one checkpoint, or of all: the newest whole one; or s3://")
    export.add_argument("out", metavar="OUT")
    export.add_argument("--part", default="model", help="default: model")
    export.add_argument("--format", choices=("safetensors", "dcp"), default="safetensors", help="default: safetensors")
    export.add_argument("--max-shard", metavar="SIZE", help="a folder of files of about SIZE (5Gi) and an index")
    bring = verbs.add_parser("import", help="make a checkpoint of safetensors, a DCP folder or a torch.save file")
    bring.add_argument("source", metavar="SOURCE")
    bring.add_argument("folder", metavar="FOLDER", help="the job's folder of checkpoints")
    bring.add_argument("--step", type=int, default=0, metavar="N", help="where a training goes on; default: 0")
    bring.add_argument("--part", default="model", help="of tensors that name none; default: model")
    save = verbs.add_parser("save", help="ask a running job to save now")
    save.add_argument("job", metavar="JOB")


def _run(call: Invocation, arguments: Namespace) -> int:
    if arguments.what == "save":
        return _save(call, arguments.job)
    try:
        from penstock.worker.checkpoint import shelves
    except ImportError as missing:
        hint = "pip install 'penstock[checkpoint]'"
        raise InvalidInput(f"this needs the package {missing.name}", hint=hint) from missing
    if arguments.what == "import":
        return _import(call, arguments)
    if arguments.what == "prune" and arguments.keep < 1:
        raise InvalidInput("--keep must be at least 1: the last checkpoint is never removed")
    try:
        shelf = shelves.opened(arguments.folder)
        if shelf is None:
            raise NotFound(f"{arguments.folder} is no folder", hint=_NO_FOLDER)
        if arguments.what == "prune":
            return _prune(call, shelf, arguments)
        if arguments.what == "export":
            return _export(call, shelf, arguments)
        return _list(call, shelf, arguments.folder, read=arguments.what == "verify")
    except OSError as error:
        if "://" not in arguments.folder:
            raise InvalidInput(
                str(error), hint="What is named must be there, and may be read (and written)."
            ) from error
        raise Unavailable(
            str(error), hint="AWS_ENDPOINT_URL and the like say where the store is and who asks."
        ) from error


def _list(call: Invocation, shelf: Shelves, where: str, *, read: bool) -> int:
    from penstock.worker.checkpoint.errors import CheckpointError

    rows: list[dict[str, Any]] = []
    for entry in shelf.entries():
        row = {"step": entry.step, "at": 0.0, "ranks": 0, "size": 0, "state": "", "folder": entry.path}
        try:
            manifest = shelf.manifest(entry)
            row |= {"at": manifest.at, "ranks": manifest.world_size, "size": manifest.size}
            if read:
                shelf.verify(entry)
            row["state"] = "verified" if read else "committed"
        except CheckpointError as error:
            row["state"] = f"{error.code}: {error.message}"
        rows.append(row)
    if call.output.format == "table":
        call.output.table(_COLUMNS, rows, call.now)
    else:
        call.output.document({"items": rows})
    if not rows:  # a wrong path must not look like checkpoints that are all whole
        call.output.note(f"no checkpoint is in {where}: a checkpoint is a folder named <step>-<id>")
        return 1 if read else 0
    return 0 if all(row["state"] in {"committed", "verified"} for row in rows) else 1


def _prune(call: Invocation, shelf: Shelves, arguments: Namespace) -> int:
    gone, damaged = shelf.prune(arguments.keep, arguments.keep_every)
    for entry in gone:
        call.output.line(f"step {entry.step}: removed ({entry.path})")
    for one in damaged:
        call.output.note(f"damaged, and counted for nothing: {one}")
    return 0


def _export(call: Invocation, shelf: Shelves, arguments: Namespace) -> int:
    from penstock.worker.checkpoint.errors import Damaged

    for entry in reversed(shelf.entries()):
        try:
            with shelf.here(entry, arguments.out) as path:
                count, size = _written(path, arguments)
        except Damaged as error:
            call.output.note(f"step {entry.step} is damaged and not used: {error.message}")
            continue
        call.output.line(f"step {entry.step}: {count} tensors, {_size(size)} -> {arguments.out}")
        return 0
    raise NotFound(
        f"no whole checkpoint in {arguments.folder}", hint="`penstock checkpoint verify` says what is wrong."
    )


def _written(path: str, arguments: Namespace) -> tuple[int, int]:
    """A checkpoint's folder in the form that was asked for; the number of tensors and the bytes."""
    from penstock.worker.checkpoint import folder
    from penstock.worker.checkpoint.exporting import export, export_folder

    if arguments.format == "dcp":
        said = _with_torch("export", path, os.path.abspath(arguments.out))
        return said["tensors"], said["size"]
    entry = folder.entry_of(os.path.abspath(path))
    assert entry is not None
    manifest = folder.checked_manifest(entry)
    if arguments.max_shard is None:
        return export(entry.path, manifest, arguments.out, arguments.part)
    try:
        limit = parse_memory(arguments.max_shard)
    except ValueError as error:
        raise InvalidInput(f"--max-shard: {error}") from error
    if limit <= 0:
        raise InvalidInput("--max-shard must be more than 0", hint="5Gi is usual; leave it out for one file.")
    return export_folder(entry.path, manifest, arguments.out, arguments.part, limit)


def _import(call: Invocation, arguments: Namespace) -> int:
    from penstock.worker.checkpoint.importing import find_safetensors, is_safetensors, kind_of, write_imported

    source, directory = os.path.abspath(arguments.source), os.path.abspath(arguments.folder)
    if not os.path.exists(source):
        raise NotFound(f"{arguments.source} is not there", hint="Name a file, or a folder, of tensors.")
    if arguments.step < 0:
        raise InvalidInput("--step must not be negative: it is the step that a training goes on with")
    if is_safetensors(source):
        found = find_safetensors(source, arguments.part)
        entry, size = write_imported(found, directory, arguments.step)
        said: dict[str, Any] = {
            "path": entry.path,
            "tensors": len(found.boxes),
            "size": size,
            "left_out": found.left_out,
        }
    else:
        said = _with_torch("import", kind_of(source), source, directory, arguments.part, str(arguments.step))
    for text in said["left_out"]:
        call.output.note(f"left out: {text}")
    call.output.line(
        f"{said['tensors']} tensors, {_size(said['size'])} -> {said['path']}; load() answers {arguments.step}"
    )
    return 0


def _with_torch(*argv: str) -> dict[str, Any]:
    """What needs torch is done by a process that has it: the command line starts without."""
    from penstock.worker.checkpoint import errors

    command = [sys.executable, "-m", "penstock.worker.checkpoint.carry", *argv]
    ran = subprocess.run(command, capture_output=True, check=False)
    try:
        said: dict[str, Any] = json.loads(ran.stdout)
    except ValueError:
        last = ran.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {ran.returncode}"]
        raise InvalidInput(f"this needs torch: {last[0]}", hint="pip install torch") from None
    if "error" in said:
        fault = said["error"]
        raise errors.by_code(fault["code"])(fault["message"], hint=fault["hint"] or None)
    return said


def _save(call: Invocation, job: str) -> int:
    answer = call.client.jobs.save_now(job)
    call.output.line(f"{job}: asked to save; {answer['words'] or 'it does so at its next step'}")
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
