"""Labels of nodes: the engine's, and what people say over them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("nodes", sa.Column("offered_labels", sa.Text(), server_default="{}", nullable=False))
    op.add_column("nodes", sa.Column("labels", sa.Text(), server_default="{}", nullable=False))
