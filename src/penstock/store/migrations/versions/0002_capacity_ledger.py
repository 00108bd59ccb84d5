"""The capacity ledger, which begins with the nodes that are ready, and budgets."""

from __future__ import annotations

import json
from collections import Counter

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _budgets()
    _capacity()
    _begin()


def _budgets() -> None:
    op.create_table(
        "budgets",
        sa.Column("project", sa.Text(), nullable=False),
        sa.Column("amount", sa.Text(), nullable=False),
        sa.Column("thresholds", sa.Text(), nullable=False),
        sa.Column("refuse", sa.Boolean(), nullable=False),
        sa.Column("contact", sa.Text(), nullable=False),
        sa.Column("told", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("project", name=op.f("pk_budgets")),
    )


def _capacity() -> None:
    op.create_table(
        "capacity",
        sa.Column("node", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("quantity", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("node", "resource", "started_at", name=op.f("pk_capacity")),
    )
    op.create_index("ix_capacity_ended_at", "capacity", ["ended_at"], unique=False)


def _begin() -> None:
    """What was up before is not known exactly: the present state of a node is known since its last change."""
    conn = op.get_bind()
    insert = sa.text("INSERT INTO capacity (node, resource, started_at, quantity) VALUES (:n, :r, :s, :q)")
    found = sa.text("SELECT name, cpus, memory, gpus, changed_at FROM nodes WHERE ready")
    for name, cpus, memory, gpus, since in conn.execute(found).all():
        models = Counter(str(gpu.get("model") or "unknown") for gpu in json.loads(gpus))
        has = {"cpus": cpus, "memory_bytes": memory, **{f"gpus:{model}": count for model, count in models.items()}}
        for resource, quantity in has.items():
            conn.execute(insert, {"n": name, "r": resource, "s": since, "q": float(quantity)})
