"""OpenAI's own SDK, sync and async, through the whole gateway; every answer and chunk held against OpenAI's schemas."""

from __future__ import annotations

import base64
import json
import struct
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.gateway_process import GatewayProcess, declared_key
from tests.unit.openai_schema import sse, valid
from tests.upstream import in_thread, upstream_server

KEY, FEW = "sk-sdk-0123456789abcdef", "sk-sdk-few-0123456789abcdef"
REMOTE = ["words-4", "words-4-tools", "words-4-status-500", "words-4-status-503", "words-4-mute"]
MESSAGES = [{"role": "user", "content": "say hello to me"}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}},
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with in_thread(upstream_server) as upstream:
        far = {"dialect": "openai_compatible", "base_url": upstream.url}
        deployments: dict[str, object] = {m: {**far, "model": m, "timeouts": {"first_event_s": 2}} for m in REMOTE}
        deployments |= {"local": {"engine": "local", "model": "scripted"}, "embed": {"engine": "embed", "model": "vectors"}}
        models: dict[str, object] = {name: {"tiers": [[name]], "aliases": [f"team/{name}"]} for name in deployments}
        models["all-fail"] = {"tiers": [["words-4-status-500"], ["words-4-status-503"], ["words-4-status-500-b"]]}
        deployments["words-4-status-500-b"] = deployments["words-4-status-500"]
        tree = {
            "engines": {
                "local": {"kind": "scripted", "model": "none", "slots": 8, "context": 64},
                "embed": {"kind": "scripted", "model": "none", "embedding": True, "options": {"embedding": 8}},
            },
            "deployments": deployments,
            "models": models,
            "keys": {
                "declared": [declared_key("user", KEY), declared_key("few", FEW, limits=[{"requests": 1, "per": "second"}])]
            },
        }
        with GatewayProcess(tmp_path_factory.mktemp("sdk"), tree) as process:
            process.upstream = upstream
            process.start()
            yield process


@pytest.fixture
def sdk(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0, timeout=10) as client:
        yield client


@pytest.fixture
async def async_sdk(gateway: GatewayProcess):  # type: ignore[no-untyped-def]
    async with openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=0, timeout=10) as client:
        yield client


@pytest.mark.parametrize("model", ["words-4", "local", "team/local"])
def test_chat(sdk: openai.OpenAI, model: str) -> None:
    raw = sdk.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, max_tokens=4, temperature=0)
    valid("CreateChatCompletionResponse", json.loads(raw.content))
    answer = raw.parse()
    assert answer.choices[0].message.content in ("w0 w1 w2 w3 ", "Hello, world!")
    assert answer.model == model
    assert answer._request_id == raw.headers["x-request-id"]
    assert answer.usage is not None and answer.usage.completion_tokens == 4


@pytest.mark.parametrize("model", ["words-4", "local"])
@pytest.mark.parametrize("usage", [True, False])
def test_a_stream(gateway: GatewayProcess, sdk: openai.OpenAI, model: str, usage: bool) -> None:
    options = {"stream_options": {"include_usage": usage}}
    chunks = list(sdk.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4, stream=True, **options))
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    said = [chunk for chunk in chunks if chunk.choices]
    assert said[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.role for chunk in said[1:]] == [None] * (len(said) - 1)
    assert [chunk.choices[0].finish_reason for chunk in said if chunk.choices[0].finish_reason] == ["stop"] or model == "local"
    assert (chunks[-1].usage is not None) is usage
    assert [chunk for chunk in chunks if not chunk.choices] == ([chunks[-1]] if usage else [])
    body = {"model": model, "messages": MESSAGES, "max_tokens": 4, "stream": True, **options}
    raw = httpx.post(gateway.url + "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})
    assert raw.headers["content-type"].startswith("text/event-stream")
    for event in sse(raw.content):
        valid("CreateChatCompletionStreamResponse", event)


def test_several_choices(sdk: openai.OpenAI) -> None:
    finishes: dict[int, str] = {}
    for chunk in sdk.chat.completions.create(model="local", messages=MESSAGES, n=3, max_tokens=4, stream=True):
        for choice in chunk.choices:
            assert choice.index not in finishes
            if choice.finish_reason:
                finishes[choice.index] = choice.finish_reason
    assert set(finishes) == {0, 1, 2}
    answer = sdk.chat.completions.create(model="local", messages=MESSAGES, n=3, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


@pytest.mark.parametrize("stream", [True, False])
def test_fewer_choices_than_asked_for_are_an_error(sdk: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.APIError) as error:
        list(sdk.chat.completions.create(model="words-4", messages=MESSAGES, n=3, stream=stream))
    assert error.value.code == "upstream_protocol_error"


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs(gateway: GatewayProcess, stream: bool) -> None:
    body = {"model": "local", "messages": MESSAGES, "max_tokens": 3, "logprobs": True, "top_logprobs": 2, "stream": stream}
    raw = httpx.post(gateway.url + "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {KEY}"})
    assert raw.status_code == 200, raw.text
    parts = sse(raw.content) if stream else [raw.json()]
    tokens = []
    for part in parts:
        valid("CreateChatCompletionStreamResponse" if stream else "CreateChatCompletionResponse", part)
        for choice in part["choices"]:  # type: ignore[index, call-overload]
            tokens += (choice["logprobs"] or {}).get("content") or []
    assert [token["token"] for token in tokens] == ["Hello", ",", " world"]
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] < 0 for token in tokens)


