"""Versions of services say as what their last replica ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("service_versions", sa.Column("reason", sa.Text(), server_default=sa.text("''"), nullable=False))
