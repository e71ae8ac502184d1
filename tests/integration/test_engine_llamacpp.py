"""The llama.cpp engine on real weights, in its host process."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import statistics
import struct
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from backends.core.errors import BadRequest, ContextTooLong, EngineCrashed, UnsupportedParameter, UpstreamOverloaded
from backends.core.events import Event, Failure, Finish, Item, TextDelta
from backends.core.request import EmbeddingRequest, GenerationRequest, Message, Output, Prompt, Sampling, Text
from backends.core.usage import Usage
from backends.engines.client import EngineClient
from tests.engine_host import TOKEN, HostProcess, events, running, text, up
from tests.models import chat_gguf, embed_gguf

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


def chat(content: str, *, output: Output | None = None, n: int = 1, **sampling: Any) -> GenerationRequest:
    sampling.setdefault("temperature", 0.0)
    sampling.setdefault("max_tokens", 24)
    messages = (Message("user", (Text(content),)),)
    return GenerationRequest("chat", messages, n=n, sampling=Sampling(**sampling), output=output or Output())


def usage(got: list[Event]) -> Usage:
    assert isinstance(got[-1], Usage)
    return got[-1]


async def test_it_answers_with_the_models_own_words(engine: EngineClient) -> None:
    got = await events(engine, chat("What is the capital city of France? Answer in English."))
    assert "Paris" in text(got)
    assert Finish("stop") in got


async def test_b_joins_while_a_decodes_and_a_is_not_held_up() -> None:
    """From the step log: both in one llama_decode, and A's inter-token gap under three times what it was alone."""
    options = {"threads": 1}
    async with running("llamacpp", chat_gguf(), slots=2, context=1024, options=options) as (host, client):
        for attempt in range(3):  # other work on the machine can fake a slow step; a scheduler that waits is slow every time
            begun = len(host.lines("submit"))
            async with client.open(chat("Tell me a long story.", max_tokens=150, ignore_eos=True)) as a:
                await anext(a)
                for _ in range(25):
                    await anext(a)
                b = await events(client, chat("Count the numbers: " + "one two three four five " * 20, max_tokens=24))
                assert usage(b).output_tokens > 1
            await host.until("cancel", attempt + 1)
            first, second = [line["id"] for line in host.lines("submit")[begun:]]
            steps = [line for line in host.lines("step") if first in line["rows"]]
            together = [line for line in steps if second in line["rows"]]
            assert any(line["prefill"] and line["decode"] for line in together), "B is read beside A's decoding"
            assert any(line["decode"] == 2 for line in together), "both decode in one batch"
            within = [line for line in steps if together[0]["t"] <= line["t"] <= together[-1]["t"]]
            assert within == together or len(within) - len(together) <= 1, "A has a row in every step"
            alone = gaps([line for line in steps if line["t"] < together[0]["t"]][1:])
            shared = gaps(within)
            ratio = statistics.median(shared) / statistics.median(alone)
            if ratio < 3:
                return
        pytest.fail(f"A's gap grew {ratio:.1f} times")


def gaps(steps: list[dict[str, Any]]) -> list[float]:
    return [b["t"] - a["t"] for a, b in itertools.pairwise(steps)]


async def test_a_cancel_cuts_a_long_prefill_short() -> None:
    options = {"batch": 2048, "threads": 1}
    async with running("llamacpp", chat_gguf(), slots=1, context=4096, options=options) as (host, client):
        before = text(await events(client, chat("What is the capital city of France? Answer in English.", seed=1)))
        async with client.open(chat("word " * 2000)):
            await host.until("submit", 2)
            await asyncio.sleep(0.3)
            assert not host.lines("cancel")
            left = time.monotonic()
        cancel = (await host.until("cancel"))[0]
        assert cancel["was"] == "prefill"
        assert cancel["t"] - left < 0.5
        assert not any(line["prefill"] > 1000 for line in host.lines("step")), "the long step was not finished"
        assert text(await events(client, chat("What is the capital city of France? Answer in English.", seed=1))) == before


