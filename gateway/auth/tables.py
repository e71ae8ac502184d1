"""The tables of who may ask and what it costs: keys, the owners of limits, prices, the counter that tells of changes, and
the audit trail.

They are made by `gateway.ledger.migrations`; only hashes of secrets are in them.
"""

from __future__ import annotations

import sqlalchemy as sa

METADATA = sa.MetaData()
KEYS = sa.Table(
    "keys",
    METADATA,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("team", sa.String(128), nullable=False),
    sa.Column("user", sa.String(128), nullable=False),
    sa.Column("models", sa.Text, nullable=True),
    sa.Column("limits", sa.Text, nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
    sa.Column("expires_us", sa.BigInteger, nullable=True),
    sa.Column("revoked_us", sa.BigInteger, nullable=True),
    sa.Column("revision", sa.BigInteger, nullable=False, index=True),
    sa.Column("suspended_us", sa.BigInteger, nullable=True),
    sa.Column("previous_hash", sa.String(64), nullable=True, index=True),
    sa.Column("previous_until_us", sa.BigInteger, nullable=True),
    sa.Column("usage_on_finish", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("default_model", sa.String(128), nullable=False, server_default=""),
    sa.Index("ix_keys_created_us", "created_us", "id"),
    sa.Index("ix_keys_team", "team"),
)
#: Organisations, teams and users: whoever shares limits.
OWNERS = sa.Table(
    "owners",
    METADATA,
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("organisation", sa.String(128), nullable=False),
    sa.Column("zone", sa.String(64), nullable=False),
    sa.Column("models", sa.Text, nullable=True),
    sa.Column("limits", sa.Text, nullable=False),
    sa.Column("created_us", sa.BigInteger, nullable=False),
)
#: The file's teams, told by the ledger's process for dashboards: see `gateway.auth.declared`. No gateway reads it.
DECLARED_TEAMS = sa.Table(
    "declared_teams",
    METADATA,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("zone", sa.String(64), nullable=False),
    sa.Column("limits", sa.Text, nullable=False),
)
#: What a model's tokens cost from an instant on, pico-USD per token. `deployment` "" = each that has no price of its own.
PRICES = sa.Table(
    "prices",
    METADATA,
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
#: One row. `revision` counts changes of all; `owners` and `prices` are the revisions that last changed one of those.
REVISION = sa.Table(
    "key_revision",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("owners", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("prices", sa.BigInteger, nullable=False, server_default="1"),
)
AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("actor", sa.String(128), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("noun", sa.String(16), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("team", sa.String(128), nullable=False),
    sa.Column("changes", sa.Text, nullable=False),
)
