"""Whose jobs may wait in which queue. Pure: asked at submission, and of whoever waits under a changed queue file."""

from __future__ import annotations

from penstock.base.errors import Problem
from penstock.scheduling.spec import Setup


def usable(setup: Setup, project: str) -> list[str]:
    """The queues that a project may use."""
    return sorted(one.name for one in setup.queues.values() if not one.projects or project in one.projects)


def forbidden(setup: Setup, queue: str, project: str) -> str | None:
    """Why a project's jobs may not wait in a queue: there is none of the name, or it is for others. A trace's workloads, which
    are of no project, may wait in any.
    """
    found = setup.queues.get(queue)
    if found is None:
        return f"there is no queue {queue!r}"
    if not found.projects or not project or project in found.projects:
        return None
    return f"queue {queue!r} is not for project {project!r}"


def too_urgent(setup: Setup, queue: str, priority: int) -> Problem | None:
    """The refusal of a priority above the highest that its queue takes."""
    found = setup.queues.get(queue)
    if found is None or found.max_priority is None or priority <= found.max_priority:
        return None
    return Problem("priority", f"is {priority}; queue {queue} takes none above {found.max_priority}")


def may_use(setup: Setup, queue: str, project: str) -> Problem | None:
    """The refusal of a job at submission, with what its project may use instead."""
    why = forbidden(setup, queue, project)
    there = ", ".join(usable(setup, project)) or "no queue"
    return None if why is None else Problem("queue", f"{why}; {project!r} may use {there}")
