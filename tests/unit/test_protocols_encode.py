"""Events to OpenAI's answers, streamed and whole, held against OpenAI's own schemas."""

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any

import pytest

from backends.core.errors import BackendError, ContextTooLong, UpstreamProtocol, UpstreamRejected, UpstreamTruncated
from backends.core.events import (
    Candidate,
    Embedding,
    Event,
    Failure,
    Finish,
    Item,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from backends.core.usage import Usage
from gateway.protocols.contract import ClientProtocol, Identity
from gateway.protocols.registry import CHAT, COMPLETIONS, EMBEDDINGS
from tests.unit.openai_schema import sse, valid

IDENTITY = Identity("chatcmpl-0198c0de-aaaa-7bbb-8ccc-00000000abcd", 1_700_000_000, "chat")
USAGE = Usage(3, 5, 2, 1)
TOKEN = TokenLogprob(
    "é", "é".encode(), -0.25, (Candidate("é", "é".encode(), -0.25), Candidate("\ufffd", b"\xc3", float("-inf")))
)


def answer(protocol: ClientProtocol, body: dict[str, object], *batches: Sequence[Event]) -> bytes:
    call = protocol.parse(json.dumps({"model": "chat", **body}).encode())
    encoder = protocol.encoder(call, IDENTITY)
    return b"".join([*(encoder.feed(batch) for batch in batches), encoder.close()])


def chat(body: dict[str, object], *batches: Sequence[Event]) -> bytes:
    return answer(CHAT, {"messages": [{"role": "user", "content": "x"}], **body}, *batches)


def chunks(body: dict[str, object], *batches: Sequence[Event]) -> list[Any]:
    events: list[Any] = sse(chat({"stream": True, **body}, *batches))
    for event in events:
        valid("CreateChatCompletionStreamResponse", event)
        assert (event["id"], event["created"], event["model"]) == (IDENTITY.id, IDENTITY.created_s, "chat")
    return events


def whole(body: dict[str, object], *batches: Sequence[Event]) -> Any:
    value = json.loads(chat(body, *batches))
    valid("CreateChatCompletionResponse", value)
    return value


def deltas(events: list[Any]) -> list[Any]:
    return [(choice["index"], choice["delta"], choice["finish_reason"]) for event in events for choice in event["choices"]]


TEXT: list[Event] = [Started("up"), TextDelta("He"), TextDelta('l"\n'), TextDelta(""), TextDelta("ö😀"), Finish("stop"), USAGE]


def test_a_streamed_chat() -> None:
    events = chunks({}, TEXT[:2], TEXT[2:])
    assert deltas(events) == [
        (0, {"role": "assistant", "content": "", "refusal": None}, None),
        (0, {"content": "He"}, None),
        (0, {"content": 'l"\n'}, None),
        (0, {"content": "ö😀"}, None),
        (0, {}, "stop"),
    ]
    assert all("usage" not in event for event in events)


def test_usage_is_shown_only_when_asked() -> None:
    events = chunks({"stream_options": {"include_usage": True}}, TEXT)
    assert [event["usage"] for event in events[:-1]] == [None] * 5
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 5,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }


def test_choices_interleave_and_each_finishes_once() -> None:
    events = chunks(
        {"n": 2}, [TextDelta("a", 1), TextDelta("b"), Finish("length", 1)], [TextDelta("c"), Finish("stop"), Usage(1, 1)]
    )
    assert [(index, reason) for index, _, reason in deltas(events) if reason] == [(1, "length"), (0, "stop")]
    assert [index for index, delta, _ in deltas(events) if "role" in delta] == [1, 0]


