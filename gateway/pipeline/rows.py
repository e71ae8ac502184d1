"""The ledger row of one request: what it came to. Pure."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from backends.core.usage import Usage
from gateway.domain.money import cost_nusd, price_at
from gateway.domain.settlement import LedgerRow, Settlement
from gateway.pipeline.counting import INLINE_BYTES
from gateway.pipeline.estimate import generated
from gateway.pipeline.tally import KEPT_BYTES, Tally
from gateway.protocols.contract import Call

#: The usage of a request that made nothing.
NOTHING = Usage(0, 0, source="estimated")
#: Errors of requests that no model was ever given: their request charge is returned too.
_RETURNED = frozenset({"overloaded", "no_deployment", "draining", "model_loading"})


def usage_of(tally: Tally) -> Usage:
    """What to bill: the reported usage, else what was really generated (counted where there is a tokenizer), else nothing."""
    if tally.usage is not None:
        return tally.usage
    if tally.call is None or not tally.deltas:
        return NOTHING
    return unreported(tally, tally.call)


def unreported(tally: Tally, call: Call) -> Usage:
    """What an answer came to that no backend reported usage of."""
    prompt = tally.input_estimate if tally.input_counted else 0
    if tally.counter is not None and tally.delta_bytes <= KEPT_BYTES:
        with suppress(UnicodeError, TypeError):  # the tokenizer takes no half of a surrogate pair
            return tally.counter.usage(call, tally.kept, prompt)
    return generated(call, tally.deltas, tally.delta_bytes, prompt)


def takes_long(tally: Tally) -> bool:
    """Whether `usage_of` has so much to count that it belongs into a thread."""
    if tally.usage is not None or tally.call is None or not tally.deltas or tally.counter is None:
        return False
    prompt = 0 if tally.input_counted else tally.call.text_bytes
    return tally.reservation is not None and tally.delta_bytes + prompt > INLINE_BYTES


def settlement(tally: Tally, now_wall_us: int, now_us: int) -> Settlement:
    """The settlement of an admitted request."""
    reservation, opening, route = tally.reservation, tally.opening, tally.route
    assert reservation is not None and opening is not None and route is not None
    usage = usage_of(tally)
    admitted_us, attempts, began_us = reservation.admitted_us, tally.attempts, tally.began_us
    answered, cost = "", 0
    if attempts:
        deployment = attempts[-1].deployment
        answered, cost = deployment.id, cost_nusd(usage, price_at(route, deployment, admitted_us))
    returned = tally.error is not None and not tally.deltas and tally.error.code in _RETURNED
    read, written = usage.input_tokens, usage.output_tokens
    requests = 0 if returned else 1
    used = {
        "requests": requests,
        "slots": 0,
        "input_tokens": read,
        "output_tokens": written,
        "tokens": read + written,
        "nusd": cost,
    }
    row: LedgerRow = msgspec.structs.replace(
        opening,
        admitted_us=admitted_us,
        settled_us=now_wall_us,
        deployment=answered,
        outcome=tally.outcome,
        status=tally.status,
        input_tokens=read,
        cached_input_tokens=usage.cached_input_tokens,
        output_tokens=written,
        reasoning_tokens=usage.reasoning_tokens,
        usage_source=usage.source if usage is not NOTHING else "none",
        cost_nusd=cost,
        attempts=len(attempts),
        ttft_us=tally.first_event_us - began_us if tally.first_event_us else 0,
        duration_us=now_us - began_us,
        requests=requests,
    )
    return Settlement(reservation, tuple([used[rule.unit] for rule in reservation.rules]), row)
