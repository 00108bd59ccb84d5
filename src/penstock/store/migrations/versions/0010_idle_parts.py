"""What was idle may be a part of a GPU: a share, or a MIG instance."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("idle_usage", sa.Column("quantity", sa.Double(), nullable=True))
