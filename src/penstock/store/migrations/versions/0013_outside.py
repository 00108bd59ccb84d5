"""What of an engine's accounting was made for the queue file; how far jobs from outside have been taken over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "scheduling_compiled",
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("fields", sa.Text(), nullable=False),
        sa.Column("pending", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("engine", "kind", "name", "account", name=op.f("pk_scheduling_compiled")),
    )
    op.create_table(
        "outside",
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("known", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("engine", name=op.f("pk_outside")),
    )