async def test_others_are_unharmed_by_a_step_cut_short(engine: EngineClient, host: HostProcess) -> None:
    alone = text(await events(engine, chat("Count from 1 to 20.", max_tokens=40, seed=1)))

    async def nuisance() -> None:
        for _ in range(6):
            async with engine.open(chat("word " * 600)):
                await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        mine = group.create_task(events(engine, chat("Count from 1 to 20.", max_tokens=40, seed=1)))
        group.create_task(nuisance())
    got = mine.result()
    assert text(got)[:24] == alone[:24]
    assert usage(got).output_tokens > 5
    assert (await engine.stats())["running"] == 0


async def test_kill_9_loses_its_own_requests_only_and_a_restart_serves() -> None:
    async with running("llamacpp", chat_gguf(), slots=1, context=512) as (host, client):
        async with client.open(chat("A long story, please.", max_tokens=400, ignore_eos=True)) as stream:
            await anext(stream)
            host.process.kill()
            last = [batch async for batch in stream][-1]
            assert isinstance(last[-1], Failure)
            assert last[-1].kind == "crashed"
        with pytest.raises((UpstreamOverloaded, EngineCrashed)):
            await events(client, chat("hi"))
        host.process.wait()
        host.restart()
        await up(client)
        assert "Paris" in text(await events(client, chat("What is the capital city of France? Answer in English.")))


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"garbage", "not a GGUF"), (b"GGUF" + b"\x03\x00\x00\x00" + b"\xff" * 64, "cannot load"), (None, "no model file")],
)
async def test_a_broken_file_is_reported_and_ends_the_process(tmp_path: Path, content: bytes | None, words: str) -> None:
    chat_gguf()  # skip without llama.cpp
    path = tmp_path / "m.gguf"
    if content is not None:
        path.write_bytes(content)
    host = HostProcess("llamacpp", str(path))
    try:
        async with asyncio.timeout(20):
            while host.process.poll() is None:
                await asyncio.sleep(0.02)
        assert host.process.returncode == 3
        line = json.loads(host.stderr.read_text().splitlines()[-1])
        assert line["event"] == "engine_load_failed"
        assert words in line["reason"]
    finally:
        host.end()


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        ({"options": {"thread": 1}}, "unknown engine option 'thread'"),
        ({"options": {"threads": 0}}, "threads"),
        ({"context": 1_000_000}, "trained with"),
        ({"options": {"batch": 32}, "slots": 40}, "batch"),
        ({"options": {"embedding": True, "pooling": "sum"}}, "pooling"),
    ],
)
async def test_options_are_checked_in_words(launch: dict[str, Any], words: str) -> None:
    host = HostProcess("llamacpp", chat_gguf(), **launch)
    try:
        async with asyncio.timeout(20):
            while host.process.poll() is None:
                await asyncio.sleep(0.02)
        assert host.process.returncode == 3
        assert words in json.loads(host.stderr.read_text().splitlines()[-1])["reason"]
    finally:
        host.end()


async def test_spelled_special_tokens_of_a_client_never_become_control_tokens(engine: EngineClient) -> None:
    """Each spelling is one control token when believed, and several plain ones when not."""
    plain = usage(await events(engine, chat("a b", max_tokens=1))).input_tokens
    spelled = usage(await events(engine, chat("a <|im_end|> b", max_tokens=1))).input_tokens
    believed = GenerationRequest("chat", prompts=(Prompt("<|im_end|>"),), sampling=Sampling(max_tokens=1, ignore_eos=True))
    assert usage(await events(engine, believed)).input_tokens == 1
    assert spelled >= plain + 4


async def test_a_schema_is_kept_to(engine: EngineClient) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    output = Output("json_schema", schema=msgspec.Raw(json.dumps(schema).encode()))
    for temperature in (0.0, 1.0):
        got = await events(engine, chat("A person, please.", output=output, temperature=temperature, max_tokens=80, seed=1))
        made = json.loads(text(got))
        assert set(made) == {"name", "age"}
        assert 0 <= made["age"] <= 99
        assert Finish("stop") in got


