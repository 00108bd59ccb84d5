"""``penstock provision render|lint slurm``: files from a fleet file, and what is wrong with any; no server is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.base.errors import InvalidInput, Problem
from penstock.client.verb import Invocation, Verb
from penstock.provisioning.conf import ConfFile
from penstock.provisioning.lint import ERROR, WARNING, Finding, lint
from penstock.provisioning.plan import parse
from penstock.provisioning.slurm import render
from penstock.provisioning.spec import Fleet
from penstock.provisioning.write import differences, folder_of, open_to_others, put, text_of

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace


def _configure(parser: ArgumentParser) -> None:
    what = parser.add_subparsers(dest="what", required=True, metavar="render|lint")
    make = what.add_parser("render", help="write the files of a target from a fleet file")
    make.add_argument("target", choices=["slurm"])
    make.add_argument("fleet", metavar="FLEET.YAML")
    make.add_argument("--out", metavar="DIR", help="put them there (default: print them)")
    make.add_argument("--diff", metavar="DIR", help="say how they differ from what is there: 1 when they do")
    make.add_argument("--force", action="store_true", help="replace files that were not rendered from a fleet file")
    check = what.add_parser("lint", help="what is wrong with a fleet file, or with a folder of files written by anyone")
    check.add_argument("target", choices=["slurm"])
    check.add_argument("path", metavar="FLEET.YAML|DIR")
    check.add_argument("--fleet", metavar="FLEET.YAML", help="with DIR: compare its nodes and GPUs with this inventory")


def _fleet(path: str) -> Fleet:
    return parse(text_of(Path(path)), Path(path).name)


def _texts(files: Sequence[ConfFile]) -> dict[str, str]:
    return {file.name: str(file) for file in files}


def _render(call: Invocation, arguments: Namespace) -> int:
    fleet = _fleet(arguments.fleet)
    files = render(fleet)
    found = lint(_texts(files), fleet)
    wrong = [one for one in found if one.level == ERROR]
    if wrong:
        details = [Problem(one.file, f"{one.message}. {one.help}", one.line) for one in wrong]
        raise InvalidInput("the rendered files would not work", details=details)
    for one in found:
        call.output.note(str(one))
    if arguments.diff is not None:
        lines = list(differences(files, Path(arguments.diff)))
        for line in lines:
            call.output.line(line)
        return 1 if lines else 0
    if arguments.out is not None:
        put(files, Path(arguments.out), force=arguments.force)
        call.output.note(f"{', '.join(file.name for file in files)} are in {arguments.out}")
    elif call.output.format == "table":
        for file in files:
            call.output.line(f"### {file.name}")
            call.output.line(str(file))
    else:
        call.output.document(_texts(files))
    return 0


def _lint(call: Invocation, arguments: Namespace) -> int:
    path = Path(arguments.path)
    if path.is_dir():
        files, closed = folder_of(path)
        found = lint(files, _fleet(arguments.fleet) if arguments.fleet else None)
        for name in closed:
            found.append(Finding(name, None, WARNING, "cannot be read", "Lint the folder as a user who may read it"))
        if problem := open_to_others(path):
            help_ = "Make it 0600: slurmdbd does not start where others can read its file"
            found.append(Finding("slurmdbd.conf", None, ERROR, problem, help_))
    elif arguments.fleet:
        raise InvalidInput("--fleet goes with a folder: a fleet file is its own inventory")
    else:
        fleet = _fleet(arguments.path)
        found = lint(_texts(render(fleet)), fleet)
    if call.output.format == "table":
        for one in found:
            call.output.line(str(one))
        call.output.note("nothing is wrong" if not found else f"{len(found)} found")
    else:
        call.output.document({"items": [dataclasses.asdict(one) for one in found]})
    return 1 if any(one.level == ERROR for one in found) else 0


_RUN = {"render": _render, "lint": _lint}

VERBS = {
    "provision": Verb(
        "penstock provision render slurm fleet.yaml --diff /etc/slurm\n"
        "penstock provision render slurm fleet.yaml --out /etc/slurm\n"
        "penstock provision lint slurm /etc/slurm",
        _configure,
        lambda call, arguments: _RUN[arguments.what](call, arguments),
        about="From one fleet file to slurm.conf, gres.conf, cgroup.conf, topology.conf and slurmdbd.conf. "
        "Needs no server and no Slurm. docs/provisioning.md says what the file holds.",
    )
}
