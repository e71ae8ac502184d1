"""What every engine must do, asked through its host process and the worker's client.

One suite for all engines (`engine_cases.py`): a capability flag that an engine lacks skips a test, with the reason.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from backends.core.errors import BadRequest, ContextTooLong, Overloaded
from backends.core.events import Finish, Started, TextDelta
from backends.core.request import GenerationRequest, Message, Output, Prompt, Sampling, Text
from backends.core.usage import Usage
from backends.engines.client import EngineClient
from tests.conformance.engine_cases import PARAMS, EngineCase
from tests.engine_host import TOKEN, HostProcess, events, text, up

PROMPT = "Count from one to one hundred in words and then tell me a long story about every number."


@pytest.fixture(scope="module", params=PARAMS)
def case(request: pytest.FixtureRequest) -> EngineCase:
    chosen: EngineCase = request.param
    return chosen


@pytest.fixture(scope="module")
def host(case: EngineCase) -> Iterator[HostProcess]:
    process = HostProcess(case.kind, **{"slots": 2, "queue": 2, "context": 512, **case.launch()})
    yield process
    process.end()


@pytest.fixture
async def engine(host: HostProcess, case: EngineCase) -> AsyncIterator[EngineClient]:
    client = EngineClient(host.socket, TOKEN, "e1")
    await up(client, case.up_s, host)
    yield client
    await client.aclose()


def chat(content: str = PROMPT, n: int = 1, top_logprobs: int | None = None, **sampling: Any) -> GenerationRequest:
    sampling.setdefault("max_tokens", 12)
    sampling.setdefault("temperature", 0.0)
    sampling.setdefault("ignore_eos", True)  # a tiny model has said all it knows after a few tokens
    return GenerationRequest(
        "m", (Message("user", (Text(content),)),), n=n, sampling=Sampling(**sampling), top_logprobs=top_logprobs
    )


async def test_a_whole_answer(engine: EngineClient) -> None:
    got = await events(engine, chat())
    assert got[0] == Started("m")
    assert text(got)
    assert [e for e in got if isinstance(e, Finish)] == [Finish("length")]
    usage = got[-1]
    assert isinstance(usage, Usage)
    assert (usage.output_tokens, usage.source) == (12, "counted")
    assert usage.input_tokens > 10


async def test_it_tells_what_it_is(engine: EngineClient, case: EngineCase) -> None:
    facts = engine.describe()
    assert (facts["context"], facts["slots"]) == (512, 2)
    wanted = {"chat", "completions", "max_tokens", "temperature"} | ({"n", "logprobs", "seed", "stop"} & case.can)
    assert wanted <= set(facts["capabilities"])  # type: ignore[call-overload]
    figures = await engine.stats()
    assert figures["queued"] == 0


async def test_n_choices_finish_once_each_and_the_prompt_is_counted_once(engine: EngineClient, case: EngineCase) -> None:
    case.need("n")
    one = (await events(engine, chat(max_tokens=5)))[-1]
    got = await events(engine, chat(n=3, max_tokens=5, temperature=1.0, seed=3))
    assert sorted(e.choice for e in got if isinstance(e, Finish)) == [0, 1, 2]
    usage = got[-1]
    assert isinstance(usage, Usage)
    assert isinstance(one, Usage)
    assert usage.input_tokens == one.input_tokens
    assert usage.output_tokens <= 15


async def test_several_prompts_are_numbered_in_order(engine: EngineClient, case: EngineCase) -> None:
    case.need("several_prompts", "n")
    job = GenerationRequest(
        "m", prompts=(Prompt("One two three"), Prompt("Once upon a time there")), n=2, sampling=Sampling(max_tokens=3)
    )
    got = await events(engine, job)
    assert sorted(e.choice for e in got if isinstance(e, Finish)) == [0, 1, 2, 3]


async def test_a_stop_string_ends_it_and_is_left_out(engine: EngineClient, case: EngineCase) -> None:
    case.need("stop")
    whole = text(await events(engine, chat(max_tokens=24)))
    stop = whole[len(whole) // 2 :][:5]
    got = await events(engine, chat(max_tokens=24, stop=(stop,)))
    assert text(got) == whole[: whole.index(stop)]
    assert Finish("stop") in got


async def test_a_seed_reproduces_and_another_differs(engine: EngineClient, case: EngineCase) -> None:
    case.need("seed")
    first, again, other = [text(await events(engine, chat(temperature=1.5, seed=seed, max_tokens=20))) for seed in (7, 7, 8)]
    assert first == again
    assert first != other


async def test_logprobs_cover_every_token(engine: EngineClient, case: EngineCase) -> None:
    case.need("logprobs")
    got = await events(engine, chat(top_logprobs=2, max_tokens=8))
    told = [one for e in got if isinstance(e, TextDelta) for one in e.logprobs]
    assert len(told) == 8
    assert b"".join(one.bytes for one in told).decode() == text(got)
    for one in told:
        assert one.logprob <= 0
        assert len(one.top) == 2
        assert one.top[0].logprob >= one.top[1].logprob
        assert one.top[0].bytes == one.bytes, "greedy takes the likeliest"


async def test_a_prompt_over_the_context_is_refused_with_both_numbers(engine: EngineClient) -> None:
    with pytest.raises(ContextTooLong) as caught:
        await events(engine, chat("word " * 700))
    assert caught.value.status == 400
    assert caught.value.code == "context_length_exceeded"
    assert "512" in caught.value.message
    assert any(int(w.strip(".;,")) >= 700 for w in caught.value.message.split() if w.strip(".;,").isdigit())


async def test_the_context_filling_up_ends_with_length(engine: EngineClient, case: EngineCase) -> None:
    case.need("ignore_eos", "exact_context")
    got = await events(engine, chat("word " * 440, max_tokens=400))
    usage = got[-1]
    assert isinstance(usage, Usage)
    assert Finish("length") in got
    assert usage.input_tokens + usage.output_tokens == 512


async def test_work_of_another_kind_is_refused(engine: EngineClient) -> None:
    from backends.core.request import EmbeddingRequest

    with pytest.raises(BadRequest):
        await events(engine, EmbeddingRequest("m", (Prompt("x"),)))


async def test_a_full_queue_is_refused_with_a_time_to_come_back(
    engine: EngineClient, host: HostProcess, case: EngineCase
) -> None:
    case.need("queue", "ignore_eos")
    begun = len(host.lines("submit"))
    async with AsyncExitStack() as stack:
        for _ in range(4):  # two run, two wait
            await stack.enter_async_context(engine.open(chat(max_tokens=400)))
        await host.until("submit", begun + 4)
        with pytest.raises(Overloaded) as caught:
            await events(engine, chat())
        assert caught.value.status == 503
        assert caught.value.retry_after_ms is not None
        assert caught.value.retry_after_ms > 0
    await host.until("cancel", len(host.lines("cancel")) or 1)


@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
async def test_leaving_frees_the_slot_within_half_a_second(
    engine: EngineClient, host: HostProcess, case: EngineCase, phase: str
) -> None:
    case.need("ignore_eos", *(("step_log",) if phase == "prefill" else ()))
    cancels = len(host.lines("cancel"))
    known = {line["id"] for line in host.lines("submit")}
    async with AsyncExitStack() as stack:
        before = 2 if phase == "queued" else 0
        for _ in range(before):
            await stack.enter_async_context(engine.open(chat(max_tokens=400)))
        victim = AsyncExitStack()
        content = "word " * 400 if phase == "prefill" else PROMPT
        stream = await victim.enter_async_context(engine.open(chat(content, max_tokens=400)))
        await host.until("submit", len(known) + before + 1)
        id = [line["id"] for line in host.lines("submit")][-1]
        if phase == "prefill":
            async with asyncio.timeout(20):
                while not any(id in line["rows"] for line in host.lines("step")):
                    await asyncio.sleep(0.001)
        if phase == "decode":
            await anext(stream)
            await anext(stream)
        left = time.monotonic()
        await victim.aclose()
        async with asyncio.timeout(5):
            while not (mine := [line for line in host.lines("cancel") if line["id"] == id]):
                await asyncio.sleep(0.005)
        assert mine[0]["was"] == phase
        assert mine[0]["t"] - left < 0.5
    await host.until("cancel", cancels + before + 1)
    steps = [line for line in host.lines("step") if line["t"] > mine[0]["t"]]
    assert not any(id in line["rows"] for line in steps), "a cancelled job is in no later batch"
    figures = await engine.stats()
    assert (figures["running"], figures["queued"]) == (0, 0)


async def test_a_lost_connection_cancels_its_jobs(engine: EngineClient, host: HostProcess, case: EngineCase) -> None:
    case.need("ignore_eos")
    other = EngineClient(host.socket, TOKEN, "e1")
    async with other.open(chat(max_tokens=400)) as stream:
        await anext(stream)
        id = host.lines("submit")[-1]["id"]
        left = time.monotonic()
        await other.aclose()
        async with asyncio.timeout(5):
            while not (mine := [line for line in host.lines("cancel") if line["id"] == id]):
                await asyncio.sleep(0.005)
        assert mine[0]["t"] - left < 0.5
    assert (await engine.stats())["running"] == 0


async def test_an_answer_keeps_to_a_schema(engine: EngineClient, case: EngineCase) -> None:
    case.need("schema")
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["colour", "count"],
        "additionalProperties": False,
    }
    output = Output("json_schema", schema=msgspec.Raw(msgspec.json.encode(schema)))
    job = msgspec.structs.replace(chat(max_tokens=60, ignore_eos=None), output=output)
    found = msgspec.json.decode(text(await events(engine, job)))
    assert found["colour"] in ("red", "green")
    assert found["count"] in range(10)
    assert set(found) == {"colour", "count"}


async def test_an_answer_keeps_to_a_grammar(engine: EngineClient, case: EngineCase) -> None:
    case.need("grammar")
    output = Output("grammar", grammar='root ::= "yes" | "no"')
    got = await events(engine, msgspec.structs.replace(chat(ignore_eos=None), output=output))
    assert text(got) in ("yes", "no")


async def test_a_prompt_that_was_read_before_is_told_as_cached(engine: EngineClient, case: EngineCase) -> None:
    case.need("cached")
    prompt = f"The following is a list of rivers, their lengths and the countries that they flow through. {PROMPT}" * 5
    first, again = [(await events(engine, chat(prompt, max_tokens=4)))[-1] for _ in range(2)]
    assert isinstance(first, Usage)
    assert isinstance(again, Usage)
    assert again.input_tokens == first.input_tokens
    assert 0 < again.cached_input_tokens < again.input_tokens
