"""Ledger rows for tests: every field filled, the ones that matter given."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.domain.settlement import LedgerRow

_EMPTY = LedgerRow(
    id="",
    admitted_us=0,
    settled_us=0,
    key_id="k1",
    team_id="",
    org_id="",
    user="",
    model="chat",
    deployment="",
    protocol="openai_chat",
    outcome="abandoned",
    status=0,
    streamed=False,
    input_tokens=0,
    cached_input_tokens=0,
    output_tokens=0,
    reasoning_tokens=0,
    usage_source="none",
    cost_nusd=0,
    attempts=0,
    ttft_us=0,
    duration_us=0,
)


def row(id: str, **changes: Any) -> LedgerRow:
    """The opening row of `id`, with these fields changed."""
    return msgspec.structs.replace(_EMPTY, id=id, **changes)
