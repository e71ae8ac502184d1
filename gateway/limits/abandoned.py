"""What a request came to whose worker vanished: by the progress that Redis was told, or by the worker's flight record. Pure."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from backends.core.usage import Usage
from gateway.domain.principal import Unit
from gateway.domain.settlement import LedgerRow, Rule
from gateway.limits.flights import Flown
from gateway.limits.outbox import pack_amounts, unpack_charges

#: Tokens of a message beside its text, where nobody counted.
_PER_ITEM = 4
#: The price of a row's tokens, nano-USD.
CostOf = Callable[[LedgerRow], int]
#: A row, and one amount for each rule.
Abandoned = tuple[LedgerRow, tuple[int, ...]]


def estimated_input(text_bytes: int, token_count: int, items: int) -> int:
    """The tokens of a prompt that nobody counted: bytes / 4, its token ids, and some for each message."""
    return max(-(-text_bytes // 4), 1) + token_count + _PER_ITEM * items


def estimated_output(deltas: int, delta_bytes: int, cap: int) -> int:
    """Output tokens that nobody counted: max(deltas, bytes / 4), the bytes at most the cap where there is one."""
    output = -(-delta_bytes // 4)
    return max(deltas, min(output, cap) if cap else output)


def by_progress(
    rules: tuple[Rule, ...], opening: LedgerRow, admitted_us: int, output_tokens: int, cost_of: CostOf
) -> Abandoned:
    """By the output tokens that were told last: the opening row's input estimate plus those, and what they cost.

    Nothing is above what was reserved.
    """
    row = msgspec.structs.replace(
        opening, admitted_us=admitted_us, outcome="abandoned", output_tokens=output_tokens, usage_source="estimated"
    )
    row = msgspec.structs.replace(row, cost_nusd=cost_of(row))
    amounts = _amounts(row)
    return row, tuple([min(rule.cost, amounts[rule.unit]) for rule in rules])


def by_flight(rules: tuple[Rule, ...], opening: LedgerRow, admitted_us: int, flown: Flown, cost_of: CostOf) -> Abandoned:
    """By what the worker had read when it died: exactly what a settlement would have said of an answer cut there."""
    row = flown_row(opening, admitted_us, flown, cost_of)
    amounts = _amounts(row)
    return row, tuple([amounts[rule.unit] for rule in rules])


def flown_row(opening: LedgerRow, admitted_us: int, flown: Flown, cost_of: CostOf) -> LedgerRow:
    """The row of a request whose flight record was found."""
    usage = flown.usage
    if usage is None and flown.deltas:
        prompt = estimated_input(flown.text_bytes, flown.token_count, flown.items)
        output = estimated_output(flown.deltas, flown.delta_bytes, flown.cap)
        usage = Usage(opening.input_tokens if flown.counted else prompt, output, source="estimated")
    made = usage if usage is not None else Usage(0, 0)
    row = msgspec.structs.replace(
        opening,
        admitted_us=admitted_us,
        outcome="abandoned",
        deployment=flown.deployment,
        attempts=flown.attempts,
        input_tokens=made.input_tokens,
        cached_input_tokens=made.cached_input_tokens,
        output_tokens=made.output_tokens,
        reasoning_tokens=made.reasoning_tokens,
        usage_source="none" if usage is None else usage.source,
    )
    return msgspec.structs.replace(row, cost_nusd=cost_of(row))


def flown_charges(row: LedgerRow, charges: bytes) -> bytes:
    """The stored charges of a request, as its row came to. Those of a former version, which have no unit, stay reserved."""
    stored = unpack_charges(charges)
    amounts = _amounts(row)
    return pack_amounts([msgspec.structs.replace(one, amount=amounts.get(one.unit, one.amount)) for one in stored])


def _amounts(row: LedgerRow) -> dict[Unit | str, int]:
    return {
        "requests": 1,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "tokens": row.input_tokens + row.output_tokens,
        "nusd": row.cost_nusd,
        "slots": 0,
    }
