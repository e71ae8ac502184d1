"""The ledger's table: one row per request, its reservation id the primary key.

`state` is `open` while an embedded gateway has admitted a request and not yet settled it, else `final`. `charges` is
what the in-process limit store rebuilds its counters from (its own encoding); with Redis it is null.
"""

from __future__ import annotations

import sqlalchemy as sa

from gateway.domain.settlement import LedgerRow

METADATA = sa.MetaData()
# Text without a length: a column that refuses a long name would turn a request into a lost row.
_TEXT = sa.Text
LEDGER = sa.Table(
    "ledger",
    METADATA,
    sa.Column("id", _TEXT, primary_key=True),
    sa.Column("admitted_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("settled_us", sa.BigInteger, nullable=False),
    sa.Column("key_id", _TEXT, nullable=False),
    sa.Column("team_id", _TEXT, nullable=False),
    sa.Column("org_id", _TEXT, nullable=False),
    sa.Column("user", _TEXT, nullable=False),
    sa.Column("model", _TEXT, nullable=False),
    sa.Column("deployment", _TEXT, nullable=False),
    sa.Column("protocol", _TEXT, nullable=False),
    sa.Column("outcome", _TEXT, nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("streamed", sa.Boolean, nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("cached_input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("reasoning_tokens", sa.BigInteger, nullable=False),
    sa.Column("usage_source", _TEXT, nullable=False),
    sa.Column("cost_nusd", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("ttft_us", sa.BigInteger, nullable=False),
    sa.Column("duration_us", sa.BigInteger, nullable=False),
    sa.Column("requests", sa.Integer, nullable=False, server_default="1"),
    sa.Column("state", _TEXT, nullable=False),
    sa.Column("charges", sa.LargeBinary, nullable=True),
)
#: The columns that a LedgerRow fills, in its order.
ROW_FIELDS: tuple[str, ...] = LedgerRow.__struct_fields__
