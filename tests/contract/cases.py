"""Fixture cases: a client's request, the upstream's exact bytes, and what must come of them.

Layout: `tests/fixtures/<dialect>/<case>/case.json` (request, upstream status, headers, splits, expectations) and
`body.bin` (the response body). The case's `source` names where its shape was read.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import msgspec

from backends.core.capabilities import resolve
from backends.core.contracts import Dialect
from backends.core.errors import BackendError
from backends.core.events import Event, EventGrammar, Failure
from backends.core.fold import Answer, Fold
from backends.core.request import (
    EmbeddingRequest,
    GenerationRequest,
    Job,
    Message,
    Output,
    Prompt,
    Sampling,
    Text,
    Tool,
)

FIXTURES = Path(__file__).parent.parent / "fixtures"


class Case(msgspec.Struct, frozen=True):
    """One fixture."""

    id: str
    quirks: str
    endpoint: str
    client_request: dict[str, Any]
    upstream: dict[str, Any]
    expect: dict[str, Any]
    body: bytes = b""
    upstream_request_expect: dict[str, Any] | None = None
    source: str = ""
    options: dict[str, Any] = {}

    def __str__(self) -> str:
        return self.id


def cases(dialect: str) -> list[Case]:
    """All fixtures of a dialect."""
    found = []
    for path in sorted((FIXTURES / dialect).glob("*/case.json")):
        case = msgspec.convert(json.loads(path.read_text()), Case)
        found.append(msgspec.structs.replace(case, body=(path.parent / "body.bin").read_bytes()))
    assert found, f"no fixtures of {dialect}"
    return found


def job_of(case: Case, dialect: Dialect) -> Job:
    """The job that the client's request stands for, with what the dialect lacks dropped."""
    asked = case.client_request
    if case.endpoint.endswith("/embeddings"):
        inputs = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
        return EmbeddingRequest(asked["model"], tuple(Prompt(text) for text in inputs))
    stop = asked.get("stop") or ()
    sampling = Sampling(
        max_tokens=asked.get("max_completion_tokens", asked.get("max_tokens")),
        temperature=asked.get("temperature"),
        top_p=asked.get("top_p"),
        seed=asked.get("seed"),
        frequency_penalty=asked.get("frequency_penalty"),
        presence_penalty=asked.get("presence_penalty"),
        stop=(stop,) if isinstance(stop, str) else tuple(one for one in stop if one),
        logit_bias=tuple((int(token), bias) for token, bias in (asked.get("logit_bias") or {}).items()),
    )
    output = Output()
    if form := asked.get("response_format"):
        schema = msgspec.json.encode(form.get("json_schema", {}).get("schema", {}))
        output = Output(form["type"], form.get("json_schema", {}).get("name", ""), msgspec.Raw(schema))
    if "guided_json" in asked:
        output = Output("json_schema", schema=msgspec.Raw(msgspec.json.encode(asked["guided_json"])))
    tools = tuple(
        Tool(one["function"]["name"], parameters=msgspec.Raw(msgspec.json.encode(one["function"]["parameters"])))
        for one in asked.get("tools", ())
    )
    prompt = asked.get("prompt")
    prompts = prompt if isinstance(prompt, list) else [] if prompt is None else [prompt]
    job = GenerationRequest(
        model=asked["model"],
        messages=tuple(Message(one["role"], _parts(one["content"])) for one in asked.get("messages", ())),
        prompts=tuple(Prompt(one) for one in prompts),
        tools=tools,
        sampling=sampling,
        output=output,
        n=asked.get("n", 1),
        reasoning_effort=asked.get("reasoning_effort"),
        top_logprobs=1 if "logprobs_legacy" in case.expect else None,
        stream=asked.get("stream", False),
    )
    if case.upstream["status"] != 200:
        return job
    return resolve(job, dialect.capabilities, "drop")


def _parts(content: str | list[dict[str, str]]) -> tuple[Text, ...]:
    return (Text(content),) if isinstance(content, str) else tuple(Text(part["text"]) for part in content)


