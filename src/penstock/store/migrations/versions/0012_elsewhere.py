"""Jobs on engines that schedule themselves: which, by what name there; and attempts that run more than once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("engine", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("engine_job", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("start_estimate", sa.Float(), nullable=True))
    op.create_index("jobs_by_engine", "jobs", ["engine", "engine_job"], unique=False)
    op.add_column("attempts", sa.Column("engine_job", sa.Text(), nullable=True))
    op.add_column("attempts", sa.Column("help", sa.Text(), nullable=True))
    key = ["job_id", "attempt", "node", "resource", "started_at"]
    with op.batch_alter_table("usage", schema=None) as batch_op:
        batch_op.drop_constraint("pk_usage", type_="primary")
        batch_op.create_primary_key("pk_usage", key)
