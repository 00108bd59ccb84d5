"""Usage names the queue that admitted it. Intervals of before do not know theirs, and say so."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("usage", sa.Column("queue", sa.Text(), server_default="not recorded", nullable=False))
