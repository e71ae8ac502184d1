"""The deposit: decide the output cap, price the request, and take it from every limit in one call."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from backends.core.errors import GatewayError
from backends.core.request import GenerationRequest
from gateway.domain.principal import LimitSpec
from gateway.limits.rules import LEAST_OUTPUT_TOKENS, Demand, rules_for
from gateway.limits.store import LimitExceeded
from gateway.pipeline.clock import monotonic_us
from gateway.pipeline.estimate import input_bound, output_cap, with_cap, with_defaults
from gateway.pipeline.house import House, View
from gateway.pipeline.rows import opening_row
from gateway.pipeline.tally import Tally
from gateway.protocols.contract import Call


async def admit(house: House, view: View, call: Call, tally: Tally) -> Call:
    """Reserve what the request may use at most; returns the call with its defaults and its output cap.

    A cap that the client stated is never changed. One that it did not state is ours: injected when a token limit
    applies or a deployment needs one, told in `tally.imposed_cap`, and lowered once (never under 16) when the
    limits leave less than it.

    Raises:
        LimitExceeded: a limit refused; nothing is charged.
        BadRequest: the stated demand is above a whole limit.
    """
    route, principal = tally.route, tally.principal
    assert route is not None and principal is not None
    prompt = tally.input_estimate = input_bound(call)
    limits = principal.limits
    call = msgspec.structs.replace(call, job=with_defaults(call.job, route.defaults))
    ours = (
        isinstance(call.job, GenerationRequest)
        and not call.options.stated_cap
        and (any(spec.unit == "tokens" for spec in limits) or view.catalog.needs_output_cap(route))
    )
    if ours:
        tally.imposed_cap = output_cap(call.job, route.default_output_tokens, route.context, prompt, limits)
        call = _capped(call, tally.imposed_cap)
    try:
        await _reserve(house, call, tally, limits)
    except LimitExceeded as refusal:
        left = _left(refusal, prompt, call)
        if not ours or not LEAST_OUTPUT_TOKENS <= left < tally.imposed_cap:
            raise
        tally.imposed_cap = left
        call = _capped(call, left)
        await _reserve(house, call, tally, limits)
    return call


async def _reserve(house: House, call: Call, tally: Tally, limits: Sequence[LimitSpec]) -> None:
    route = tally.route
    assert route is not None
    rules = rules_for(limits, _demand(call, tally.input_estimate), on_outage=house.on_outage)
    began = monotonic_us()
    tally.admitting = True  # a cancellation from here on voids the admission
    try:
        tally.reservation = await house.limits.admit(tally.id, rules, opening_row(tally, call, route), house.lease_ms)
    except GatewayError:
        tally.admitting = False
        raise
    finally:
        tally.limiter_us += monotonic_us() - began


def _demand(call: Call, prompt: int) -> Demand:
    job = call.job
    if isinstance(job, GenerationRequest):
        param = "prompt" if job.prompts else "messages"
        return Demand(prompt, job.sampling.max_tokens or 0, job.choices, call.options.stated_cap, input_param=param)
    return Demand(prompt, input_param="input")


def _capped(call: Call, cap: int) -> Call:
    return msgspec.structs.replace(call, job=with_cap(call.job, cap))


def _left(refusal: LimitExceeded, prompt: int, call: Call) -> int:
    """What the token rules leave for each choice's output at the moment of a refusal."""
    job = call.job
    if refusal.rule.unit != "tokens" or not isinstance(job, GenerationRequest):
        return 0
    tokens = [state.remaining for state in refusal.states if state.rule.unit == "tokens"]
    return (min(tokens, default=0) - prompt) // job.choices
