"""Fourth revision: what a key's older client needs: usage on the finish chunk, and a model for any name.

Written out rather than taken from the models: a revision must go on meaning what it meant when it was made.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the two columns."""
    op.add_column("keys", sa.Column("usage_on_finish", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("keys", sa.Column("default_model", sa.String(128), nullable=False, server_default=""))
