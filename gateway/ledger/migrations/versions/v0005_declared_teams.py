"""Fifth revision: the configuration file's teams and their limits, for readers of SQL alone.

Written out rather than taken from the models: a revision must go on meaning what it meant when it was made.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table; the ledger's process fills it."""
    op.create_table(
        "declared_teams",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("zone", sa.String(64), nullable=False),
        sa.Column("limits", sa.Text, nullable=False),
    )
