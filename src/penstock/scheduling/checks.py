"""What of a queue file is wrong, or likely not meant, against the fleet and the projects that there are: told when it is applied,
not when one that holds is read again, since both change under it.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from penstock.base.errors import InvalidInput, Problem
from penstock.base.quantities import format_time
from penstock.fleet import inventory
from penstock.scheduling import live, windows
from penstock.scheduling.spec import Setup
from penstock.tenancy import accounts


def check(conn: Connection, setup: Setup, now: float) -> list[str]:
    """What to warn of. Raises InvalidInput for a name that is taken, and for a window that is over already, unless the file
    that holds has it too.
    """
    windows.check_names(conn, setup, now)
    known = set(live.current(conn).reservations)
    over = [(at, one) for at, one in enumerate(setup.reservations) if one.end <= now]
    problems = [
        Problem(f"reservations[{at}].end", f"{one.name} lies in the past: it ended at {format_time(one.end)}")
        for at, one in over
        if one not in known
    ]
    if problems:
        raise InvalidInput("the queue file cannot be applied", details=problems)
    return [
        *(f"reservation {one.name} is over since {format_time(one.end)}" for _, one in over),
        *_unknown_nodes(conn, setup),
        *_unknown_projects(conn, setup),
    ]


def _unknown_nodes(conn: Connection, setup: Setup) -> list[str]:
    if not setup.reservations:
        return []
    known = {row.name for row in inventory.all_nodes(conn)}
    return [
        f"reservation {one.name}: the fleet has no node {name!r}"
        for one in setup.reservations
        for name in sorted(one.nodes - known)
    ]


def _unknown_projects(conn: Connection, setup: Setup) -> list[str]:
    return [
        f"queue {queue.name}: there is no project {project!r}"
        for queue in setup.queues.values()
        for project in queue.projects
        if not accounts.project_exists(conn, project)
    ]
