"""Of jobs: their failures, the nodes that they avoid for them, and since when they go well."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("failures", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("avoided", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("calm_at", sa.Integer(), nullable=True))
