"""The llama.cpp engine's memory: what is read once, kept, moved out and put back, and what happens when it is full."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from backends.core.events import Event, Failure, Finish
from backends.core.request import GenerationRequest, Message, Prompt, Sampling, Text
from backends.core.usage import Usage
from backends.engines.client import EngineClient
from tests.engine_host import TOKEN, HostProcess, events, running, text, up
from tests.models import chat_gguf
from tests.tiny_infill import write_gguf

pytestmark = pytest.mark.llamacpp


@pytest.fixture(scope="module")
def host() -> Iterator[HostProcess]:
    process = HostProcess("llamacpp", chat_gguf(), slots=4, context=1024)
    yield process
    process.end()


@pytest.fixture
async def engine(host: HostProcess) -> AsyncIterator[EngineClient]:
    client = EngineClient(host.socket, TOKEN, "e1")
    await up(client)
    yield client
    await client.aclose()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of bytes that repeats the last one for ever, fast enough for long prompts."""
    pytest.importorskip("llama_cpp")
    return str(write_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf", context=16_384))


def chat(content: str, *, n: int = 1, **sampling: Any) -> GenerationRequest:
    sampling.setdefault("temperature", 0.0)
    sampling.setdefault("max_tokens", 24)
    return GenerationRequest("chat", (Message("user", (Text(content),)),), n=n, sampling=Sampling(**sampling))


def plain(prompt: str, max_tokens: int, n: int = 1) -> GenerationRequest:
    """To the model of bytes: a token each, and one before them."""
    return GenerationRequest("m", prompts=(Prompt(prompt),), n=n, sampling=Sampling(max_tokens=max_tokens, temperature=0.0))


def usage(got: list[Event]) -> Usage:
    assert isinstance(got[-1], Usage)
    return got[-1]


async def at_rest(host: HostProcess, client: EngineClient) -> None:
    """Nobody has a slot, every request ended once, and the next one is served."""
    assert len(host.lines("submit")) == len(host.lines("finish")) + len(host.lines("fail")) + len(host.lines("cancel"))
    stats = await client.stats()
    assert (stats["running"], stats["queued"], stats["kv_tokens"]) == (0, 0, 0)


async def test_a_shared_beginning_is_counted_as_cached_and_a_seed_never_uses_it(engine: EngineClient) -> None:
    long = "The quick brown fox jumps over the lazy dog again and again. " * 8
    first = await events(engine, chat(long, max_tokens=4))
    again = await events(engine, chat(long, max_tokens=4))
    assert usage(again).input_tokens == usage(first).input_tokens
    assert 0 < usage(again).cached_input_tokens < usage(again).input_tokens
    seeded = await events(engine, chat(long, max_tokens=4, seed=5))
    assert usage(seeded).cached_input_tokens == 0


async def test_choices_share_one_reading_of_the_prompt(engine: EngineClient, host: HostProcess) -> None:
    got = await events(engine, chat("Tell me about rivers and lakes of the world.", n=3, max_tokens=6, seed=3, temperature=1.0))
    id = host.lines("submit")[-1]["id"]
    prompt_rows = sum(line["prefill"] for line in host.lines("step") if id in line["rows"])
    assert prompt_rows == usage(got).input_tokens + 2, "the two others read only the last token again"
    assert len({text(got, choice) for choice in range(3)}) > 1


async def test_a_system_prompt_is_read_once_for_all_who_begin_with_it_at_once(engine: EngineClient, host: HostProcess) -> None:
    system = "You are a patient guide of the museum of clocks. " * 8
    jobs = [
        GenerationRequest(
            "m",
            (Message("system", (Text(system),)), Message("user", (Text(question),))),
            sampling=Sampling(max_tokens=16, temperature=0.0),
        )
        for question in ("How old is the oldest?", "Where is the exit?", "Who made the cuckoo?")
    ]
    alone = [text(await events(engine, job)) for job in jobs]
    await events(engine, jobs[0])
    before = len(host.lines("step"))
    together = await asyncio.gather(*(events(engine, job) for job in jobs))
    usages = [got[-1] for got in together]
    assert all(isinstance(usage, Usage) for usage in usages)
    read = sum(line["prefill"] for line in host.lines("step")[before:])
    asked = sum(usage.input_tokens for usage in usages if isinstance(usage, Usage))
    cached = sum(usage.cached_input_tokens for usage in usages if isinstance(usage, Usage))
    assert read == asked - cached, "what is told as cached was not read again"
    assert read < asked / 3
    assert len(alone) == len(together)


async def test_who_begins_while_another_reads_the_same_waits_for_it_and_shares() -> None:
    system = "The museum of clocks is open every day but Monday. " * 20
    async with running("llamacpp", chat_gguf(), slots=4, context=1024, options={"batch": 32}) as (host, engine):
        jobs = [
            GenerationRequest("m", (Message("user", (Text(system + word),)),), sampling=Sampling(max_tokens=4, temperature=0.0))
            for word in ("one", "two", "three", "four")
        ]
        got = await asyncio.gather(*(events(engine, job) for job in jobs))
        prompt = got[0][-1].input_tokens  # type: ignore[union-attr]
        read = sum(line["prefill"] for line in host.lines("step"))
        assert read < prompt + 4 * 24, "read once, and four ends"
        assert sorted(one[-1].cached_input_tokens > prompt / 2 for one in got) == [False, True, True, True]  # type: ignore[union-attr]


async def test_conversations_that_take_turns_are_moved_out_and_put_back() -> None:
    first, second = ("Tell me about the old clocks of the tower. " * 6, "Name the rivers that run to the northern sea. " * 6)
    async with running("llamacpp", chat_gguf(), slots=1, context=512) as (_, client):
        in_place = {}
        for content in (first, second):
            got = await events(client, chat(content))
            assert usage(got).cached_input_tokens < 32, "no more than the template's own beginning"
            in_place[content] = await events(client, chat(content))
        for content in (first, second, first):
            got = await events(client, chat(content))
            assert usage(got).cached_input_tokens == usage(got).input_tokens - 1, "one slot, and still nothing is read twice"
            assert text(got) == text(in_place[content]), "what was put back is what was moved out"
        assert 0 < (await client.stats())["kept_tokens"] <= 512 // 4  # type: ignore[operator]


async def test_nothing_is_kept_beside_the_cache_where_that_is_said() -> None:
    contents = ("Tell me about the old clocks of the tower. " * 6, "Name the rivers that run to the northern sea. " * 6)
    async with running("llamacpp", chat_gguf(), slots=1, context=512, options={"kept_tokens": 0}) as (_, client):
        for content in (*contents, *contents):
            assert usage(await events(client, chat(content, max_tokens=2))).cached_input_tokens < 32, "the template's beginning"
        assert usage(await events(client, chat(contents[1], max_tokens=2))).cached_input_tokens > 0, (
            "but its slot holds the last"
        )
        assert (await client.stats())["kept_tokens"] == 0


async def test_what_is_idle_leaves_the_cache_when_another_computes() -> None:
    async with running("llamacpp", chat_gguf(), slots=4, context=512) as (_, client):
        await events(client, chat("Tell me about the old clocks of the tower. " * 6, max_tokens=4))
        assert (await client.stats())["kept_tokens"] == 0, "nobody computes: it stays where it is"
        await events(client, chat("Something else.", max_tokens=2))
        assert (await client.stats())["kept_tokens"] > 60  # type: ignore[operator]
        again = await events(client, chat("Tell me about the old clocks of the tower. " * 6, max_tokens=4))
        assert usage(again).cached_input_tokens == usage(again).input_tokens - 1


async def test_many_long_streams_in_a_cache_too_small_for_them_end_whole_or_refused(tiny: str) -> None:
    options = {"cache_tokens": 1024}
    async with running("llamacpp", tiny, slots=6, context=1024, queue=8, options=options) as (host, client):
        for _ in range(2):
            answers = await asyncio.gather(*(events(client, plain(letter * 100, 900)) for letter in "abcdef"))
            for letter, got in zip("abcdef", answers, strict=True):
                if isinstance(got[-1], Failure):
                    assert got[-1].kind == "overloaded" and got[-1].retry_after_ms
                else:
                    assert (usage(got).output_tokens, text(got)) == (900, letter * 900)
            assert any(isinstance(got[-1], Usage) for got in answers)
            assert any(isinstance(got[-1], Failure) for got in answers)
            await at_rest(host, client)


async def test_long_prompts_that_do_not_fit_beside_each_other_are_refused_youngest_first(tiny: str) -> None:
    async with running("llamacpp", tiny, slots=4, context=1024, queue=8, options={"cache_tokens": 1024}) as (host, client):
        answers = await asyncio.gather(*(events(client, plain(letter * 400, 50)) for letter in "abcd"))
        ends = [type(got[-1]) for got in answers]
        assert ends[:2] == [Usage, Usage] and ends.count(Failure) >= 1
        assert all(got[-1].kind == "overloaded" for got in answers if isinstance(got[-1], Failure))
        await at_rest(host, client)


async def test_an_output_longer_than_the_context_ends_by_length(tiny: str) -> None:
    async with running("llamacpp", tiny, slots=2, context=256, options={"cache_tokens": 256}) as (host, client):
        await events(client, plain("z" * 200, 10))  # what it leaves must make room
        got = await events(client, plain("a" * 200, 5000))
        assert Finish("length") in got
        assert usage(got).input_tokens + usage(got).output_tokens == 256
        await at_rest(host, client)


async def test_choices_share_their_prompt_in_a_full_cache_and_are_refused_together(tiny: str) -> None:
    async with running("llamacpp", tiny, slots=4, context=1024, queue=8, options={"cache_tokens": 1024}) as (host, client):
        fits = await events(client, plain("a" * 500, 100, n=4))
        assert usage(fits).output_tokens == 400, "500 tokens once and 4 times 100"
        beyond = await events(client, plain("a" * 500, 500, n=4))
        assert isinstance(beyond[-1], Failure) and beyond[-1].kind == "rejected", "it never fits: not to be tried again"
        other, crowd = await asyncio.gather(events(client, plain("b" * 400, 300)), events(client, plain("c" * 100, 600, n=3)))
        assert usage(other).output_tokens == 300, "who came first is unharmed"
        assert isinstance(crowd[-1], Failure) and crowd[-1].kind == "overloaded"
        await at_rest(host, client)


async def test_a_prompt_of_eight_thousand_tokens_is_reused_after_others_came_by(tiny: str) -> None:
    conversation = "".join(chr(97 + i % 26) for i in range(8000))
    async with running("llamacpp", tiny, slots=3, context=16_384) as (host, client):
        got = await events(client, plain(conversation, 8))
        assert usage(got).cached_input_tokens == 0
        await asyncio.gather(*(events(client, plain(letter * 300, 8)) for letter in "ABC"))
        assert (await client.stats())["kept_tokens"] > 8000  # type: ignore[operator]
        begun = len(host.lines("step"))
        got = await events(client, plain(conversation + text(got) + "and", 8))
        assert usage(got).cached_input_tokens >= 8008
        assert sum(line["prefill"] for line in host.lines("step")[begun:]) < 8
        await at_rest(host, client)


async def test_a_cancel_in_a_prompt_of_thousands_of_tokens_frees_the_slot_at_once() -> None:
    async with running("llamacpp", chat_gguf(), slots=1, context=8192) as (host, client):
        async with client.open(chat("river " * 6000)):
            async with asyncio.timeout(60):
                while sum(line["prefill"] for line in host.lines("step")) < 256:
                    await asyncio.sleep(0.05)
            left = time.monotonic()
        cancel = (await host.until("cancel"))[0]
        assert (cancel["was"], cancel["t"] - left < 0.5) == ("prefill", True)
        assert usage(await events(client, chat("Hello", max_tokens=2))).output_tokens == 2
        await at_rest(host, client)


async def test_a_full_cache_refuses_the_youngest_and_harms_nobody_else() -> None:
    options = {"cache_tokens": 600, "batch": 64, "prefix_cache": True}
    async with running("llamacpp", chat_gguf(), slots=4, context=512, options=options) as (host, engine):

        async def one(number: int) -> list[Event]:
            asked = chat(f"{number} " * 60, max_tokens=200, ignore_eos=True)
            return await events(engine, asked)

        for _ in range(2):  # the second time there are kept prefixes, which go first
            answers = await asyncio.gather(*(one(number) for number in range(4)))
            whole = [got for got in answers if isinstance(got[-1], Usage)]
            refused = [got[-1] for got in answers if isinstance(got[-1], Failure)]
            assert len(whole) + len(refused) == 4
            assert whole and refused
            assert all(failure.kind == "overloaded" and failure.retry_after_ms for failure in refused)
            assert all(isinstance(got[-1], Usage) and got[-1].output_tokens == 200 for got in whole)
        stats = await engine.stats()
        assert (stats["running"], stats["queued"], stats["kv_tokens"], stats["kv_size"]) == (0, 0, 0, 600)
        assert len(host.lines("submit")) == len(host.lines("finish")) + len(host.lines("fail"))


async def test_a_cache_smaller_than_a_context_is_refused_in_words() -> None:
    host = HostProcess("llamacpp", chat_gguf(), slots=4, context=512, options={"cache_tokens": 500})
    try:
        assert await asyncio.to_thread(host.process.wait, 60) == 3
        assert "cache_tokens" in host.stderr.read_text()
    finally:
        host.end()
