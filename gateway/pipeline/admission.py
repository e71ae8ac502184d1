"""The deposit: decide the output cap, price the request, and take it from every limit in one call."""

from __future__ import annotations

import msgspec

from backends.core.errors import GatewayError
from backends.core.request import EmbeddingRequest, GenerationRequest
from gateway.domain.money import price_at
from gateway.domain.route import Price, Route
from gateway.limits.plans import Plan
from gateway.limits.rules import (
    GROWING,
    LEAST_OUTPUT_TOKENS,
    Demand,
    ceiling,
    largest_output,
    output_left,
)
from gateway.limits.store import LimitExceeded, LimitsUnavailable, PeriodOver
from gateway.pipeline.clock import monotonic_us
from gateway.pipeline.counting import Counter, key_of
from gateway.pipeline.estimate import all_local, input_bound, output_cap, with_cap, with_defaults
from gateway.pipeline.house import House, View
from gateway.pipeline.tally import Tally
from gateway.protocols.contract import Call

#: How often the rules are made anew because a calendar period ended under way; more would mean a leaping clock.
_PERIOD_TRIES = 3
_FREE = Price()
#: A price that begins between here and the admission's instant is reserved for too.
_PRICE_AHEAD_US = 60_000_000


async def admit(house: House, view: View, call: Call, tally: Tally) -> Call:
    """Reserve what the request may use at most; returns the call with its defaults and its output cap.

    A cap that the client stated is lowered only where a limit says `on_insufficient: clamp`. One that it did not state
    is ours: injected when a token or cost limit applies or a deployment needs one. Either is lowered once (never under
    16) when the limits leave less than it, and told in `tally.imposed_cap`.

    Raises:
        LimitExceeded: a limit refused; nothing is charged.
        BadRequest: the stated demand is above a whole limit.
        LimitsUnavailable: the limits cannot be checked, and one denies then.
    """
    route, principal = tally.route, tally.principal
    assert route is not None and principal is not None
    plan = house.plans.of(principal, route)
    if route.tokenizer:
        tally.counter = view.counters.get(key_of(route))
    counted: int | None = None
    if plan.counts_tokens and (tally.counter is not None or all_local(route)):
        counted = await _counted(view, route, call, tally.counter)
    tally.input_counted = counted is not None
    tally.input_estimate = input_bound(call, route) if counted is None else counted
    if (job := with_defaults(call.job, route.defaults)) is not call.job:
        call = msgspec.structs.replace(call, job=job)
    demand = _demand(call, tally.input_estimate, _price(route, house) if plan.costs else _FREE)
    ours = may_lower = False
    if isinstance(call.job, GenerationRequest):
        stated = call.options.stated_cap
        may_lower = plan.bounds_output
        ours = not stated and (may_lower or view.catalog.needs_output_cap(route))
        cap = demand.output_cap
        if ours:
            cap = output_cap(route.default_output_tokens, route.context, demand, plan.limits)
        elif stated and plan.clamps and (most := largest_output(plan.limits, demand, only_clamping=True)) is not None:
            cap = min(cap, most)
        if cap != demand.output_cap:
            call, demand = _capped(call, demand, cap, tally)
    try:
        await _reserve(house, call, tally, plan, demand)
    except LimitExceeded as refusal:
        if not may_lower or refusal.rule.unit not in GROWING:
            raise
        left = output_left(refusal.states, demand, only_clamping=not ours)
        if not LEAST_OUTPUT_TOKENS <= left < demand.output_cap:
            raise
        call, demand = _capped(call, demand, left, tally)
        await _reserve(house, call, tally, plan, demand)
    return call


async def _counted(view: View, route: Route, call: Call, counter: Counter | None) -> int | None:
    """The prompt's tokens by the model's tokenizer or by its own engines; None = nobody can tell."""
    if counter is not None:
        return await counter.bound(call)
    return None if view.ask_engines is None else await view.ask_engines(route, call.job)


async def _reserve(house: House, call: Call, tally: Tally, plan: Plan, demand: Demand) -> None:
    began = monotonic_us()
    opening = tally.opening = msgspec.structs.replace(
        plan.opening,
        id=tally.id,
        admitted_us=tally.began_wall_us,
        protocol=tally.protocol,
        streamed=call.options.stream,
        input_tokens=tally.input_estimate,
    )
    try:
        for _ in range(_PERIOD_TRIES):
            rules = plan.rules(demand, house.limits.now_us())
            tally.admitting = True  # a cancellation from here on voids the admission
            try:
                tally.reservation = await house.limits.admit(tally.id, rules, opening, house.lease_ms, tally.limiter_us)
                cap = demand.output_cap * demand.choices
                tally.flight = house.flights.began(
                    tally.id, tally.input_counted, call.text_bytes, call.token_count, call.items, cap
                )
            except PeriodOver:
                tally.admitting = False
                now = monotonic_us()
                tally.limiter_us, began = tally.limiter_us + now - began, now
                continue
            except GatewayError:
                tally.admitting = False
                raise
            return
        raise LimitsUnavailable("Limits cannot be checked at the moment.", retry_after_ms=1000, detail="periods keep ending")
    finally:
        tally.limiter_us += monotonic_us() - began


def _demand(call: Call, prompt: int, price: Price) -> Demand:
    job = call.job
    if isinstance(job, GenerationRequest):
        param = "prompt" if job.prompts else "messages"
        return Demand(prompt, job.sampling.max_tokens or 0, job.choices, call.options.stated_cap, price, param)
    return Demand(prompt, price=price, input_param="input" if isinstance(job, EmbeddingRequest) else "documents")


def _price(route: Route, house: House) -> Price:
    """The highest price of the route now or in a moment."""
    now_us = house.limits.now_us()
    instants = (now_us, now_us + _PRICE_AHEAD_US)
    return ceiling(price_at(route, one, at) for tier in route.tiers for one in tier for at in instants)


def _capped(call: Call, demand: Demand, cap: int, tally: Tally) -> tuple[Call, Demand]:
    tally.imposed_cap = cap
    return msgspec.structs.replace(call, job=with_cap(call.job, cap)), msgspec.structs.replace(demand, output_cap=cap)
