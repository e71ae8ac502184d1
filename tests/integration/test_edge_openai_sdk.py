"""The real OpenAI SDK, sync and async, against the edge with scripted events behind it."""

import asyncio
import json
import struct

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from backends.core.errors import BackendError, GatewayError
from backends.core.events import (
    Candidate,
    Embedding,
    Event,
    Failure,
    Finish,
    Item,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from backends.core.usage import Usage
from gateway.config.snapshot import UnknownModel
from gateway.pipeline.exchange import Exchange
from gateway.protocols.contract import ClientProtocol, Identity
from tests.integration.edge_server import Log, Running, serving


class Limited(GatewayError):
    status = 429
    type = "rate_limit_exceeded"
    default_code = "rate_limit_exceeded"


LOGPROB = TokenLogprob("é", "é".encode(), -0.5, (Candidate("é", "é".encode(), -0.5), Candidate("e", b"e", -1.5)))
TEXT: list[list[Event]] = [[Started("up"), TextDelta("Grüß ")], [TextDelta("Gott 😀")], [Finish("stop"), Usage(3, 4)]]
SCRIPTS: dict[str, list[list[Event]]] = {
    "text": TEXT,
    "two": [[TextDelta("b", 1), TextDelta("a")], [Finish("stop"), Finish("length", 1), Usage(1, 2)]],
    "logprobs": [[TextDelta("é", logprobs=(LOGPROB,))], [Finish("stop"), Usage(1, 1)]],
    "reasoning": [[ReasoningDelta("hm")], [TextDelta("yes"), Finish("stop"), Usage(1, 2, 0, 1)]],
    "tools": [
        [ToolCallDelta(0, "call_a", "weather", '{"city":')],
        [ToolCallDelta(1, "call_b", "time", "{}"), ToolCallDelta(0, arguments='"Wien"}')],
        [Finish("tool_calls"), Usage(5, 6)],
    ],
    "embed": [[Item(Embedding(0, struct.pack("<3f", 0.5, -1, 2)))], [Item(Embedding(1, bytes(12))), Usage(4, 0)]],
    "broken": [[TextDelta("half")], [Failure("truncated", "The model stopped.")]],
}


async def scripted(x: Exchange, protocol: ClientProtocol, _log: Log) -> None:
    assert x.header(b"authorization") == "Bearer sk-test"
    call = protocol.parse(await x.body(1_000_000))
    if call.job.model == "limited":
        raise Limited("Slow down.", retry_after_ms=12_345)
    if call.job.model not in SCRIPTS:
        raise UnknownModel(f"The model {call.job.model!r} does not exist.", param="model")
    encoder = protocol.encoder(call, Identity("chatcmpl-1", 1_700_000_000, call.job.model))
    x.content_type = encoder.content_type.encode()
    for batch in SCRIPTS[call.job.model]:
        await asyncio.sleep(0.001)
        if isinstance(batch[-1], Failure):
            raise BackendError.of(batch[-1])
        if data := encoder.feed(batch):
            await x.send(data)
    await x.finish(encoder.close())


@pytest.fixture(scope="module")
def server():  # type: ignore[no-untyped-def]
    with serving(scripted) as running:
        yield running


@pytest.fixture
def sdk(server: Running):  # type: ignore[no-untyped-def]
    with OpenAI(api_key="sk-test", base_url=f"http://127.0.0.1:{server.port}/v1", max_retries=0) as client:
        yield client


HELLO = [{"role": "user", "content": "hi"}]


def test_chat(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(model="text", messages=HELLO, user="u", store=False, metadata={"a": "b"})
    assert answer.choices[0].message.content == "Grüß Gott 😀"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage and answer.usage.total_tokens == 7
    assert answer._request_id == "req-1"


def test_a_stream(sdk: OpenAI) -> None:
    chunks = list(
        sdk.chat.completions.create(model="text", messages=HELLO, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Grüß Gott 😀"
    assert chunks[-1].usage and chunks[-1].usage.prompt_tokens == 3
    assert {c.id for c in chunks} == {"chatcmpl-1"}


async def test_async_chat_and_stream(server: Running) -> None:
    async with AsyncOpenAI(api_key="sk-test", base_url=f"http://127.0.0.1:{server.port}/v1", max_retries=0) as sdk:
        answer = await sdk.chat.completions.create(model="two", messages=HELLO, n=2)
        assert [(c.message.content, c.finish_reason) for c in answer.choices] == [("a", "stop"), ("b", "length")]
        stream = await sdk.chat.completions.create(model="two", messages=HELLO, n=2, stream=True)
        texts = {0: "", 1: ""}
        async for chunk in stream:
            assert chunk.usage is None
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert texts == {0: "a", 1: "b"}
        vectors = await sdk.embeddings.create(model="embed", input=["a", "b"])
        assert vectors.data[0].embedding == [0.5, -1.0, 2.0]
        plain = await sdk.completions.create(model="text", prompt="p", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in plain]) == "Grüß Gott 😀"


TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("weather", "time")
]


def test_tools(sdk: OpenAI) -> None:
    answer = sdk.chat.completions.create(model="tools", messages=HELLO, tools=TOOLS, tool_choice="auto")
    calls = answer.choices[0].message.tool_calls or []
    assert [(c.id, c.function.name, json.loads(c.function.arguments)) for c in calls if c.type == "function"] == [
        ("call_a", "weather", {"city": "Wien"}),
        ("call_b", "time", {}),
    ]
    again = [*HELLO, answer.choices[0].message, *({"role": "tool", "tool_call_id": c.id, "content": "1"} for c in calls)]
    assert sdk.chat.completions.create(model="text", messages=again, tools=TOOLS).choices[0].message.content


def test_streamed_tools_accumulate(sdk: OpenAI) -> None:
    with sdk.chat.completions.stream(model="tools", messages=HELLO, tools=TOOLS) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    calls = final.choices[0].message.tool_calls or []
    assert [(c.id, c.function.name, c.function.arguments) for c in calls] == [
        ("call_a", "weather", '{"city":"Wien"}'),
        ("call_b", "time", "{}"),
    ]
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [True, False])
def test_logprobs(sdk: OpenAI, stream: bool) -> None:
    answer = sdk.chat.completions.create(model="logprobs", messages=HELLO, logprobs=True, top_logprobs=2, stream=stream)
    choices = [c.choices[0] for c in answer] if stream else [answer.choices[0]]
    content = [log for c in choices if c.logprobs for log in c.logprobs.content]
    assert (content[0].token, content[0].logprob, content[0].bytes) == ("é", -0.5, [195, 169])
    assert [top.token for top in content[0].top_logprobs] == ["é", "e"]


def test_reasoning(sdk: OpenAI) -> None:
    message = sdk.chat.completions.create(model="reasoning", messages=HELLO).choices[0].message
    assert (message.content, message.reasoning_content) == ("yes", "hm")
    echoed = [*HELLO, message, *HELLO]
    assert sdk.chat.completions.create(model="text", messages=echoed).choices


def test_completions(sdk: OpenAI) -> None:
    answer = sdk.completions.create(model="two", prompt=["p", "q"], echo=True)
    assert [(c.text, c.finish_reason) for c in answer.choices] == [("pa", "stop"), ("qb", "length")]
    logs = sdk.completions.create(model="logprobs", prompt="p", logprobs=2).choices[0].logprobs
    assert logs and (logs.tokens, logs.text_offset, logs.top_logprobs) == (["é"], [0], [{"é": -0.5, "e": -1.5}])


def test_embeddings(sdk: OpenAI) -> None:
    for given in ({}, {"encoding_format": "float"}):
        answer = sdk.embeddings.create(model="embed", input=["a", "b"], **given)
        assert [item.embedding for item in answer.data] == [[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]]
        assert answer.usage.prompt_tokens == 4


def test_structured_output(sdk: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True}}
    assert sdk.chat.completions.create(model="text", messages=HELLO, response_format=form).choices


def test_errors(sdk: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        sdk.chat.completions.create(model="nothing", messages=HELLO)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        sdk.chat.completions.create(model="text", messages=HELLO, temperature=3)
    assert (wrong.value.param, wrong.value.code, wrong.value.type) == ("temperature", "invalid_value", "invalid_request_error")
    with pytest.raises(openai.RateLimitError) as limited:
        sdk.chat.completions.create(model="limited", messages=HELLO)
    assert limited.value.response.headers["retry-after"] == "13"
    assert limited.value.response.headers["retry-after-ms"] == "12345"
    with pytest.raises(openai.NotFoundError):
        sdk.models.list()


def test_a_failure_inside_a_stream_is_raised(sdk: OpenAI) -> None:
    texts: list[str] = []
    with pytest.raises(openai.APIError, match="The model stopped"):
        for chunk in sdk.chat.completions.create(model="broken", messages=HELLO, stream=True):
            texts.append(chunk.choices[0].delta.content or "")
    assert "".join(texts) == "half"
    with pytest.raises(openai.InternalServerError) as whole:
        sdk.chat.completions.create(model="broken", messages=HELLO)
    assert whole.value.status_code == 502
    assert whole.value.code == "stream_truncated"
