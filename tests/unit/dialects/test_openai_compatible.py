"""`openai_compatible` case by case: spellings, and answers that go wrong."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from backends.core.events import Event, EventGrammar, Failure, Finish, ReasoningDelta, Started, TextDelta, ToolCallDelta
from backends.core.fold import fold
from backends.core.request import (
    EmbeddingRequest,
    GenerationRequest,
    ImageInput,
    Job,
    Message,
    Output,
    Prompt,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
)
from backends.core.usage import Usage
from backends.dialects.server_quirks import QUIRKS
from backends.engines.kinds import ENGINES
from backends.registry import DIALECTS, dialect

USER = Message("user", (Text("hi"),))
CHAT = GenerationRequest("m", messages=(USER,))
STREAM = GenerationRequest("m", messages=(USER,), stream=True)
TOOLS = (Tool("f", "d", msgspec.Raw(b'{"b": 1, "a": 2}')), Tool("g", strict=True))


def sent(job: Job, quirks: str = "openai") -> dict[str, Any]:
    body: dict[str, Any] = msgspec.json.decode(dialect("openai_compatible", quirks).encode(job).body)
    return body


def got(data: bytes, job: Job = STREAM, quirks: str = "openai") -> list[Event]:
    decoder, grammar = dialect("openai_compatible", quirks).decoder(job), EventGrammar()
    events = [*grammar.feed(decoder.feed(data)), *grammar.feed(decoder.close())]
    grammar.close()
    return events


def sse(*chunks: object, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks]
    return b"".join([*lines, b"data: [DONE]\n\n"] if done else lines)


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: object) -> dict[str, Any]:
    return {"model": "up", "choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more}


def failed(events: list[Event], kind: str) -> Failure:
    assert isinstance(events[-1], Failure), events
    assert events[-1].kind == kind
    return events[-1]


def test_a_bare_job_is_a_bare_request() -> None:
    assert sent(CHAT) == {"model": "m", "stream": False, "messages": [{"role": "user", "content": "hi"}]}
    assert sent(STREAM)["stream_options"] == {"include_usage": True}


def test_sampling_has_each_servers_spelling() -> None:
    sampling = Sampling(max_tokens=5, repetition_penalty=1.1, min_tokens=2, top_p=1.0, logit_bias=((7, -1.0),), stop=("a",))
    job = GenerationRequest("m", messages=(USER,), sampling=sampling)
    openai, vllm, llama, tgi = (sent(job, quirks) for quirks in ("openai", "vllm", "llamacpp", "tgi"))
    assert openai["max_completion_tokens"] == vllm["max_completion_tokens"] == llama["max_tokens"] == tgi["max_tokens"] == 5
    assert vllm["repetition_penalty"] == llama["repeat_penalty"] == 1.1
    assert vllm["min_tokens"] == 2 and "min_tokens" not in llama
    assert openai["top_p"] == 1.0 and "top_p" not in tgi
    assert openai["logit_bias"] == {"7": -1.0} and llama["logit_bias"] == [[7, -1.0]]
    assert tgi["stop"] == ["a"]
    completion = GenerationRequest("m", prompts=(Prompt("x"),), sampling=sampling)
    assert sent(completion)["max_tokens"] == 5 and "max_completion_tokens" not in sent(completion)


def test_messages() -> None:
    turns = (
        Message("developer", (Text("be"),)),
        Message("user", (Text("see"), ImageInput("data:image/png;base64,AA"))),
        Message("assistant", reasoning="hm", tool_calls=(ToolCall("c", "f", '{"a":1}'),)),
        Message("tool", (Text("1"),), tool_call_id="c", name="f"),
    )
    job = GenerationRequest("m", messages=turns)
    system, user, assistant, tool = sent(job)["messages"]
    assert system == {"role": "developer", "content": "be"}
    assert sent(job, "vllm")["messages"][0]["role"] == "system"
    assert user["content"][0] == {"type": "text", "text": "see"}
    assert user["content"][1] == {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "auto"}}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert assistant == {"role": "assistant", "tool_calls": [call]}
    assert sent(job, "vllm")["messages"][2]["reasoning"] == "hm"
    assert tool == {"role": "tool", "content": "1", "name": "f", "tool_call_id": "c"}


def test_tools_and_how_one_is_forced() -> None:
    job = GenerationRequest(
        "m", messages=(USER,), tools=TOOLS, tool_choice=ToolChoice("function", "g"), parallel_tool_calls=False
    )
    body = sent(job)
    assert body["tool_choice"] == {"type": "function", "function": {"name": "g"}}
    assert body["parallel_tool_calls"] is False
    assert body["tools"][1]["function"] == {"name": "g", "parameters": {}, "strict": True}
    assert b'"parameters":{"b": 1, "a": 2}' in dialect("openai_compatible").encode(job).body
    llama = sent(job, "llamacpp")
    assert (llama["tool_choice"], [tool["function"]["name"] for tool in llama["tools"]]) == ("required", ["g"])


def test_output_forms() -> None:
    schema = msgspec.Raw(b'{"type":"object"}')

    def form(output: Output, quirks: str) -> dict[str, Any]:
        body = sent(GenerationRequest("m", messages=(USER,), output=output), quirks)
        return {key: body[key] for key in body if key not in ("model", "stream", "messages")}

    named = Output("json_schema", "n", schema, strict=True)
    for quirks in ("openai", "vllm", "llamacpp"):
        wire = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}}
        assert form(named, quirks) == {"response_format": wire}
    assert form(Output("json_schema", schema=schema), "vllm") == {"structured_outputs": {"json": {"type": "object"}}}
    assert form(Output("json_object"), "openai") == {"response_format": {"type": "json_object"}}
    grammar = Output("grammar", grammar="root ::= x")
    assert form(grammar, "vllm") == {"structured_outputs": {"grammar": "root ::= x"}}
    assert form(grammar, "llamacpp") == {"grammar": "root ::= x"}
    assert form(grammar, "sglang") == {"ebnf": "root ::= x"}
    choice = Output("grammar", grammar='root ::= "a"', choices=("a",))
    assert form(choice, "vllm") == {"structured_outputs": {"choice": ["a"]}}
    assert form(choice, "llamacpp") == {"grammar": 'root ::= "a"'}


def test_completions_and_embeddings() -> None:
    job = GenerationRequest("m", prompts=(Prompt("a"), Prompt(tokens=(1, 2))), n=2, top_logprobs=3, suffix="z")
    body = sent(job)
    assert (body["prompt"], body["n"], body["logprobs"], body["suffix"]) == (["a", [1, 2]], 2, 3, "z")
    chat = sent(GenerationRequest("m", messages=(USER,), top_logprobs=0))
    assert (chat["logprobs"], chat["top_logprobs"]) == (True, 0)
    embedding = EmbeddingRequest("e", (Prompt("a"),), dimensions=8)
    assert sent(embedding) == {"model": "e", "input": ["a"], "encoding_format": "base64", "dimensions": 8}
    assert sent(embedding, "ollama")["encoding_format"] == "float"


def test_reasoning_of_either_name_role_only_and_empty_deltas() -> None:
    body = sse(
        chunk({"role": "assistant", "content": None}),
        chunk({"reasoning_content": "a"}),
        chunk({"reasoning": "b", "content": ""}),
        chunk({}),
        chunk({"content": "c"}, "stop"),
    )
    assert got(body) == [Started("up"), ReasoningDelta("a"), ReasoningDelta("b"), TextDelta("c"), Finish("stop")]


def test_tool_calls_make_the_finish_reason_but_for_a_forced_one() -> None:
    call = {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", "arguments": {"a": 1}}}]}
    body = sse(chunk(call), chunk({}, "stop"))
    assert got(body)[-2:] == [ToolCallDelta(0, "x", "f", '{"a": 1}'), Finish("tool_calls")]
    forced = GenerationRequest("m", messages=(USER,), tools=TOOLS, tool_choice=ToolChoice("function", "f"), stream=True)
    assert got(body, forced)[-1] == Finish("stop")
    assert got(sse(chunk(call)), quirks="tgi")[-1] == Finish("tool_calls")


def test_usage_that_cannot_be_true_is_dropped() -> None:
    good = chunk({"content": "a"}, "stop")
    for usage in (
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": "3.5", "completion_tokens": 1},
        {"prompt_tokens": "three", "completion_tokens": 1},
        {"prompt_tokens": 1.5, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": 3, "completion_tokens": 0},
        {"prompt_tokens": 10**12, "completion_tokens": 1},
        ["?"],
    ):
        assert got(sse(good, {"choices": [], "usage": usage}))[-1] == Finish("stop"), usage
    details = {"prompt_tokens_details": {"cached_tokens": 99}, "completion_tokens_details": {"reasoning_tokens": 1}}
    told = {"prompt_tokens": 3, "completion_tokens": 2, **details}
    assert got(sse(good, {"choices": [], "usage": told}))[-1] == Usage(3, 2, 0, 1)


@pytest.mark.parametrize(
    "later", [{}, {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": 3, "completion_tokens": -1}]
)
def test_usage_that_cannot_be_true_does_not_erase_what_was_told(later: dict[str, int]) -> None:
    told = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    assert got(sse(chunk({"content": "a"}), chunk({}, "stop"), told, {"choices": [], "usage": later}))[-1] == Usage(3, 2)


def test_running_totals_are_not_summed_and_null_does_not_erase_them() -> None:
    chunks = [chunk({"content": "a"}, usage={"prompt_tokens": 3, "completion_tokens": n}) for n in (1, 2)]
    assert got(sse(*chunks, chunk({}, "stop", usage=None)))[-1] == Usage(3, 2)


def test_truncation_is_never_success() -> None:
    finished = sse(chunk({"content": "a"}, "stop"), done=False)
    failed(got(finished), "truncated")
    failed(got(finished + b'data: {"choices": [{"ind'), "truncated")
    failed(got(b""), "truncated")
    failed(got(b"data: [DONE]\n\n"), "truncated")
    failed(got(b": ping\n\n"), "truncated")
    assert got(finished, quirks="transformers")[-1] == Finish("stop")
    failed(got(sse(chunk({"content": "a"}), done=False), quirks="transformers"), "truncated")
    failed(got(b"", CHAT), "truncated")
    failed(got(b'{"choices": [{"message": {"content": "a"', CHAT), "protocol")


def test_done_without_blank_line_is_done() -> None:
    assert got(sse(chunk({"content": "a"}, "stop"), done=False) + b"data: [DONE]")[-1] == Finish("stop")


def test_what_comes_after_the_end_is_ignored() -> None:
    body = sse(chunk({"content": "a"}, "stop"), chunk({"content": "b"}, "length")) + sse({"error": "late"})
    assert got(body) == [Started("up"), TextDelta("a"), Finish("stop")]


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":{"message":"boom","type":"server_error"}}',
        b'data: {"error":"boom"}',
        b'data: {"object":"error","message":"boom","code":500}',
        b'data: {"detail":"boom"}',
        b'data: {"text":"boom","error_code":50001}',
        b'event: error\ndata: {"message":"boom"}',
        b'error: {"message":"boom"}',
        b'data: {"error":{"message":"boom"},"choices":"?"}',
        b'data: {"error":{"message":"boom"},"choices":[]}',
    ],
)
def test_errors_in_the_stream(event: bytes) -> None:
    body = sse(chunk({"content": "a"}), done=False) + event + b"\n\ndata: [DONE]\n\n"
    events = got(body)
    assert events[:2] == [Started("up"), TextDelta("a")]
    assert failed(events, "unavailable").message == "boom"


def test_errors_of_the_request_under_200() -> None:
    error = failed(got(b'data: {"error":{"message":"bad","type":"invalid_request_error","param":"top_p"}}\n\n'), "rejected")
    assert (error.message, error.param) == ("bad", "top_p")
    failed(got(b'{"error":{"message":"bad","code":400}}', CHAT), "rejected")
    failed(got(b'{"error":{"message":"bad","code":400}}', STREAM), "rejected")


@pytest.mark.parametrize(
    "garbage", [b"<html>nginx</html>", b"data: oops\n\n", b"data: [1]\n\n", b"nonsense", b'{"choices": 3}']
)
def test_garbage_is_a_protocol_failure(garbage: bytes) -> None:
    for job in (CHAT, STREAM):
        failure = failed(got(garbage, job), "protocol")
        assert "nginx" not in failure.message


def test_wrong_choices_are_protocol_failures() -> None:
    two = GenerationRequest("m", messages=(USER,), n=2, stream=True)
    failed(got(sse(chunk({"content": "a"}, "stop")), two), "protocol")
    failed(got(sse(chunk({"content": "a"}, index=1))), "protocol")
    failed(got(sse(chunk({"content": "a"}, index=-1))), "protocol")


def test_a_server_that_answers_json_to_a_stream_and_the_reverse() -> None:
    whole = {"model": "up", "choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}]}
    events = [Started("up"), TextDelta("a"), Finish("stop")]
    assert got(json.dumps(whole).encode(), STREAM) == events
    assert got(sse(chunk({"content": "a"}), chunk({}, "stop")), CHAT) == events


def test_halves_of_an_emoji_are_put_together() -> None:
    halves = b"".join(b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % half for half in (b"\\ud83d", b"\\ude00x"))
    assert fold(got(halves + sse(chunk({}, "stop")))).choices[0].text == ["\U0001f600x"]


def test_stop_text_that_a_server_leaves_in_is_cut() -> None:
    job = GenerationRequest("m", messages=(USER,), sampling=Sampling(stop=("END",)), stream=True)
    body = sse(chunk({"content": "aE"}), chunk({"content": "ND"}), chunk({"content": "b"}, "stop_sequence"))
    assert got(body, job, "tgi") == [Started("up"), TextDelta("a"), Finish("stop")]
    undecided = sse(chunk({"content": "aE"}), chunk({}, "eos_token"))
    assert got(undecided, job, "tgi")[1:] == [TextDelta("a"), TextDelta("E"), Finish("stop")]


def test_aborts_are_no_finish() -> None:
    failed(got(sse(chunk({"content": "a"}, "abort"))), "unavailable")
    failed(got(sse(chunk({}, "parse_error")), quirks="lmdeploy"), "unavailable")
    assert got(sse(chunk({"content": "a"}, "parse_error")), quirks="lmdeploy")[-1] == Finish("stop")


def test_a_reason_that_is_the_word_null_is_none() -> None:
    data = sse(chunk({"content": "a"}, "null"), chunk({"content": "b"}, "null"), chunk({}, "STOP"))
    assert got(data) == [Started("up"), TextDelta("a"), TextDelta("b"), Finish("stop")]


def test_a_piece_of_a_call_that_says_nothing_is_no_call() -> None:
    nothing = {"tool_calls": [{"index": 0, "id": None, "function": {"name": None, "arguments": None}}]}
    assert got(sse(chunk(nothing), chunk({"content": "a"}), chunk({}, "stop"))) == [
        Started("up"),
        TextDelta("a"),
        Finish("stop"),
    ]
    assert got(sse(chunk(nothing), chunk({}, "tool_calls"))) == [Started("up"), Finish("stop")]


def test_arguments_of_a_call_that_is_never_named_are_not_lost_silently() -> None:
    nameless = chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})
    failed(got(sse(nameless, chunk({}, "tool_calls"))), "protocol")
    assert got(sse(nameless, chunk({}, "length"))) == [Started("up"), Finish("length")]


def test_logprobs_of_both_forms() -> None:
    job = GenerationRequest("m", messages=(USER,), top_logprobs=1, stream=True)
    token = {
        "token": "é",
        "logprob": -0.5,
        "bytes": None,
        "top_logprobs": [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}],
    }
    piece = {"index": 0, "delta": {"content": "é"}, "logprobs": {"content": [token]}, "finish_reason": "stop"}
    (delta,) = [event for event in got(sse({"choices": [piece]}), job) if isinstance(event, TextDelta)]
    assert delta.logprobs[0].bytes == delta.logprobs[0].top[0].bytes == "é".encode()
    legacy = {"tokens": ["a", "b"], "token_logprobs": [None, -1], "top_logprobs": [None, {"c": -2, "b": -1}]}
    text = GenerationRequest("m", prompts=(Prompt("x"),), top_logprobs=2)
    body = json.dumps({"choices": [{"index": 0, "text": "ab", "logprobs": legacy, "finish_reason": "stop"}]}).encode()
    (only,) = fold(got(body, text)).choices[0].logprobs
    assert (only.token, only.logprob, [one.token for one in only.top]) == ("b", -1.0, ["b", "c"])
    failed(got(sse({"choices": [{**piece, "logprobs": {"content": 3}}]}), job), "protocol")


def test_embeddings_that_do_not_match_the_inputs() -> None:
    job = EmbeddingRequest("e", (Prompt("a"), Prompt("b")))
    for data in ([{"index": 0, "embedding": [1]}], [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}]):
        failed(got(json.dumps({"data": data}).encode(), job), "protocol")
    failed(got(b'{"error":{"message":"overloaded","code":503}}', job), "overloaded")
    failed(got(b"<html>", job), "protocol")


def test_registry_names_what_it_knows() -> None:
    with pytest.raises(ValueError, match=r"known: .*openai_compatible"):
        dialect("nope")
    with pytest.raises(ValueError, match=r"known: .*vllm"):
        dialect("openai_compatible", "nope")
    with pytest.raises(ValueError, match="no quirks"):
        dialect("llamacpp", "vllm")
    assert {"vllm", "llamacpp", "ollama", "tgi", "sglang", "transformers", "localai", "openai"} <= set(QUIRKS)
    assert all(dialect(name).name == name for name in DIALECTS)
    assert all(":" in engine for engine in ENGINES.values())
    assert "top_k" in dialect("openai_compatible", "vllm").capabilities
    assert "presence_penalty" not in dialect("openai_compatible", "tgi").capabilities
