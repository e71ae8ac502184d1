"""vLLM's own server on the CPU behind a whole gateway: answers, tools, schemas, errors, leaving, embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.engines import peers
from tests.engines.house import House, asking, check_answers, check_leaving, check_limits, finishes, house, text
from tests.tiny_model import ANSWERS, ENDLESS_QUESTION, TOOL_ANSWER, TOOL_QUESTION, TOOL_RESULT, WEATHER_TOOL

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]
HELLO = ANSWERS["Hello"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("vllm")
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    # else a model that has never seen the schema may write line ends for ever, which JSON allows
    compact = ("--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}')
    with peers.vllm(folder, *tools, *compact) as peer:
        far = {"dialect": "openai_compatible", "quirks": "vllm", "base_url": peer.url + "/v1"}
        deployments = {
            "chat": {**far, "model": peer.model},
            "thoughts": {**far, "model": peer.model, "thinking": "qwen"},
            "misnamed": {**far, "model": "another"},
        }
        with house(folder / "gateway", peer, deployments) as running:
            yield running


def running_requests(place: House) -> int:
    lines = httpx.get(place.peer.url + "/metrics").text.splitlines()
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running{")))


@pytest.mark.parametrize("question", ["Hello", "Count to five.", "Say it in Japanese."])
def test_answers(place: House, question: str) -> None:
    check_answers(place, "chat", question, ANSWERS[question])


def test_legacy_completions(place: House) -> None:
    sdk = place.client()
    asked = {"model": "chat", "prompt": ["The capital of", "la la la"], "temperature": 0, "max_tokens": 4}
    whole = sdk.completions.create(**asked, logprobs=1)
    assert [one.index for one in whole.choices] == [0, 1]
    assert sdk.completions.create(**asked, echo=True).choices[1].text == "la la la" + whole.choices[1].text
    assert whole.choices[1].logprobs.tokens
    texts = {0: "", 1: ""}
    for chunk in sdk.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    plain = sdk.completions.create(**asked)
    assert texts == {choice.index: choice.text for choice in plain.choices}


def test_stop_strings_and_length(place: House) -> None:
    whole = place.whole("chat", "Count to five.", stop=["three"])
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("one, two, ", "stop")
    chunks = place.streamed("chat", "Count to five.", stop=["three"])
    assert (text(chunks), finishes(chunks)) == ("one, two, ", ["stop"])
    short = place.whole("chat", ENDLESS_QUESTION, max_tokens=5)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 5)


def test_several_choices_and_logprobs(place: House) -> None:
    asked = {"model": "chat", "messages": asking("Hello"), "n": 2, "seed": 1, "temperature": 1, "top_p": 0.1}
    whole = place.client().chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert [choice.message.content for choice in whole.choices] == [HELLO, HELLO]
    assert all(len(one.top_logprobs) == 2 for choice in whole.choices for one in choice.logprobs.content)
    texts = {0: "", 1: ""}
    for chunk in place.client().chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: HELLO, 1: HELLO}


def test_a_tool_call_and_its_answer(place: House) -> None:
    (choice,) = place.whole("chat", TOOL_QUESTION, tools=[WEATHER_TOOL]).choices
    (call,) = choice.message.tool_calls
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    chunks = place.streamed("chat", TOOL_QUESTION, tools=[WEATHER_TOOL])
    pieces = [piece for chunk in chunks if chunk.choices for piece in chunk.choices[0].delta.tool_calls or []]
    assert {piece.index for piece in pieces} == {0} and pieces[0].id and pieces[0].function.name == "get_weather"
    assert "".join(piece.function.arguments or "" for piece in pieces) == call.function.arguments
    assert finishes(chunks) == ["tool_calls"]
    history = [*asking(TOOL_QUESTION), choice.message.model_dump(exclude_none=True)]
    history.append({"role": "tool", "tool_call_id": call.id, "content": TOOL_RESULT})
    answer = place.client().chat.completions.create(model="chat", messages=history, tools=[WEATHER_TOOL], temperature=0)
    assert answer.choices[0].message.content == TOOL_ANSWER


def test_a_schema_that_the_model_would_not_keep_by_itself(place: House) -> None:
    properties = {"name": {"enum": ["Heidi"]}, "age": {"type": "integer", "minimum": 40, "maximum": 49}}
    schema = {"type": "object", "properties": properties, "required": ["name", "age"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    question = "Give me a person as JSON."
    assert json.loads(place.whole("chat", question).choices[0].message.content)["name"] == "Grace"
    whole = json.loads(place.whole("chat", question, response_format=form).choices[0].message.content)
    assert whole["name"] == "Heidi" and 40 <= whole["age"] <= 49
    assert json.loads(text(place.streamed("chat", question, response_format=form))) == whole


def test_thoughts_are_told_apart(place: House) -> None:
    thought, said = "The user wants me to think.", "I thought about it."
    message = place.whole("thoughts", "Think first.").choices[0].message
    assert (message.reasoning_content, message.content) == (thought, said)
    chunks = place.streamed("thoughts", "Think first.")
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert ("".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas), text(chunks)) == (thought, said)


def test_errors(place: House) -> None:
    long = place.refused("chat", openai.BadRequestError, messages=asking("word " * 3000))
    assert long.code == "context_length_exceeded" and long.param in (None, "messages")
    long = place.refused("chat", openai.BadRequestError, messages=asking("word " * 3000), stream=True)
    assert long.code == "context_length_exceeded"
    capped = place.refused("chat", openai.BadRequestError, max_tokens=99_999)
    assert capped.param == "max_completion_tokens" and "99999" in capped.message
    assert place.refused("chat", openai.BadRequestError, n=2, temperature=0).type == "invalid_request_error"
    assert place.refused("chat", openai.BadRequestError, extra_body={"mirostat": 1}).param == "mirostat"
    assert place.refused("misnamed", openai.NotFoundError).code == "model_not_found"


def test_limits(place: House) -> None:
    check_limits(place, "chat")


def test_leaving(place: House) -> None:
    check_leaving(place, "chat", ENDLESS_QUESTION, lambda: running_requests(place) > 0)


def test_embeddings(tmp_path_factory: pytest.TempPathFactory, place: House) -> None:
    folder = tmp_path_factory.mktemp("vllm-vectors")
    with peers.vllm(folder, "--runner", "pooling", "--convert", "embed") as peer:
        far = {"dialect": "openai_compatible", "quirks": "vllm", "base_url": peer.url + "/v1", "model": peer.model}
        with house(folder / "gateway", peer, {"vectors": far}) as other:
            sdk = other.client()
            short = sdk.embeddings.create(model="vectors", input=["Hello", "Name a river."])  # asks for base64
            floats = sdk.embeddings.create(model="vectors", input=["Hello", "Name a river."], encoding_format="float")
            assert [len(one.embedding) for one in short.data] == [128, 128]
            for a, b in zip(short.data, floats.data, strict=True):
                assert a.embedding == pytest.approx(b.embedding, abs=1e-3)
            assert short.usage.prompt_tokens == short.usage.total_tokens > 2
            ids = sdk.embeddings.create(model="vectors", input=[[5, 6, 7]])
            assert (len(ids.data), ids.usage.prompt_tokens) == (1, 3)
            with pytest.raises(openai.BadRequestError) as error:
                sdk.embeddings.create(model="vectors", input="word " * 3000)
            assert error.value.code == "context_length_exceeded"
