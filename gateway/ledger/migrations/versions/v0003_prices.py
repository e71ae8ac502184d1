"""Third revision: prices of models, each from an instant on; an index by which old audit rows are found.

Written out rather than taken from the models: a revision must go on meaning what it meant when it was made.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, the column and the index."""
    op.add_column("key_revision", sa.Column("prices", sa.BigInteger, nullable=False, server_default="1"))
    op.create_index("ix_audit_at_us", "audit", ["at_us"])
    op.create_table(
        "prices",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("deployment", sa.String(128), nullable=False),
        sa.Column("from_us", sa.BigInteger, nullable=False),
        sa.Column("input", sa.BigInteger, nullable=False),
        sa.Column("cached_input", sa.BigInteger, nullable=False),
        sa.Column("output", sa.BigInteger, nullable=False),
        sa.Column("created_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("model", "deployment", "from_us", name="uq_prices"),
    )
