"""A deployment's rule for what it lacks: refused, left out or sent all the same, never silently changed."""

from __future__ import annotations

import pytest

from backends.core.capabilities import asked, resolve
from backends.core.errors import UnsupportedParameter
from backends.core.request import (
    EmbeddingRequest,
    GenerationRequest,
    ImageInput,
    Message,
    Output,
    Prompt,
    Sampling,
    Text,
    Tool,
    ToolChoice,
)

CHAT = frozenset({"chat"})


def job(**more: object) -> GenerationRequest:
    return GenerationRequest("m", (Message("user", (Text("hi"),)),), **more)


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"n": 2}, "n"),
        ({"tools": (Tool("f", parameters=b"{}"),)}, "tools"),
        ({"tool_choice": ToolChoice("required")}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"output": Output("grammar", grammar="root ::= x")}, "grammar"),
        ({"output": Output("json_object")}, "response_format.json_object"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"top_logprobs": 0}, "logprobs"),
        ({"sampling": Sampling(temperature=0.0)}, "temperature"),
        ({"sampling": Sampling(top_k=0)}, "top_k"),
    ],
)
def test_what_is_stated_is_asked_for_and_refused_by_name(more: dict[str, object], name: str) -> None:
    one = job(**more)
    assert asked(one) == {"chat", name}
    with pytest.raises(UnsupportedParameter) as error:
        resolve(one, CHAT, "reject")
    assert error.value.param == name.partition(".")[0]
    assert resolve(one, CHAT | {name}, "reject") is one


def test_an_image_and_token_prompts_are_asked_for() -> None:
    picture = GenerationRequest("m", (Message("user", (ImageInput("data:x"),)),))
    assert asked(picture) == {"chat", "image_url"}
    plain = GenerationRequest("m", (), prompts=(Prompt(tokens=(1, 2)),), suffix="end")
    assert asked(plain) == {"completions", "token_input", "suffix"}
    assert asked(EmbeddingRequest("m", (Prompt(tokens=(1,)),), 8)) == {"embeddings", "dimensions", "token_input"}


def test_drop_leaves_out_what_changes_no_kind_of_answer_and_refuses_the_rest() -> None:
    one = job(sampling=Sampling(top_k=4, temperature=0.5), top_logprobs=2, parallel_tool_calls=True, reasoning_effort="low")
    given = resolve(one, CHAT | {"temperature"}, "drop")
    assert given == job(sampling=Sampling(temperature=0.5))
    with pytest.raises(UnsupportedParameter) as error:
        resolve(job(sampling=Sampling(top_k=4), n=2), CHAT, "drop")
    assert error.value.param == "n"


def test_forward_sends_sampling_as_it_is_and_refuses_the_rest() -> None:
    one = job(sampling=Sampling(top_k=4), top_logprobs=1)
    assert resolve(one, CHAT, "forward") is one
    with pytest.raises(UnsupportedParameter):
        resolve(job(output=Output("json_object")), CHAT, "forward")
    with pytest.raises(UnsupportedParameter):
        resolve(EmbeddingRequest("m", (Prompt("a"),), 8), frozenset({"embeddings"}), "drop")
