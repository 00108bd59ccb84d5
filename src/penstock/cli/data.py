"""``penstock data ls|verify|prepare``: data sets of tokens, on this machine and without torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from penstock.base.errors import InvalidInput, NotFound
from penstock.base.quantities import format_memory, parse_memory
from penstock.client.verb import Column, Invocation, Verb

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from penstock.worker.data.index import Index

_COLUMNS = (
    Column("CHUNKS", lambda row, _now: str(row["chunks"]), right=True),
    Column("TOKENS", lambda row, _now: str(row["tokens"]), right=True),
    Column("SAMPLES", lambda row, _now: str(row["samples"]) if row["samples"] is not None else "-", right=True),
    Column("SIZE", lambda row, _now: format_memory(row["size"]), right=True),
    Column("STATE", lambda row, _now: row["state"]),
    Column("FOLDER", lambda row, _now: row["folder"]),
)


def _configure(parser: ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="what", required=True, metavar="ls|verify|prepare")
    for name, text in (
        ("ls", "what there is: chunks, tokens, samples; nothing but the index is read"),
        ("verify", "look at every chunk, read it where it has a hash; exit status 1 where one is broken"),
    ):
        verb = verbs.add_parser(name, help=text, description=text)
        verb.add_argument("folder", nargs="+", metavar="FOLDER", help="a data set, or a folder of some")
        verb.add_argument("--block-size", type=int, metavar="N", help="tokens of a sample, to count samples")
    text = "make a data set that litdata reads from files of tokens"
    prepare = verbs.add_parser("prepare", help=text, description=text)
    prepare.add_argument(
        "input", nargs="+", metavar="FILE", help=".npy, .bin with .idx beside it (Megatron), or .bin with --dtype"
    )
    prepare.add_argument("out", metavar="FOLDER", help="made when all is written")
    prepare.add_argument(
        "--dtype", default="", metavar="TYPE", help="uint16, int32 ...: as stored; what does not fit is refused"
    )
    prepare.add_argument(
        "--block-size",
        type=int,
        default=1,
        metavar="N",
        help="tokens of a sample: no chunk then ends with a part of one",
    )
    prepare.add_argument("--chunk", default="64Mi", metavar="SIZE", help="default: 64Mi")
    prepare.add_argument("--bytes", action="store_true", help="each byte of the files is a token")


def _run(call: Invocation, arguments: Namespace) -> int:
    try:
        from penstock.worker.data import prepare
    except ImportError as missing:
        raise InvalidInput(f"this needs the package {missing.name}", hint="pip install 'penstock[data]'") from missing
    if arguments.block_size is not None and arguments.block_size < 1:
        raise InvalidInput("--block-size must be at least 1")
    if arguments.what != "prepare":
        return _list(call, arguments, read=arguments.what == "verify")
    try:
        chunk_bytes = parse_memory(arguments.chunk)
    except ValueError as error:
        raise InvalidInput(f"--chunk: {error}") from error
    options = prepare.Options(arguments.dtype, arguments.block_size, chunk_bytes, arguments.bytes)
    done = prepare.prepare(arguments.input, arguments.out, options)
    call.output.line(f"{done.tokens} tokens of {done.dtype} in {done.chunks} chunks -> {arguments.out}")
    return 0


def _list(call: Invocation, arguments: Namespace, *, read: bool) -> int:
    from penstock.worker.data.errors import DataError
    from penstock.worker.data.index import read_index

    rows: list[dict[str, Any]] = []
    for folder in _found(arguments.folder):
        row: dict[str, Any] = {"folder": folder, "chunks": 0, "tokens": 0, "samples": None, "size": 0, "broken": []}
        try:
            index = read_index(folder)
            samples = sum(index.samples(arguments.block_size)) if arguments.block_size else None
            row |= {"chunks": len(index.chunks), "tokens": index.tokens, "samples": samples, "size": index.size}
            row["broken"] = _broken(index, read=read)
            row["state"] = _state(index, row["broken"], read=read)
        except DataError as error:
            row["state"] = error.code
            row["broken"] = [error.message]
        rows.append(row)
    if call.output.format == "table":
        call.output.table(_COLUMNS, rows, call.now)
        for row in rows:
            for fault in row["broken"]:
                call.output.line(f"{row['folder']}: {fault}")
    else:
        call.output.document({"items": rows})
    return 1 if any(row["broken"] for row in rows) else 0


def _found(folders: list[str]) -> list[str]:
    """The data sets among the folders, and in them where they are none."""
    found = []
    for folder in folders:
        if not os.path.isdir(folder):
            raise NotFound(
                f"{folder} is no folder", hint="Name a folder with index.json, or one that holds such folders."
            )
        below = sorted(
            entry.path for entry in os.scandir(folder) if os.path.exists(os.path.join(entry.path, "index.json"))
        )
        itself = os.path.exists(os.path.join(folder, "index.json")) or not below
        found.extend([folder] if itself else below)
    return found


def _broken(index: Index, *, read: bool) -> list[str]:
    from penstock.worker.data.index import chunk_fault

    faults = [(chunk.name, chunk_fault(index, chunk, read=read)) for chunk in index.chunks] if read else []
    return [f"{name}: {fault}" for name, fault in faults if fault]


def _state(index: Index, broken: list[str], *, read: bool) -> str:
    if not read:
        return "not read"
    if broken:
        return f"{len(broken)} of {len(index.chunks)} chunks broken"
    return "verified" if all(chunk.hash for chunk in index.chunks) else "sizes and headers agree; it has no hashes"


VERBS = {
    "data": Verb(
        "penstock data ls data/tokens --block-size 1024",
        _configure,
        _run,
        about="Data sets of tokens, as penstock.data reads them: docs/data.md.",
    )
}
