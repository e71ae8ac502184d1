"""Both dialects against what real servers sent: the same model behind four of them gives the same answer."""

from __future__ import annotations

import json

import pytest

from backends.core.events import Event
from backends.core.fold import fold
from backends.core.request import GenerationRequest, Message, Prompt, Text
from backends.core.usage import Usage
from backends.dialects.llamacpp import tokens_of
from backends.registry import dialect
from tests.contract.cases import cut, decode
from tests.contract.recorded import recorded

SERVERS = {"llama-server": "llamacpp", "xllamacpp": "llamacpp", "vllm": "vllm", "transformers": "transformers"}
CHAT = GenerationRequest("tiny", messages=(Message("user", (Text("?"),)),))
TEXT = GenerationRequest("tiny", prompts=(Prompt("def f()"),))


def answered(server: str, what: str, job: GenerationRequest) -> list[Event]:
    """The events of a recording, whole and byte by byte."""
    response = recorded(f"{server}.{what}")
    assert response.status == 200
    ours = dialect("openai_compatible", SERVERS[server])
    events = decode(ours, job, [response.body])
    assert decode(ours, job, cut(response.body, list(range(len(response.body))))) == events
    return events


@pytest.mark.parametrize("server", SERVERS)
def test_chat(server: str) -> None:
    logprobs = GenerationRequest("tiny", messages=CHAT.messages, top_logprobs=2)
    answer = fold(answered(server, "chat", CHAT if server == "transformers" else logprobs))
    assert "".join(answer.choices[0].text) == "The capital of France is Paris."
    assert answer.choices[0].finish == "stop"
    assert answer.usage == Usage(16, 10)
    if server != "transformers":
        tokens = answer.choices[0].logprobs
        assert b"".join(one.bytes for one in tokens).startswith(b"The capital of France is Paris.")
        assert all(len(one.top) == 2 and one.top[0].token == one.token for one in tokens)


@pytest.mark.parametrize("server", SERVERS)
def test_chat_stream(server: str) -> None:
    answer = fold(answered(server, "chat_stream", CHAT))
    assert "".join(answer.choices[0].text) == "Hello! How can I help you today?"
    assert answer.choices[0].finish == "stop"
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (9, 10)
    assert answer.usage.cached_input_tokens == (3 if "llama" in server else 0)


@pytest.mark.parametrize("server", SERVERS)
def test_chat_stopped_by_its_cap(server: str) -> None:
    answer = fold(answered(server, "chat_len", CHAT))
    assert "".join(answer.choices[0].text).startswith("Once upon a")
    assert answer.choices[0].finish == "length"


@pytest.mark.parametrize("server", SERVERS)
def test_completion_is_the_fold_of_its_stream(server: str) -> None:
    whole = fold(answered(server, "completion", TEXT)).choices[0]
    streamed = fold(answered(server, "completion_stream", TEXT)).choices[0]
    assert "".join(whole.text) == ":\n\n >>> def f():\n ...\n >>> f"
    assert "".join(whole.text).startswith("".join(streamed.text))
    assert whole.finish == streamed.finish == "length"


@pytest.mark.parametrize("server", SERVERS)
def test_structured_output(server: str) -> None:
    answer = fold(answered(server, "json_schema", CHAT))
    assert json.loads("".join(answer.choices[0].text)) == {"name": "Grace", "age": 25}


ERRORS = [
    *(("llama-server", "err_ctx", 400, "context_length_exceeded"), ("xllamacpp", "err_ctx", 400, "context_length_exceeded")),
    *(("vllm", "err_ctx", 400, "context_length_exceeded"), ("vllm", "err_model", 404, "model_not_found")),
    *(("llama-server", "err_type", 400, None), ("xllamacpp", "err_type", 400, None), ("vllm", "err_type", 400, None)),
    *(("transformers", "err_model", 400, None), ("transformers", "err_badjson", 400, None)),
    *(("xllamacpp", "err_badjson", 400, None), ("vllm", "err_badjson", 400, None)),
    *(("llama-server", "err_badjson", 502, "upstream_unavailable"), ("transformers", "err_type", 502, "upstream_unavailable")),
]


@pytest.mark.parametrize(("server", "what", "status", "code"), ERRORS)
def test_error(server: str, what: str, status: int, code: str | None) -> None:
    response = recorded(f"{server}.{what}")
    error = dialect("openai_compatible", SERVERS[server]).failure(response.status, response.headers, response.body)
    assert (error.status, error.code) == (status, code)
    assert error.retriable is (status == 502)
    for secret in ("/srv", "127.0.0.1", "tiny"):
        assert secret not in error.message


def test_unknown_model_is_answered_by_servers_that_serve_one() -> None:
    for server in ("llama-server", "xllamacpp"):
        assert fold(answered(server, "err_model", CHAT)).choices[0].finish == "length"


def test_native_stream_with_logprobs() -> None:
    body = recorded("llama-server.native_completion_stream").body
    ours = dialect("llamacpp")
    job = GenerationRequest("tiny", prompts=(Prompt("Hello"),), top_logprobs=2, stream=True)
    events = decode(ours, job, [body])
    assert decode(ours, job, cut(body, list(range(len(body))))) == events
    answer = fold(events)
    choice = answer.choices[0]
    assert "".join(choice.text).startswith("! How can")
    assert choice.finish == "length"
    assert answer.usage == Usage(1, 4)
    assert len(choice.logprobs) == 4 and all(len(one.top) == 2 for one in choice.logprobs)


def test_native_tokens() -> None:
    assert tokens_of(recorded("llama-server.tokenize").body) == (639,)
