"""Second revision: organisations, teams and users; suspended and rotated keys; the audit trail.

Written out rather than taken from the models: a revision must go on meaning what it meant when it was made.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and tables."""
    op.add_column("keys", sa.Column("suspended_us", sa.BigInteger, nullable=True))
    op.add_column("keys", sa.Column("previous_hash", sa.String(64), nullable=True))
    op.add_column("keys", sa.Column("previous_until_us", sa.BigInteger, nullable=True))
    op.create_index("ix_keys_previous_hash", "keys", ["previous_hash"])
    op.create_index("ix_keys_created_us", "keys", ["created_us", "id"])
    op.create_index("ix_keys_team", "keys", ["team"])
    op.add_column("key_revision", sa.Column("owners", sa.BigInteger, nullable=False, server_default="1"))
    op.create_table(
        "owners",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("organisation", sa.String(128), nullable=False),
        sa.Column("zone", sa.String(64), nullable=False),
        sa.Column("models", sa.Text, nullable=True),
        sa.Column("limits", sa.Text, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(32), nullable=False),
        sa.Column("noun", sa.String(16), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("team", sa.String(128), nullable=False),
        sa.Column("changes", sa.Text, nullable=False),
    )