@pytest.mark.parametrize("stream", [True, False])
def test_completions(gateway: GatewayProcess, sdk: openai.OpenAI, stream: bool) -> None:
    if stream:
        chunks = list(sdk.completions.create(model="local", prompt="hi", max_tokens=4, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "Hello, world!"
    else:
        answer = sdk.completions.create(model="local", prompt=["hi", "there"], max_tokens=4, echo=True, n=2)
        assert [choice.text for choice in answer.choices] == ["hiHello, world!"] * 2 + ["thereHello, world!"] * 2
    body = {"model": "local", "prompt": "hi", "max_tokens": 4, "stream": stream}
    raw = httpx.post(gateway.url + "/v1/completions", json=body, headers={"authorization": f"Bearer {KEY}"})
    for part in sse(raw.content) if stream else [raw.json()]:
        valid("CreateCompletionChunk" if stream else "CreateCompletionResponse", part)


def test_embeddings(gateway: GatewayProcess, sdk: openai.OpenAI) -> None:
    short = sdk.embeddings.create(model="embed", input=["one", "two words"])  # the SDK asks for base64
    floats = sdk.embeddings.create(model="embed", input=["one", "two words"], encoding_format="float")
    for a, b in zip(short.data, floats.data, strict=True):
        assert a.embedding == pytest.approx(b.embedding)
        assert sum(number * number for number in a.embedding) == pytest.approx(1, abs=1e-5)
    assert [one.index for one in short.data] == [0, 1]
    assert short.usage.prompt_tokens == short.usage.total_tokens == 3
    headers = {"authorization": f"Bearer {KEY}"}
    raw = httpx.post(
        gateway.url + "/v1/embeddings", headers=headers, json={"model": "embed", "input": "one", "encoding_format": "base64"}
    )
    vector = struct.unpack("<8f", base64.b64decode(raw.json()["data"][0]["embedding"]))
    assert list(vector) == pytest.approx(floats.data[0].embedding)
    raw = httpx.post(gateway.url + "/v1/embeddings", headers=headers, json={"model": "embed", "input": "one"})
    valid("CreateEmbeddingResponse", raw.json())
    assert sdk.embeddings.create(model="embed", input=[[1, 2, 3]]).usage.prompt_tokens == 3
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.embeddings.create(model="embed", input="one", dimensions=4)
    assert refused.value.param == "dimensions"
    with pytest.raises(openai.BadRequestError):
        sdk.chat.completions.create(model="embed", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError):
        sdk.embeddings.create(model="local", input="one")


@pytest.mark.parametrize("stream", [True, False])
def test_tools(sdk: openai.OpenAI, stream: bool) -> None:
    asked = {"model": "words-4-tools", "messages": MESSAGES, "tools": [TOOL]}
    if stream:
        name, arguments, finish = "", "", None
        for chunk in sdk.chat.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                finish = choice.finish_reason or finish
                for call in choice.delta.tool_calls or []:
                    name += call.function.name or ""
                    arguments += call.function.arguments or ""
    else:
        (choice,) = sdk.chat.completions.create(**asked).choices
        (call,) = choice.message.tool_calls or []
        name, arguments, finish = call.function.name, call.function.arguments, choice.finish_reason
    assert (name, json.loads(arguments), finish) == ("add", {"a": 1}, "tool_calls")
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.chat.completions.create(model="local", messages=MESSAGES, tools=[TOOL])
    assert refused.value.param == "tools"


def test_models(gateway: GatewayProcess, sdk: openai.OpenAI) -> None:
    names = [model.id for model in sdk.models.list()]
    assert {"local", "team/local", "words-4", "all-fail"} <= set(names)
    assert sdk.models.retrieve("team/local").id == "team/local"
    headers = {"authorization": f"Bearer {KEY}"}
    valid("ListModelsResponse", httpx.get(gateway.url + "/v1/models", headers=headers).json())
    valid("Model", httpx.get(gateway.url + "/v1/models/local", headers=headers).json())


def test_the_classes_of_errors(gateway: GatewayProcess, sdk: openai.OpenAI) -> None:
    ask = sdk.chat.completions.create
    cases = [
        (openai.NotFoundError, "model_not_found", "model", {"model": "nothing"}),
        (openai.BadRequestError, None, "temperature", {"model": "local", "temperature": 3}),
        (openai.BadRequestError, None, "tools", {"model": "local", "tools": [TOOL]}),
        (openai.BadRequestError, "context_length_exceeded", "messages",
         {"model": "local", "messages": [{"role": "user", "content": "word " * 100}]}),
        (openai.InternalServerError, "upstream_unavailable", None, {"model": "words-4-status-500"}),
        (openai.InternalServerError, "upstream_overloaded", None, {"model": "words-4-status-503"}),
        (openai.InternalServerError, "upstream_timeout", None, {"model": "words-4-mute"}),
    ]  # fmt: skip
    for kind, code, param, asked in cases:
        with pytest.raises(kind) as error:
            ask(**{"messages": MESSAGES, **asked})  # type: ignore[arg-type]
        assert (error.value.code, error.value.param) == (code or error.value.code, param)
        valid("ErrorResponse", error.value.response.json())
        assert error.value.request_id
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=gateway.url + "/v1", api_key="sk-wrong", max_retries=0).models.list()
    with pytest.raises(openai.APITimeoutError):
        sdk.with_options(timeout=0.2).chat.completions.create(model="words-4-mute", messages=MESSAGES)


def test_retries(gateway: GatewayProcess) -> None:
    patient = openai.OpenAI(base_url=gateway.url + "/v1", api_key=FEW, max_retries=2)
    began = time.monotonic()
    for _ in range(2):  # the second is a 429 first, which the SDK waits out by Retry-After
        patient.chat.completions.create(model="local", messages=MESSAGES)
    assert 0.3 < time.monotonic() - began < 5
    before = len(gateway.upstream.seen)
    eager = openai.OpenAI(base_url=gateway.url + "/v1", api_key=KEY, max_retries=2)
    with pytest.raises(openai.InternalServerError) as error:
        eager.chat.completions.create(model="all-fail", messages=MESSAGES)
    assert error.value.response.headers["x-should-retry"] == "false"
    assert len(gateway.upstream.seen) - before == 3  # each deployment once: the SDK did not multiply what we tried


async def test_async(async_sdk: openai.AsyncOpenAI) -> None:
    answer = await async_sdk.chat.completions.create(model="local", messages=MESSAGES, max_tokens=4)
    assert answer.choices[0].message.content == "Hello, world!"
    stream = await async_sdk.chat.completions.create(model="words-4", messages=MESSAGES, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]) == "w0 w1 w2 w3 "
    assert len((await async_sdk.embeddings.create(model="embed", input="x")).data[0].embedding) == 8
    assert (await async_sdk.completions.create(model="local", prompt="x", max_tokens=1)).choices[0].text == "Hello"
    assert "local" in [model.id async for model in async_sdk.models.list()]
    async with async_sdk.chat.completions.stream(model="local", messages=MESSAGES) as helper:
        assert (await helper.get_final_completion()).choices[0].message.content == "Hello, world!"
    with pytest.raises(openai.NotFoundError):
        await async_sdk.chat.completions.create(model="nothing", messages=MESSAGES)