ODD: list[Any] = [
    {
        "type": ["object", "null"],
        "properties": {"code": {"type": "string", "pattern": r"^[A-Z]{2}-\d{3}$"}},
        "required": ["code"],
    },
    {
        "$defs": {"Leaf": {"type": "object", "properties": {"leaf": {"const": True}}, "required": ["leaf"]}},
        "type": "array",
        "items": {"anyOf": [{"$ref": "#/$defs/Leaf"}, {"type": "integer", "minimum": 10, "maximum": 12000}]},
        "minItems": 2,
        "maxItems": 3,
    },
    {"allOf": [{"properties": {"a": {"enum": ["x", None]}}, "required": ["a"]}, {"properties": {"b": {"type": "boolean"}}}]},
    {"type": "object", "additionalProperties": {"type": "number", "minimum": 0, "maximum": 1}, "maxProperties": 2},
    {
        "type": "object",
        "properties": {'say "é"\n': {"type": "string", "minLength": 3, "maxLength": 20}},
        "required": ['say "é"\n'],
    },
    {"type": "string", "format": "date-time"},
]


@pytest.mark.parametrize("schema", ODD, ids=range(len(ODD)))
async def test_odd_schemas_are_kept_to_as_well(engine: EngineClient, schema: Any) -> None:
    output = Output("json_schema", schema=msgspec.Raw(json.dumps(schema).encode()), strict=True)
    got = await events(engine, chat("Something, please.", output=output, temperature=1.0, max_tokens=200, seed=3))
    jsonschema.validate(json.loads(text(got)), schema)
    assert Finish("stop") in got


async def test_a_regular_expression_is_kept_to(engine: EngineClient) -> None:
    got = await events(engine, chat("A number?", output=Output("regex", grammar=r"\d{3}-(a|b)+c", asked_as="guided_regex")))
    assert re.fullmatch(r"\d{3}-(a|b)+c", text(got)) or Finish("length") in got


async def test_a_schema_that_cannot_be_kept_to_is_refused_and_names_what(engine: EngineClient) -> None:
    for schema, param in (
        ({"type": "array", "uniqueItems": True}, ""),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "guided_json"),
    ):
        output = Output("json_schema", schema=msgspec.Raw(json.dumps(schema).encode()), asked_as=param)
        with pytest.raises(BadRequest) as caught:
            await events(engine, chat("x", output=output))
        assert caught.value.param == (param or "response_format")


async def test_grammars_are_kept_to_and_bad_ones_refused(engine: EngineClient) -> None:
    got = await events(engine, chat("Yes or no?", output=Output("grammar", grammar='root ::= "yes" | "no"')))
    assert text(got) in ("yes", "no")
    never_ends = chat("Yes or no?", output=Output("grammar", grammar='root ::= "yes" | "no"'), ignore_eos=True)
    assert text(await events(engine, never_ends)) in ("yes", "no"), "nothing fits any more: the answer is complete"
    for grammar in (
        "root := nonsense",
        "(" * 5000,
        'root ::= root "a"',
        "root ::= " + "(" * 60 + '"a"' + ")" * 60 + " missing",
        'root ::= "a"{3,1}',
    ):
        with pytest.raises(BadRequest):
            await events(engine, chat("x", output=Output("grammar", grammar=grammar)))
    with pytest.raises(BadRequest):
        deep = '{"items":' * 500 + "{}" + "}" * 500
        await events(engine, chat("x", output=Output("json_schema", schema=msgspec.Raw(deep.encode()))))
    assert "Paris" in text(await events(engine, chat("What is the capital city of France? Answer in English."))), (
        "the host is alive"
    )


