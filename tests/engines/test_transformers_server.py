"""`transformers serve` behind a whole gateway: what it lacks is given or refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest

from tests.engines import peers
from tests.engines.house import House, asking, check_answers, check_leaving, check_limits, finishes, house, text
from tests.tiny_model import ANSWERS, ENDLESS_QUESTION, TOOL_QUESTION, WEATHER_TOOL

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("transformers")
    with peers.transformers(folder) as peer:
        far = {"dialect": "openai_compatible", "quirks": "transformers", "base_url": peer.url + "/v1"}
        deployments = {
            "chat": {**far, "model": peer.model},
            "tools": {**far, "model": peer.model, "tools": "hermes", "thinking": "qwen"},
            "misnamed": {**far, "model": "another"},
        }
        with house(folder / "gateway", peer, deployments) as running:
            yield running


@pytest.mark.parametrize("question", ["Hello", "Count to five.", "Say it in Japanese."])
def test_answers(place: House, question: str) -> None:
    check_answers(place, "chat", question, ANSWERS[question])


def test_legacy_completions(place: House) -> None:
    asked = {"model": "chat", "prompt": "la la la", "temperature": 0, "max_tokens": 4}
    whole = place.client().completions.create(**asked)
    assert whole.choices[0].text.startswith(" la") and whole.choices[0].finish_reason == "length"
    chunks = list(place.client().completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text


def test_stop_strings_that_the_server_leaves_in_its_text(place: House) -> None:
    whole = place.whole("chat", "Count to five.", stop=["three"])
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("one, two, ", "stop")
    chunks = place.streamed("chat", "Count to five.", stop=["three"])
    assert (text(chunks), finishes(chunks)) == ("one, two, ", ["stop"])
    short = place.whole("chat", ENDLESS_QUESTION, max_tokens=5)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 5)


def test_tool_calls_and_thoughts_out_of_its_text(place: House) -> None:
    (choice,) = place.whole("tools", TOOL_QUESTION, tools=[WEATHER_TOOL]).choices
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Paris"})
    chunks = place.streamed("tools", TOOL_QUESTION, tools=[WEATHER_TOOL])
    pieces = [piece for chunk in chunks if chunk.choices for piece in chunk.choices[0].delta.tool_calls or []]
    assert json.loads("".join(piece.function.arguments or "" for piece in pieces)) == {"city": "Paris"}
    assert (text(chunks), finishes(chunks)) == ("", ["tool_calls"])
    message = place.whole("tools", "Think first.").choices[0].message
    assert (message.reasoning_content, message.content) == ("The user wants me to think.", "I thought about it.")


@pytest.mark.parametrize(
    ("param", "asked"),
    [
        ("logprobs", {"logprobs": True}),
        ("presence_penalty", {"presence_penalty": 0.5}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("tool_choice", {"tools": [WEATHER_TOOL], "tool_choice": "required"}),
    ],
)
def test_what_the_server_would_silently_ignore_is_refused_by_name(place: House, param: str, asked: dict[str, object]) -> None:
    assert place.refused("chat", openai.BadRequestError, **asked).param == param


def test_errors(place: House) -> None:
    error = place.refused("misnamed", openai.APIStatusError)
    assert place.peer.model not in json.dumps(error.body), "a path of the server's machine"
    assert place.refused("chat", openai.BadRequestError, messages=[]).type == "invalid_request_error"


def test_limits(place: House) -> None:
    check_limits(place, "chat")


def test_leaving(place: House) -> None:
    check_leaving(place, "chat", ENDLESS_QUESTION)


def test_two_at_once(place: House) -> None:
    first = place.client().chat.completions.create(model="chat", messages=asking("Count to five."), temperature=0, stream=True)
    second = place.whole("chat", "Hello")
    assert second.choices[0].message.content == ANSWERS["Hello"]
    assert text(list(first)) == ANSWERS["Count to five."]
