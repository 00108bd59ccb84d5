"""Composition root, first half: parses Settings once, and starts the CLI or the server.

What the server is built of is in server.py, imported only after the spawner was forked: the spawner, and with it every
supervisor, shares the memory of a process that holds next to nothing.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock.base.settings import Settings
    from penstock.engines.local.spawner import Spawner


def settings_from(environ: Mapping[str, str]) -> Settings:
    """The settings before any flag was read. The only place that reads the environment (worker/ aside)."""
    from penstock.base.settings import Settings  # noqa: PLC0415 - after the spawner was forked: dataclasses weigh 1.5 MB

    return Settings(
        data_dir=environ.get("PENSTOCK_DATA_DIR") or default_data_dir(environ),
        url=environ.get("PENSTOCK_URL") or None,
        token=environ.get("PENSTOCK_TOKEN") or None,
        project=environ.get("PENSTOCK_PROJECT") or "default",
        virtual_env=environ.get("VIRTUAL_ENV") or None,
        conda_prefix=environ.get("CONDA_PREFIX") or None,
        database_url=environ.get("PENSTOCK_DATABASE_URL") or None,
        job_user=environ.get("PENSTOCK_JOB_USER") or environ.get("SUDO_USER") or None,
        color=not environ.get("NO_COLOR"),
        width=int(environ["COLUMNS"]) if environ.get("COLUMNS", "").isdigit() else None,
    )


def default_data_dir(environ: Mapping[str, str]) -> str:
    """/var/lib/penstock for root, else the XDG data folder (freedesktop.org Base Directory Specification)."""
    if os.geteuid() == 0:
        return "/var/lib/penstock"
    base = environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(base, "penstock")


def serve(settings: Settings, forked: Spawner) -> int:
    """``penstock up``: build the server and run it. Its rooms are imported only now that the spawner was forked."""
    gc.disable()  # a tenth of the start would go into looking for garbage in what stays; server.main goes on collecting
    from penstock import server  # noqa: PLC0415 - heavy on purpose, and only now

    return server.main(settings, forked, dict(os.environ))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the ``penstock`` command."""
    words = list(sys.argv[1:] if argv is None else argv)
    forked: list[Spawner] = []
    if "up" in words:  # before anything else: what is in memory now is copied for every job that ever runs
        from penstock.engines.local.spawner import Spawner  # noqa: PLC0415 - only the server needs it

        forked.append(Spawner.fork())
    from penstock.cli.main import run  # noqa: PLC0415 - `import penstock.app` stays light for those who want Settings

    return run(words, settings_from(os.environ), serve=lambda settings: serve(settings, forked.pop()))


if __name__ == "__main__":
    sys.exit(main())
