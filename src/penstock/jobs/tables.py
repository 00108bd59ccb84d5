"""Rows are the truth of jobs and attempts; the event log says how they came to be."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, Table, Text

from penstock.store.tables import metadata

jobs = Table(
    "jobs",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),  # order of arrival; the list's cursor
    Column("id", Text, nullable=False, unique=True),
    Column("project", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("unix_user", Text),
    Column("generation", Integer, nullable=False),
    Column("observed_generation", Integer, nullable=False),
    Column("spec", Text, nullable=False),  # JSON of jobs.spec.JobSpec
    Column("labels", Text, nullable=False),  # JSON
    Column("phase", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column(
        "held", Text
    ),  # "dependency" or "slot": not in line yet; "array": a parent, never in line; "engine": in its line
    Column("priority", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("queued_at", Float, nullable=False),
    Column("next_at", Float),  # not before (back-off)
    Column("started_at", Float),
    Column("finished_at", Float),
    Column("phase_at", Float, nullable=False),
    Column("attempt", Integer, nullable=False),  # number of the newest one; 0 before the first
    Column("restarts", Integer, nullable=False),  # in place and new attempts together, drains not counted
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("nodes", Text, nullable=False),  # JSON: names, of the newest attempt
    Column("progress", Text),  # JSON, the last one, written when an attempt ends
    Column("array_of", Text),  # id of the parent
    Column("array_index", Integer),
    Column("array_count", Integer),
    Column("cancelled_by", Text),
    Column("engine", Text),  # of the newest attempt, where it is not the server's own
    Column("engine_job", Text),  # the name that engine has for it
    Column("start_estimate", Float),  # as that engine told it
    Column("failures", Text),  # JSON of crashes.Crash, the newest
    Column("avoided", Text),  # JSON of faults.Avoided
    Column("calm_at", Integer),  # restarts that were spent when it last made progress: back-off counts from there
)
Index("jobs_by_name", jobs.c.project, jobs.c.name, unique=True)
Index("jobs_by_project", jobs.c.project, jobs.c.seq)
Index("jobs_by_phase", jobs.c.phase, jobs.c.seq)
# The line, in its order of service.
Index("jobs_in_line", jobs.c.phase, jobs.c.held, jobs.c.priority.desc(), jobs.c.queued_at, jobs.c.seq)
Index("jobs_by_array", jobs.c.array_of, jobs.c.array_index)
Index("jobs_by_engine", jobs.c.engine, jobs.c.engine_job)

dependencies = Table(
    "job_dependencies",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("on_job_id", Text, primary_key=True),
    Column("on_name", Text, nullable=False),
    Column("condition", Text, nullable=False),
)
Index("job_dependencies_on", dependencies.c.on_job_id)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("phase", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("epoch", Integer, nullable=False),  # of the lease under which it was admitted
    Column(
        "groups", Text, nullable=False
    ),  # JSON: [{"node","cpus","memory","gpus":[{"id","model"}]}]; parts: internals
    Column("run_dir", Text, nullable=False),
    Column("stop_reason", Text),  # somebody asked it to end
    Column("admitted_at", Float, nullable=False),
    Column("started_at", Float),
    Column("ended_at", Float),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("restarts", Integer, nullable=False),  # in place
    Column("ranks", Text, nullable=False),  # JSON
    Column("gpu_idle", Text),  # JSON: [[node, GPU, since]] of those that do nothing, once that was told
    Column("engine_job", Text),  # the engine's own name for it: a Slurm job id
    Column("help", Text),  # what would let it start, while it waits in its engine's line
)
Index("attempts_by_phase", attempts.c.phase)
Index("attempts_by_end", attempts.c.ended_at)  # who was on a node a moment ago
