"""Health: what nodes were asked to check."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("health_nodes", schema=None) as batch_op:
        batch_op.add_column(sa.Column("checks", sa.Text(), nullable=True))