def decode(dialect: Dialect, job: Job, pieces: list[bytes], headers: dict[str, str] | None = None) -> list[Event]:
    """All events of a body that arrives in these pieces, their grammar checked."""
    decoder, grammar = dialect.decoder(job, headers=headers or {}), EventGrammar()
    events = [event for piece in pieces for event in grammar.feed(decoder.feed(piece))]
    events += grammar.feed(decoder.close())
    grammar.close()
    assert decoder.feed(b"data: {}\n\n") == [] == decoder.close(), "nothing comes after the end"
    return events


def cut(body: bytes, splits: list[int]) -> list[bytes]:
    """The body cut at the offsets."""
    edges = [0, *sorted({min(split, len(body)) for split in splits}), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges)]


def told(events: list[Event]) -> tuple[Answer, BackendError | None]:
    """What a client would have read, and the error that ended it."""
    folding = Fold()
    try:
        folding.feed(events)
    except BackendError as error:
        return folding.answer, error
    return folding.answer, None


def check_error(case: Case, error: BackendError) -> None:
    """Status, type, code and Retry-After as expected, and a message fit for a client."""
    expect = case.expect
    if expect["status"] != 200:
        assert error.status == expect["status"]
    assert error.type == expect["error_type"]
    if expect["error_code"] is not None:
        assert error.code == expect["error_code"]
    assert error.message
    assert len(error.message.encode()) <= 1024


def check_answer(case: Case, events: list[Event]) -> None:
    """Text, finish reasons, tool calls, usage, refusal, reasoning or the error, as the case expects."""
    expect = case.expect
    answer, error = told(events)
    choices = answer.choices
    if expect["error_type"] is not None:
        assert error is not None and isinstance(events[-1], Failure)
        check_error(case, error)
    else:
        assert error is None
    if isinstance(expect["text"], dict):
        assert {str(n): "".join(choice.text) for n, choice in choices.items()} == expect["text"]
        assert {str(n): choice.finish for n, choice in choices.items()} == expect["finish_reason"]
    elif expect["text"] is not None:
        assert "".join(choices[0].text if choices else []) == expect["text"]
        if expect["finish_reason"] is not None:
            assert choices[0].finish == expect["finish_reason"]
        elif error is not None:
            assert not choices or choices[0].finish is None
    if expect["usage"]:
        usage = answer.usage
        assert usage is not None
        real = {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        }
        assert {name: real[name] for name in expect["usage"]} == expect["usage"]
    if expect["tool_calls"]:
        calls = choices[0].tool_calls()
        assert [(n, call.name, json.loads(call.arguments)) for n, call in enumerate(calls)] == [
            (call["index"], call["name"], call["arguments"]) for call in expect["tool_calls"]
        ]
        assert all(call.id for call in calls) and len({call.id for call in calls}) == len(calls)
    assert "".join(choices[0].refusal if choices else []) == expect.get("refusal", "")
    assert "".join(choices[0].reasoning if choices else []) == expect.get("reasoning", "")
    if legacy := expect.get("logprobs_legacy"):
        assert [one.token for one in choices[0].logprobs] == legacy["tokens"]
        assert [one.logprob for one in choices[0].logprobs] == legacy["token_logprobs"]


def check_request(case: Case, body: dict[str, Any]) -> None:
    """What the case says about the request that goes upstream, and that no null does."""
    for path, wanted in (case.upstream_request_expect or {}).items():
        if path == "absent":
            for one in wanted:
                name, _, unwanted = one.partition("=")
                found = _at(body, name)
                assert found is None or (unwanted and str(found) != unwanted), one
        elif path != "headers":
            value = _at(body, path)
            assert value == wanted or (wanted == "<templated>" and value), path
    assert b"null" not in msgspec.json.encode(body)


def _at(body: dict[str, Any], path: str) -> Any:
    value: Any = body
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
