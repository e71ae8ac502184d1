"""What the doctor asks of a deployment's server beside jobs: what it tells of itself, and whether its tokenizer is ours."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from backends import registry
from backends.core.errors import GatewayError
from backends.core.facts import Facts
from backends.remote.inspecting import facts_of, text_of, tokens_of
from gateway.domain.route import Deployment
from gateway.pipeline.counting import load_tokenizer
from gateway.places import control

_TEXT = "The quick brown fox: naïve café, 42 + 1 = 43. \u4e16\u754c"


async def inspect(deployment: Deployment, timeout_s: float) -> tuple[str, list[str]]:
    """What a remote deployment's server tells of itself in a few words ("-" for nothing), and what is to be mended."""
    found = registry.inspection(deployment.dialect)
    if found is None:
        return "-", []
    findings: list[str] = []
    try:
        async with asyncio.timeout(timeout_s), aclosing(control(deployment)) as client:
            facts = await facts_of(client, found)
            if deployment.max_in_flight and facts.slots and deployment.max_in_flight > facts.slots:
                findings.append(f"max_in_flight: {deployment.max_in_flight}, but it computes {facts.slots} requests at once")
            batch = int(str(deployment.options.get("max_client_batch_size", 0))) or (32 if facts.batch else 0)
            if deployment.dialect == "tei" and batch > facts.batch > 0:
                findings.append(f"max_client_batch_size: {batch}, but it takes {facts.batch}")
            if found.tokenize_request is not None:
                findings += await _tokenizer(deployment, await tokens_of(client, found, _TEXT))
            if found.detokenize_request is not None:
                ids = await tokens_of(client, found, _TEXT)
                back = await text_of(client, found, ids or ())
                if back is not None and back.strip() != _TEXT:
                    findings.append("tokenizer: what it makes tokens of does not come back")
    except (GatewayError, TimeoutError):
        return "-", findings  # an older server, or one that keeps these to itself: the probes say whether it is there
    return _words(facts), findings


async def _tokenizer(deployment: Deployment, theirs: tuple[int, ...] | None) -> list[str]:
    if theirs is None or not deployment.tokenizer:
        return []
    tokenizer = await asyncio.to_thread(load_tokenizer, deployment.tokenizer)
    ours = tuple(tokenizer.encode(_TEXT, add_special_tokens=False).ids)
    if ours == theirs:
        return []
    return [f"tokenizer: the model's file makes {len(ours)} tokens of a text of which it makes {len(theirs)} others"]


def _words(facts: Facts) -> str:
    told = [
        facts.model,
        f"{facts.context} tokens" if facts.context else "",
        f"{facts.slots} slots" if facts.slots else "",
        facts.version,
    ]
    return ", ".join(one for one in told if one) or "-"