def test_a_whole_chat() -> None:
    value = whole({}, TEXT)
    assert value["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": 'Hel"\nö😀', "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert value["usage"]["total_tokens"] == 8
    assert value["object"] == "chat.completion"


CALLS: list[Event] = [
    ToolCallDelta(0, "call_1", "f", ""),
    ToolCallDelta(0, arguments='{"a"'),
    ToolCallDelta(1, "", "g", "{}"),
    ToolCallDelta(0, arguments=":1}"),
    Finish("tool_calls"),
    USAGE,
]


def test_streamed_tool_calls_name_themselves_once() -> None:
    events = deltas(chunks({}, CALLS))
    assert events[0] == (0, {"role": "assistant", "content": None, "refusal": None}, None)
    calls = [delta["tool_calls"][0] for _, delta, _ in events if "tool_calls" in delta]
    assert calls[0] == {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    assert calls[1] == {"index": 0, "function": {"arguments": '{"a"'}}
    assert calls[2]["id"] == "call_00000000abcd_0_1"
    assert calls[3] == {"index": 0, "function": {"arguments": ":1}"}}
    assert events[-1] == (0, {}, "tool_calls")


def test_whole_tool_calls_have_null_content() -> None:
    message = whole({}, CALLS)["choices"][0]["message"]
    assert message["content"] is None
    assert [(call["id"], call["function"]) for call in message["tool_calls"]] == [
        ("call_1", {"name": "f", "arguments": '{"a":1}'}),
        ("call_00000000abcd_0_1", {"name": "g", "arguments": "{}"}),
    ]


def test_reasoning_and_refusal() -> None:
    events: list[Event] = [ReasoningDelta("hm"), RefusalDelta("no"), Finish("stop"), USAGE]
    assert [delta for _, delta, _ in deltas(chunks({}, events))][1:3] == [{"reasoning_content": "hm"}, {"refusal": "no"}]
    message = whole({}, events)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": None, "refusal": "no", "reasoning_content": "hm"}


def test_logprobs_only_when_asked() -> None:
    events: list[Event] = [TextDelta("", logprobs=(TOKEN,)), TextDelta("é", logprobs=(TOKEN,)), Finish("stop"), USAGE]
    asked = chunks({"logprobs": True, "top_logprobs": 2}, events)
    logs = [event["choices"][0]["logprobs"] for event in asked]
    assert logs[0] is None
    assert logs[2]["content"][0] == {
        "token": "é",
        "logprob": -0.25,
        "bytes": [195, 169],
        "top_logprobs": [
            {"token": "é", "logprob": -0.25, "bytes": [195, 169]},
            {"token": "\ufffd", "logprob": -9999.0, "bytes": [195]},
        ],
    }
    assert len(whole({"logprobs": True}, events)["choices"][0]["logprobs"]["content"]) == 2
    assert all(event["choices"][0]["logprobs"] is None for event in chunks({}, events))
    assert len(chunks({}, events)) == 3


def test_an_unfinished_answer_is_no_success() -> None:
    for body in ({"stream": True}, {}):
        with pytest.raises(UpstreamTruncated):
            chat(body, [TextDelta("a")])
        with pytest.raises(UpstreamTruncated):
            chat({**body, "n": 2}, [TextDelta("a"), Finish("stop")])


def test_choices_that_were_not_asked_are_refused() -> None:
    for body in ({"stream": True}, {}):
        with pytest.raises(UpstreamProtocol):
            chat(body, [TextDelta("a", 1), Finish("stop", 1), TextDelta("a"), Finish("stop")])
    with pytest.raises(UpstreamProtocol):
        chat({"stream": True}, [Finish("stop"), TextDelta("a")])


def test_a_failure_in_a_whole_answer_raises() -> None:
    with pytest.raises(BackendError):
        chat({}, [TextDelta("a"), Failure("timeout", "too slow")])


@pytest.mark.parametrize("text", ["\n\ndata: [DONE]\n\n", "\r\n", "\u2028\u2029\x85", "event: x\n", "\x00\x1c\x0b", "\ud800"])
def test_no_text_leaves_its_line(text: str) -> None:
    raw = chat({"stream": True}, [TextDelta(text), ToolCallDelta(0, text, text, text), Finish("stop"), USAGE]).decode()
    lines = raw.splitlines()
    assert lines[1::2] == [""] * (len(lines) // 2)
    events: list[Any] = sse(raw.encode())
    assert events[1]["choices"][0]["delta"]["content"] == text.replace("\ud800", "?")


def completion(body: dict[str, object], *batches: Sequence[Event]) -> Any:
    raw = answer(COMPLETIONS, {"prompt": "p", **body}, *batches)
    if not body.get("stream"):
        valid("CreateCompletionResponse", json.loads(raw))
        return json.loads(raw)
    events = sse(raw)
    for event in events:
        valid("CreateCompletionChunk", event)
    return events


def test_a_streamed_completion() -> None:
    events = completion({"stream": True, "stream_options": {"include_usage": True}}, TEXT)
    assert [choice["text"] for event in events for choice in event["choices"]] == ["He", 'l"\n', "ö😀", ""]
    assert [choice["finish_reason"] for event in events for choice in event["choices"]] == [None, None, None, "stop"]
    assert events[-1]["usage"]["total_tokens"] == 8
    assert events[0]["usage"] is None


def test_a_whole_completion_of_two_prompts_with_echo() -> None:
    batch: list[Event] = [TextDelta("b", 1), TextDelta("a"), Finish("length"), Finish("stop", 1), USAGE]
    value = completion({"prompt": ["P0 ", "P1 "], "echo": True}, batch)
    assert [(c["index"], c["text"], c["finish_reason"]) for c in value["choices"]] == [
        (0, "P0 a", "length"),
        (1, "P1 b", "stop"),
    ]
    events = completion({"prompt": ["P0 ", "P1 "], "echo": True, "stream": True}, batch)
    for index, text in ((0, "P0 a"), (1, "P1 b")):
        assert "".join(c["text"] for event in events for c in event["choices"] if c["index"] == index) == text


def test_legacy_logprobs() -> None:
    batch: list[Event] = [TextDelta("é", logprobs=(TOKEN,)), TextDelta("é", logprobs=(TOKEN,)), Finish("stop"), USAGE]
    whole_logs = completion({"logprobs": 2}, batch)["choices"][0]["logprobs"]
    assert whole_logs == {
        "tokens": ["é", "é"],
        "token_logprobs": [-0.25, -0.25],
        "top_logprobs": [{"é": -0.25, "\ufffd": -9999.0}] * 2,
        "text_offset": [0, 1],
    }
    streamed = completion({"logprobs": 2, "stream": True}, batch)
    assert [event["choices"][0]["logprobs"]["text_offset"] for event in streamed[:2]] == [[0], [1]]
    assert completion({}, batch)["choices"][0]["logprobs"] is None


def test_set_apart_text_is_a_completions_text() -> None:
    batch: list[Event] = [ReasoningDelta("r"), TextDelta("t"), RefusalDelta("f"), Finish("tool_calls"), USAGE]
    assert completion({}, batch)["choices"][0]["text"] == "rtf"
    events = completion({"stream": True}, batch)
    assert "".join(event["choices"][0]["text"] for event in events) == "rtf"
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_unfinished_completions() -> None:
    for body in ({"stream": True}, {}):
        with pytest.raises(UpstreamTruncated):
            completion(body, [TextDelta("a")])
        with pytest.raises(UpstreamProtocol):
            completion(body, [TextDelta("a", 3), Finish("stop", 3)])


VECTORS = [struct.pack("<2f", 0.5, -1.0), struct.pack("<2f", 0.25, 2.0)]
ITEMS: list[Event] = [Item(Embedding(1, VECTORS[1])), Item(Embedding(0, VECTORS[0])), Usage(7, 0)]


def test_embeddings_as_floats_and_base64() -> None:
    value = json.loads(answer(EMBEDDINGS, {"input": ["a", "b"]}, ITEMS))
    valid("CreateEmbeddingResponse", value)
    assert [(item["index"], item["embedding"]) for item in value["data"]] == [(0, [0.5, -1.0]), (1, [0.25, 2.0])]
    assert value["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    value = json.loads(answer(EMBEDDINGS, {"input": ["a", "b"], "encoding_format": "base64"}, ITEMS))
    assert [base64.b64decode(item["embedding"]) for item in value["data"]] == VECTORS


def test_embeddings_that_do_not_fit_the_inputs() -> None:
    with pytest.raises(UpstreamTruncated):
        answer(EMBEDDINGS, {"input": ["a", "b", "c"]}, ITEMS)
    with pytest.raises(UpstreamProtocol):
        answer(EMBEDDINGS, {"input": "a"}, ITEMS)
    with pytest.raises(UpstreamProtocol):
        answer(EMBEDDINGS, {"input": "a"}, [Item(Embedding(0, struct.pack("<f", float("nan"))))])


def test_errors_have_all_four_keys() -> None:
    error = ContextTooLong("too\nlong", param="messages")
    value = json.loads(CHAT.error(error, in_stream=False))
    valid("ErrorResponse", value)
    assert value["error"] == {
        "message": "too\nlong",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
    raw = CHAT.error(UpstreamRejected("no"), in_stream=True)
    assert raw.startswith(b"data: {") and raw.endswith(b"}\n\n")
    assert json.loads(raw[6:])["error"] == {"message": "no", "type": "invalid_request_error", "param": None, "code": None}
