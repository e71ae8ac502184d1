"""Any JSON parses to a call or a BadRequest; any stream of events that obeys the grammar encodes to a valid answer."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from backends.core.errors import BadRequest
from backends.core.events import (
    Event,
    EventGrammar,
    Finish,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)
from backends.core.request import GenerationRequest
from backends.core.usage import Usage
from gateway.protocols.contract import Call, Identity
from gateway.protocols.openai_wire import ChatBody, CompletionBody, EmbeddingBody
from gateway.protocols.registry import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, SCORE
from gateway.protocols.rerank import RerankBody, ScoreBody
from tests.unit.openai_schema import sse, valid

RERANKING = {*RerankBody.__struct_fields__, *ScoreBody.__struct_fields__}
NAMES = sorted(
    {*ChatBody.__struct_fields__, *CompletionBody.__struct_fields__, *EmbeddingBody.__struct_fields__, *RERANKING} - {"model"}
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["user", "text"])
KEYS = st.sampled_from(["type", "role", "content", "function", "name", "text", "id", "url"]) | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool", "system"])}, optional={"content": VALUES}),
    max_size=3,
)
BODIES = st.fixed_dictionaries(
    {"model": st.just("m")}, optional={**dict.fromkeys(NAMES, VALUES), "messages": MESSAGES | VALUES}
)
IDENTITY = Identity("id-1", 5, "m")


@settings(max_examples=200, deadline=None)
@given(BODIES | VALUES)
def test_any_json_is_a_call_or_a_bad_request(value: object) -> None:
    for protocol in (CHAT, COMPLETIONS, EMBEDDINGS, RERANK, SCORE):
        try:
            call = protocol.parse(json.dumps(value).encode())
        except BadRequest as error:
            assert error.message
        else:
            assert isinstance(call, Call)


#: Stuff of long texts: quotes and backslashes at any distance from what is looked for, and what stands outside of texts too.
STRETCHES = st.tuples(st.sampled_from(['"', "\\", '\\"', "o", "0,", '":{"n":1,"n":', "\n", "ö", "漢"]), st.integers(1, 9000))
LONG_TEXTS = st.lists(STRETCHES, min_size=1, max_size=6).map(lambda all: "".join(one * times for one, times in all))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(LONG_TEXTS, min_size=1, max_size=3),
    st.lists(st.sampled_from(["n", "seed", "messages", "user"]), max_size=4),
    st.booleans(),
    st.sampled_from(["", " " * 9000]),
)
def test_a_name_given_twice_is_found_beside_any_texts(texts: list[str], more: list[str], ascii: bool, space: str) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    told = [("model", "m"), ("messages", messages), *((name, messages if name == "messages" else None) for name in more)]
    fields = [f"{json.dumps(name)}:{space}{json.dumps(value, ensure_ascii=ascii)}" for name, value in told]
    names = [name for name, _ in told]
    try:
        call = CHAT.parse(f"{{{','.join(fields)}}}".encode())
    except BadRequest as error:
        assert error.param == next(name for name in names if names.count(name) > 1)
    else:
        assert len(set(names)) == len(names)
        assert isinstance(call.job, GenerationRequest)
        assert [message.text for message in call.job.messages] == texts


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_refused(body: bytes) -> None:
    for protocol in (CHAT, COMPLETIONS, EMBEDDINGS, RERANK, SCORE):
        try:
            protocol.parse(body)
        except BadRequest:
            continue
        raise AssertionError("nothing of this size is a request")


TEXTS = st.text(max_size=6)


@st.composite
def streams(draw: st.DrawFn, choices: int, *, tools: bool) -> list[Event]:
    """Events that obey the grammar, the choices interleaved at will."""
    lines: list[list[Event]] = []
    for choice in range(choices):
        line: list[Event] = []
        named: set[int] = set()
        for kind in draw(st.lists(st.sampled_from("tttrfc"), max_size=6)):
            text = draw(TEXTS)
            if kind == "r":
                line.append(ReasoningDelta(text, choice))
            elif kind == "f":
                line.append(RefusalDelta(text, choice))
            elif kind == "c" and tools:
                call = draw(st.integers(0, 1))
                first = call not in named
                named.add(call)
                line.append(ToolCallDelta(call, f"call_{call}" if first else "", "f" if first else "", text, choice))
            else:
                logs = tuple(TokenLogprob(one, one.encode(), -1.0) for one in text)
                line.append(TextDelta(text, choice, logs))
        line.append(Finish(draw(st.sampled_from(["stop", "length"])), choice))
        lines.append(line)
    out: list[Event] = [Started("up")]
    while lines:
        line = draw(st.sampled_from(lines))
        out.append(line.pop(0))
        if not line:
            lines.remove(line)
    return [*out, Usage(1, 2)]


@st.composite
def batched(draw: st.DrawFn, events: list[Event]) -> list[list[Event]]:
    cuts = sorted(draw(st.sets(st.integers(1, len(events) - 1))))
    return [events[a:b] for a, b in zip([0, *cuts], [*cuts, len(events)], strict=True)]


def encoded(protocol: Any, body: dict[str, object], batches: list[list[Event]]) -> bytes:
    encoder = protocol.encoder(protocol.parse(json.dumps({"model": "m", **body}).encode()), IDENTITY)
    return b"".join([*map(encoder.feed, batches), encoder.close()])


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 3), st.booleans(), st.booleans())
def test_a_chat_stream_says_what_its_events_say(data: st.DataObject, n: int, usage: bool, logprobs: bool) -> None:
    events = data.draw(streams(n, tools=True))
    EventGrammar().feed(events)
    body: dict[str, object] = {"messages": [{"role": "user", "content": "x"}], "n": n, "logprobs": logprobs}
    options = {"stream": True, "stream_options": {"include_usage": usage}}
    raw = encoded(CHAT, {**body, **options}, data.draw(batched(events)))
    assert raw == encoded(CHAT, {**body, **options}, [events])
    chunks: list[Any] = sse(raw)
    for chunk in chunks:
        valid("CreateChatCompletionStreamResponse", chunk)
        assert ("usage" in chunk) is usage
    assert [chunk["usage"] is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True] if usage else True
    whole = json.loads(encoded(CHAT, body, [events]))
    valid("CreateChatCompletionResponse", whole)
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "role" in mine[0]["delta"] and not any("role" in c["delta"] for c in mine[1:])
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + [choice["finish_reason"]]
        message = choice["message"]
        for name in ("content", "refusal", "reasoning_content"):
            assert "".join(c["delta"].get(name) or "" for c in mine) == (message.get(name) or "")
        calls: dict[int, dict[str, str]] = {}
        for piece in (p for c in mine for p in c["delta"].get("tool_calls", ())):
            call = calls.setdefault(piece["index"], {"arguments": ""})
            assert ("id" in piece) == ("id" not in call)
            call.update({name: piece[name] for name in ("id",) if name in piece})
            call["arguments"] += piece["function"]["arguments"]
        joined = [(calls[index]["id"], calls[index]["arguments"]) for index in sorted(calls)]
        assert joined == [(c["id"], c["function"]["arguments"]) for c in message.get("tool_calls", ())]
        streamed_logs = [log for c in mine if c["logprobs"] for log in c["logprobs"]["content"]]
        assert streamed_logs == (choice["logprobs"]["content"] if choice["logprobs"] else [])


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 2), st.booleans())
def test_a_completion_stream_says_what_its_events_say(data: st.DataObject, n: int, echo: bool) -> None:
    events = data.draw(streams(2 * n, tools=False))
    body: dict[str, object] = {"prompt": ["p", "q"], "n": n, "echo": echo}
    raw = encoded(COMPLETIONS, {**body, "stream": True}, data.draw(batched(events)))
    assert raw == encoded(COMPLETIONS, {**body, "stream": True}, [events])
    chunks: list[Any] = sse(raw)
    whole = json.loads(encoded(COMPLETIONS, body, [events]))
    valid("CreateCompletionResponse", whole)
    assert [choice["index"] for choice in whole["choices"]] == list(range(2 * n))
    for choice in whole["choices"]:
        mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