async def test_sampling_parameters_do_what_they_say(engine: EngineClient) -> None:
    base = await events(engine, chat("Say hello.", max_tokens=8))
    first = next(e for e in base if isinstance(e, TextDelta)).text
    told = await events(engine, msgspec.structs.replace(chat("Say hello.", max_tokens=8), top_logprobs=3))
    logprobs = [one for e in told if isinstance(e, TextDelta) for one in e.logprobs]
    assert all(one.logprob == one.top[0].logprob for one in logprobs)
    assert math.fsum(math.exp(c.logprob) for c in logprobs[0].top) <= 1.0001
    at_least = await events(engine, chat("Say: hi", max_tokens=60, min_tokens=50))
    assert usage(at_least).output_tokens >= 50
    for extra in (
        {"top_k": 1, "temperature": 1.0},
        {"mirostat": 1, "temperature": 0.7, "seed": 1},
        {"mirostat": 2, "temperature": 0.7, "seed": 1},
        {"typical_p": 0.9, "min_p": 0.1, "top_p": 0.9, "temperature": 0.7, "seed": 1},
        {"repetition_penalty": 1.3, "repeat_last_n": -1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    ):
        assert text(await events(engine, chat("Say hello.", max_tokens=8, **extra)))
    greedy = text(await events(engine, chat("Say hello.", max_tokens=8, seed=2)))
    assert text(await events(engine, chat("Say hello.", max_tokens=8, seed=2, temperature=1.0, top_k=1))) == greedy
    assert first


async def test_logit_bias_bans_and_unknown_tokens_are_refused(engine: EngineClient) -> None:
    prompt = GenerationRequest(
        "chat", prompts=(Prompt("The capital of France is"),), sampling=Sampling(max_tokens=1, temperature=0.0)
    )
    likely = text(await events(engine, prompt))
    size = 49152
    banned = tuple((token, -100.0) for token in range(300, 20_000))
    biased = msgspec.structs.replace(prompt, sampling=msgspec.structs.replace(prompt.sampling, logit_bias=banned))
    assert text(await events(engine, biased)) != likely
    for token in (-1, size, 10**9):
        wrong = msgspec.structs.replace(prompt, sampling=msgspec.structs.replace(prompt.sampling, logit_bias=((token, 1.0),)))
        with pytest.raises(BadRequest):
            await events(engine, wrong)
    with pytest.raises(BadRequest):
        await events(engine, GenerationRequest("chat", prompts=(Prompt(tokens=(size,)),), sampling=Sampling(max_tokens=1)))


async def test_utf8_is_never_cut(engine: EngineClient) -> None:
    got = await events(engine, chat("Repeat: 😀 žluťoučký 日本語 😀😀", max_tokens=40, temperature=1.2, seed=4))
    assert all(isinstance(e.text, str) for e in got if isinstance(e, TextDelta))
    text(got).encode("utf-8")


async def test_a_huge_prompt_is_refused_before_it_is_read(engine: EngineClient) -> None:
    began = time.monotonic()
    with pytest.raises(ContextTooLong):
        await events(engine, chat("word " * 4_000_000))
    assert time.monotonic() - began < 5


async def test_nearly_all_of_a_step_is_the_models() -> None:
    async with running("llamacpp", chat_gguf(), slots=4, context=512) as (host, client):
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(events(client, chat("Tell me a story.", max_tokens=40, ignore_eos=True)))
        steps = host.lines("step")
        share = sum(line["model_s"] for line in steps) / sum(line["step_s"] for line in steps)
        assert share > 0.9, f"{share:.3f}: the target is 0.99 on an idle machine, see the bench"


@pytest.fixture(scope="module")
def embed_host() -> Iterator[HostProcess]:
    process = HostProcess("llamacpp", embed_gguf(), slots=8, context=256, options={"embedding": True})
    yield process
    process.end()


@pytest.fixture
async def embedder(embed_host: HostProcess) -> AsyncIterator[EngineClient]:
    client = EngineClient(embed_host.socket, TOKEN, "e1")
    await up(client)
    yield client
    await client.aclose()


def vectors(got: list[Event]) -> list[list[float]]:
    found = {e.value.index: e.value.vector for e in got if isinstance(e, Item)}
    return [list(struct.unpack(f"<{len(found[i]) // 4}f", found[i])) for i in range(len(found))]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


async def test_embeddings_mean_something_and_have_length_one(embedder: EngineClient, embed_host: HostProcess) -> None:
    inputs = ("A cat sits on the mat.", "A kitten is resting on a rug.", "The stock market crashed today.")
    got = await events(embedder, EmbeddingRequest("embed", tuple(map(Prompt, inputs))))
    cat, kitten, market = vectors(got)
    assert len(cat) == 384
    assert abs(cosine(cat, cat) - 1) < 1e-3
    assert cosine(cat, kitten) > 0.5 > 0.3 > cosine(cat, market)
    assert usage(got).output_tokens == 0
    assert usage(got).input_tokens > 15
    assert len([line for line in embed_host.lines("step") if line["rows"]]) == 1, "three inputs, one batch"


async def test_one_and_many_inputs_give_the_same_vectors(embedder: EngineClient) -> None:
    inputs = [Prompt(f"sentence number {n} about topic {n * 7}") for n in range(20)]
    many = vectors(await events(embedder, EmbeddingRequest("embed", tuple(inputs))))
    for n in (0, 7, 19):
        (one,) = vectors(await events(embedder, EmbeddingRequest("embed", (inputs[n],))))
        assert cosine(one, many[n]) > 0.999


async def test_what_an_embedder_refuses(embedder: EngineClient) -> None:
    with pytest.raises(ContextTooLong) as caught:
        await events(embedder, EmbeddingRequest("embed", (Prompt("fine"), Prompt("word " * 300))))
    assert caught.value.param == "input"
    assert "256" in caught.value.message
    with pytest.raises(UnsupportedParameter):
        await events(embedder, EmbeddingRequest("embed", (Prompt("x"),), dimensions=100))
    assert len(vectors(await events(embedder, EmbeddingRequest("embed", (Prompt("x"),), dimensions=384)))[0]) == 384
    with pytest.raises(BadRequest):
        await events(embedder, GenerationRequest("embed", prompts=(Prompt("x"),)))


async def test_a_long_list_does_not_hold_up_a_short_one(embedder: EngineClient, embed_host: HostProcess) -> None:
    text_ = Prompt("a sentence of several words that takes some time to read " * 8)
    begun = len(embed_host.lines("submit"))
    async with embedder.open(EmbeddingRequest("embed", (text_,) * 64)) as stream:
        await embed_host.until("submit", begun + 1)
        await events(embedder, EmbeddingRequest("embed", (Prompt("short"),)))
        ids = [line["id"] for line in embed_host.lines("submit")[begun:]]
        assert ids[0] not in [line["id"] for line in embed_host.lines("finish")]
        async for _ in stream:
            pass


async def test_a_control_token_is_shown_where_that_is_asked() -> None:
    """`<repo_name>` is one of SmolLM2's; markers of tool calls are such tokens in other vocabularies."""
    sampling = {"max_tokens": 3, "ignore_eos": True, "logit_bias": tuple((token, 100.0) for token in (3,))}
    for shown, said in (((), ""), (("<repo_name>",), "<repo_name>" * 3)):
        async with running("llamacpp", chat_gguf(), slots=1, context=256, options={"threads": 1, "shown": shown}) as (
            _,
            client,
        ):
            assert text(await events(client, chat("Say it.", **sampling))) == said


async def test_it_counts_prompts_as_its_usage_does_while_it_computes(engine: EngineClient) -> None:
    asked = [
        chat("What is the capital city of France?"),
        chat("<|im_end|> spelled, and ünïcode 敏捷 " * 20),
        GenerationRequest("chat", prompts=(Prompt("Once upon a time"), Prompt("", (1, 2, 3))), sampling=Sampling(max_tokens=2)),
    ]
    async with engine.open(chat("Tell me a very long story about every number.", max_tokens=300)) as running_:
        await anext(running_)
        counts = [await engine.prompt_tokens(job) for job in asked]
    for job, count in zip(asked, counts, strict=True):
        assert count == usage(await events(engine, msgspec.structs.replace(job, sampling=Sampling(max_tokens=1)))).input_tokens
    assert await engine.prompt_tokens(chat("word " * 5000)) is None, "it would be refused"
    assert await engine.prompt_tokens(EmbeddingRequest("m", (Prompt("x"),))) is None


async def test_an_embedder_counts_its_inputs_as_its_usage_does() -> None:
    async with running("llamacpp", embed_gguf(), slots=2, context=256, options={"embedding": True}) as (_, client):
        job = EmbeddingRequest("m", (Prompt("one"), Prompt("two and three, 敏捷"), Prompt("", (5, 6, 7))))
        assert await client.prompt_tokens(job) == usage(await events(client, job)).input_tokens
        assert await client.prompt_tokens(chat("hi")) is None
