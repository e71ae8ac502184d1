"""Sixth revision: whether a request counts in quotas of requests, so that they are rebuilt as they were.

Written out rather than taken from the models: a revision must go on meaning what it meant when it was made.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Of older rows it is known as well as it was: those of 503 that used nothing count as given back."""
    op.add_column("ledger", sa.Column("requests", sa.Integer, nullable=False, server_default="1"))
    op.execute("UPDATE ledger SET requests = 0 WHERE status = 503 AND usage_source = 'none'")
