"""LoRA adapters of the llama.cpp engine: chosen by name, side by side in one engine, and never mixed up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backends.core.events import Event, TextDelta
from backends.core.request import GenerationRequest, Message, Sampling, Text
from backends.core.usage import Usage
from tests.engine_host import HostProcess, events, running
from tests.models import chat_gguf

pytestmark = pytest.mark.llamacpp
PROMPT = "Tell me about the rivers of Europe, the longest first, and the cities on them. " * 2


def adapter(path: Path, seed: int, scale: float) -> str:
    """A random adapter of rank 4 for the test model's (576 wide) query projections."""
    gguf = pytest.importorskip("gguf")
    import numpy as np

    dice = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    for layer in range(30):
        name = f"blk.{layer}.attn_q.weight"
        writer.add_tensor(f"{name}.lora_a", (dice.standard_normal((4, 576)) * scale).astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", (dice.standard_normal((576, 4)) * scale).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def job(model: str) -> GenerationRequest:
    message = Message("user", (Text(PROMPT),))
    return GenerationRequest(model, (message,), top_logprobs=20, sampling=Sampling(max_tokens=8, temperature=0.0))


def first(got: list[Event]) -> dict[str, float]:
    """The likeliest first tokens with their logprobs: figures that say which adapter computed them."""
    told = next(one for event in got if isinstance(event, TextDelta) for one in event.logprobs)
    return {candidate.token: candidate.logprob for candidate in told.top}


def apart(one: dict[str, float], other: dict[str, float]) -> float:
    """Mean difference of the tokens that both name: which ones come last of the likeliest changes with the least noise."""
    both = one.keys() & other.keys()
    return sum(abs(one[token] - other[token]) for token in both) / len(both) if len(both) > 2 else 12.0


async def test_adapters_are_chosen_by_name_and_do_not_share_what_they_computed(tmp_path: Path) -> None:
    files = {"warm": adapter(tmp_path / "warm.gguf", 1, 0.15), "cold": adapter(tmp_path / "cold.gguf", 2, 0.15)}
    async with running("llamacpp", chat_gguf(), slots=3, context=512, options={"lora": files}) as (host, engine):
        assert engine.describe()["lora"] == ["cold", "warm"]
        names = ("base", "warm", "cold")
        alone = {name: first(await events(engine, job(name))) for name in names}
        for name in names:
            usage = (await events(engine, job(name)))[-1]
            assert isinstance(usage, Usage)
            assert usage.cached_input_tokens > 0, "its own memory is found again"
        asked = (*names, *reversed(names), *names)
        together = await asyncio.gather(*(events(engine, job(name)) for name in asked))
        for name, got in zip(asked, together, strict=True):
            distance = {other: apart(first(got), alone[other]) for other in names}
            nearest = min(distance, key=distance.__getitem__)
            assert nearest == name, distance
            assert all(distance[name] * 1.5 < distance[other] for other in names if other != name), distance
        jobs = {line["id"]: name for line, name in zip(host.lines("submit")[-len(asked) :], asked, strict=True)}
        mixed = [line for line in host.lines("step") if len({jobs[id] for id in line["rows"] if id in jobs}) > 1]
        assert mixed == [], "one adapter a step"


async def test_a_file_that_is_no_adapter_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF nothing")
    host = HostProcess("llamacpp", chat_gguf(), slots=1, context=128, options={"lora": {"no": str(tmp_path / "no.gguf")}})
    try:
        assert await asyncio.to_thread(host.process.wait, 60) == 3
        assert "lora 'no'" in host.stderr.read_text()
    finally:
        host.end()
