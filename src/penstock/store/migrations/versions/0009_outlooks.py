"""What those who wait were first told of their start."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "scheduling_outlooks",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("told_at", sa.Float(), nullable=False),
        sa.Column("begins", sa.Float(), nullable=False),
        sa.Column("firm", sa.Boolean(), nullable=False),
        sa.Column("began", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("job_id", "attempt", name=op.f("pk_scheduling_outlooks")),
    )
    with op.batch_alter_table("scheduling_outlooks", schema=None) as batch_op:
        batch_op.create_index("scheduling_outlooks_by_start", ["began"], unique=False)
