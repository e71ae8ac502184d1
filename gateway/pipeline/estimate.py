"""Admission maths: what a request may cost before it runs, and what an interrupted one did cost. Pure.

The prompt estimate is an upper bound for text of any language with byte-level tokenizers of usual compression:
max(UTF-8 bytes / 2, 1) + 8 per message + 2,048 per image (docs/limits.md states the bound and the metric that shows overruns).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from backends.core.request import GenerationRequest, Job, Sampling
from backends.core.usage import Usage
from gateway.domain.principal import LimitSpec
from gateway.domain.route import Route
from gateway.limits.abandoned import estimated_input, estimated_output
from gateway.limits.rules import LEAST_OUTPUT_TOKENS, Demand, largest_output
from gateway.pipeline.counting import PER_IMAGE
from gateway.protocols.contract import Call

_TOKENS_PER_MESSAGE = 8
#: What a chat template adds at the most that was seen: to the whole (a system prompt of its own), around each message.
_TEMPLATE_TOKENS, _MOST_PER_MESSAGE = 512, 64


def all_local(route: Route) -> bool:
    """Whether engines of this gateway alone serve a route."""
    for tier in route.tiers:
        for one in tier:
            if not one.engine:
                return False
    return True


def input_bound(call: Call, route: Route | None = None) -> int:
    """An upper estimate of the prompt's tokens.

    Of a route that local engines serve alone it is never too low: a token is one byte of text at least, and what their
    context does not hold they refuse.
    """
    if route is not None and route.context and all_local(route):
        alone = isinstance(call.job, GenerationRequest) and not call.job.prompts
        held = route.context - 1 if alone else route.context * max(call.items, 1)
        return min(held, call.text_bytes + call.token_count + _TEMPLATE_TOKENS + _MOST_PER_MESSAGE * call.items)
    bound = max(-(-call.text_bytes // 2), 1) + call.token_count + _TOKENS_PER_MESSAGE * call.items
    job = call.job
    return bound + PER_IMAGE * job.images if isinstance(job, GenerationRequest) and job.messages else bound


def output_cap(default: int, context: int, demand: Demand, limits: Sequence[LimitSpec]) -> int:
    """The cap that we decide when the client stated none, tokens per choice.

    The smallest of the model's default, what the context leaves, and what the whole token and cost limits leave after
    the prompt; never under `LEAST_OUTPUT_TOKENS`.
    """
    bounds = [default]
    if context:
        bounds.append(context - demand.input_tokens)
    whole = largest_output(limits, demand)
    if whole is not None:
        bounds.append(whole)
    return max(min(bounds), LEAST_OUTPUT_TOKENS)


def with_cap(job: Job, cap: int) -> Job:
    """The job with this output cap."""
    if not isinstance(job, GenerationRequest):
        return job
    return msgspec.structs.replace(job, sampling=msgspec.structs.replace(job.sampling, max_tokens=cap))


def with_defaults(job: Job, defaults: Sampling) -> Job:
    """The job with the route's sampling defaults where the client stated nothing."""
    if not isinstance(job, GenerationRequest) or defaults == _NOTHING:
        return job
    changes = {
        name: getattr(defaults, name)
        for name in Sampling.__struct_fields__
        if getattr(defaults, name) not in (None, ()) and getattr(job.sampling, name) in (None, ())
    }
    return msgspec.structs.replace(job, sampling=msgspec.structs.replace(job.sampling, **changes))


def generated(call: Call, deltas: int, delta_bytes: int, prompt: int = 0) -> Usage:
    """Usage that no backend reported: output max(deltas, bytes / 4), input bytes / 4; marked `estimated`.

    Bytes alone never estimate more output than the cap that the backend was told. `prompt`: its tokens where they were
    counted, 0 = they were not.
    """
    prompt = prompt or estimated_input(call.text_bytes, call.token_count, call.items)
    job = call.job
    if not isinstance(job, GenerationRequest):
        return Usage(prompt, 0, source="estimated")
    output = estimated_output(deltas, delta_bytes, (job.sampling.max_tokens or 0) * job.choices)
    return Usage(prompt, output, source="estimated")


_NOTHING = Sampling()
