"""OpenAI's Python SDK against four dialects: what its users call, and the exception classes they catch."""

from __future__ import annotations

import asyncio
import json
import time

import openai
import pydantic
import pytest

from tests.conformance.sdk.house import DIALECTS, FEW, KEY, NARROW, WITH_VECTORS, Place
from tests.speakers import ARGUMENTS, INPUT_TOKENS, OBJECT, VECTOR, WORDS

pytestmark = pytest.mark.timeout(120)
TEXT = "".join(WORDS)
ASK = [{"role": "user", "content": "say something"}]
NUMBERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
ADD = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": NUMBERS}}


class City(pydantic.BaseModel):
    city: str
    people: int


@pytest.fixture
def sdk(clients_place: Place):  # type: ignore[no-untyped-def]
    with openai.OpenAI(base_url=clients_place.base_url, api_key=KEY, max_retries=0, timeout=20) as client:
        yield client


async def until(true, within_s: float = 10.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not become true"
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_chat_whole_and_streamed(sdk: openai.OpenAI, dialect: str) -> None:
    answer = sdk.chat.completions.create(model=f"{dialect}-words", messages=ASK)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (TEXT, "stop")
    assert answer.usage is not None and answer.usage.completion_tokens == 4
    assert answer.model == f"{dialect}-words" and answer._request_id
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(sdk.chat.completions.create(model=f"{dialect}-words", messages=ASK, **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (INPUT_TOKENS, 4)
    with sdk.chat.completions.stream(model=f"{dialect}-words", messages=ASK) as helper:
        kinds = [event.type for event in helper]
        assert {"chunk", "content.delta", "content.done"} <= set(kinds)
        assert helper.get_final_completion().choices[0].message.content == TEXT


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_tool_call_and_its_result(sdk: openai.OpenAI, dialect: str) -> None:
    asked = {"model": f"{dialect}-words", "tools": [ADD]}
    (choice,) = sdk.chat.completions.create(messages=ASK, **asked).choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", ARGUMENTS)
    with sdk.chat.completions.stream(messages=ASK, **asked) as helper:
        done = [event for event in helper if event.type == "tool_calls.function.arguments.done"]
    assert [(event.name, json.loads(event.arguments)) for event in done] == [("add", ARGUMENTS)]
    result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    history = [*ASK, choice.message.model_dump(exclude_none=True), result]
    assert sdk.chat.completions.create(messages=history, **asked).choices[0].message.content == TEXT


@pytest.mark.parametrize("dialect", DIALECTS)
def test_structured_outputs(clients_place: Place, sdk: openai.OpenAI, dialect: str) -> None:
    answer = sdk.chat.completions.parse(model=f"{dialect}-json", messages=ASK, response_format=City)
    assert answer.choices[0].message.parsed == City.model_validate_json(OBJECT)
    path, body = clients_place.upstream.seen[-1]
    assert dialect in path and '"people"' in json.dumps(body), "the schema went upstream"
    with sdk.chat.completions.stream(model=f"{dialect}-json", messages=ASK, response_format=City) as helper:
        assert helper.get_final_completion().choices[0].message.parsed.city == "Paris"


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_async_and_many_at_once(clients_place: Place, dialect: str) -> None:
    async with openai.AsyncOpenAI(base_url=clients_place.base_url, api_key=KEY, max_retries=0, timeout=30) as sdk:
        whole = [sdk.chat.completions.create(model=f"{dialect}-words", messages=ASK) for _ in range(10)]
        assert [one.choices[0].message.content for one in await asyncio.gather(*whole)] == [TEXT] * 10
        stream = await sdk.chat.completions.create(model=f"{dialect}-words", messages=ASK, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]) == TEXT


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_stream_that_is_left_ends_upstream(clients_place: Place, dialect: str) -> None:
    await until(lambda: clients_place.upstream.open == 0)
    async with openai.AsyncOpenAI(base_url=clients_place.base_url, api_key=KEY, max_retries=0, timeout=30) as sdk:
        stream = await sdk.chat.completions.create(model=f"{dialect}-endless", messages=ASK, stream=True)
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                break
        assert clients_place.upstream.open == 1
        await stream.close()
        await until(lambda: clients_place.upstream.open == 0)
        asking = asyncio.ensure_future(sdk.chat.completions.create(model=f"{dialect}-mute", messages=ASK))
        await asyncio.sleep(0.3)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking


@pytest.mark.parametrize("dialect", WITH_VECTORS)
def test_embeddings(sdk: openai.OpenAI, dialect: str) -> None:
    short = sdk.embeddings.create(model=f"{dialect}-words", input=["one", "two"])  # asks for base64
    floats = sdk.embeddings.create(model=f"{dialect}-words", input=["one", "two"], encoding_format="float")
    for answer in (short, floats):
        assert [one.index for one in answer.data] == [0, 1]
        assert all(one.embedding == pytest.approx(VECTOR) for one in answer.data)
        assert answer.usage.prompt_tokens == 2
    raw = sdk.embeddings.with_raw_response.create(model=f"{dialect}-words", input="one")
    assert isinstance(json.loads(raw.content)["data"][0]["embedding"], str)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_classes_of_errors(clients_place: Place, sdk: openai.OpenAI, dialect: str) -> None:
    ask = sdk.chat.completions.create
    cases: list[tuple[type[openai.APIStatusError], int, str]] = [
        (openai.BadRequestError, 400, "fail-400"),
        (openai.InternalServerError, 502, "fail-401"),
        (openai.InternalServerError, 503, "fail-429"),
        (openai.InternalServerError, 502, "fail-500"),
        (openai.InternalServerError, 504, "mute"),
    ]
    for kind, status, script in cases:
        with pytest.raises(kind) as error:
            ask(model=f"{dialect}-{script}", messages=ASK)
        assert (error.value.status_code, bool(error.value.request_id)) == (status, True)
        assert "127.0.0.1" not in str(error.value.body)
    with pytest.raises(openai.BadRequestError) as error:
        ask(model=f"{dialect}-words", messages=ASK, extra_body={"no_such_parameter": 1})
    assert error.value.param == "no_such_parameter"
    with pytest.raises(openai.APIError) as broken:
        list(ask(model=f"{dialect}-cut", messages=ASK, stream=True))
    assert not isinstance(broken.value, openai.APIStatusError), "the answer had begun"
    with pytest.raises(openai.APITimeoutError):
        sdk.with_options(timeout=0.3).chat.completions.create(model=f"{dialect}-mute", messages=ASK)


def test_classes_of_our_own_refusals(clients_place: Place, sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.chat.completions.create(model="nothing", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        sdk.with_options(api_key="sk-wrong").models.list()
    with pytest.raises(openai.NotFoundError):  # as OpenAI does: who may not use a model does not learn that it exists
        sdk.with_options(api_key=NARROW).chat.completions.create(model="ollama-words", messages=ASK)
    with pytest.raises(openai.APIConnectionError):
        openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key=KEY, max_retries=0).models.list()


def test_retries_wait_as_long_as_they_are_told(clients_place: Place) -> None:
    patient = openai.OpenAI(base_url=clients_place.base_url, api_key=FEW, max_retries=3, timeout=20)
    for _ in range(2):  # the second is a 429 first
        assert patient.chat.completions.create(model="openai-words", messages=ASK).choices[0].message.content == TEXT
    with pytest.raises(openai.RateLimitError) as refused:
        for _ in range(3):
            patient.with_options(max_retries=0).chat.completions.create(model="openai-words", messages=ASK)
    assert float(refused.value.response.headers["retry-after-ms"]) > 0
    before = len(clients_place.upstream.seen)
    with pytest.raises(openai.InternalServerError):
        patient.with_options(api_key=KEY).chat.completions.create(model="openai-fail-500", messages=ASK)
    assert 1 <= len(clients_place.upstream.seen) - before <= 4


def test_the_older_route_too(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(model="tgi-words", prompt="say", max_tokens=20)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (TEXT, "stop")
    chunks = list(sdk.completions.create(model="tgi-words", prompt="say", max_tokens=20, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == TEXT
