"""Anthropic's messages: however blocks are cut into deltas and reads, the stream folds to the whole message."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from backends.core.events import EventGrammar
from backends.core.fold import fold
from backends.core.request import GenerationRequest, Message, Text
from backends.registry import dialect

JOB = GenerationRequest("m", messages=(Message("user", (Text("x"),)),))
WORDS = st.lists(st.text(max_size=6), min_size=1, max_size=4)
BLOCKS = st.lists(
    st.one_of(
        st.tuples(st.just("text"), WORDS),
        st.tuples(st.just("thinking"), WORDS),
        st.tuples(st.just("tool_use"), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2)),
    ),
    max_size=4,
)
REASONS = st.sampled_from(["end_turn", "max_tokens", "tool_use", "refusal", "stop_sequence"])


def events_of(number: int, kind: str, value: Any) -> list[dict[str, Any]]:
    """A block as the stream writes it."""
    if kind == "tool_use":
        text = json.dumps(value) if value else ""
        begun = {"type": kind, "id": f"toolu_{number}", "name": "f", "input": {}}
        deltas: list[dict[str, Any]] = [{"type": "input_json_delta", "partial_json": one} for one in (text[:3], text[3:])]
    else:
        begun = {"type": kind, kind: ""}
        deltas = [{"type": f"{kind}_delta", kind: word} for word in value]
    return [
        {"type": "content_block_start", "index": number, "content_block": begun},
        *({"type": "content_block_delta", "index": number, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": number},
    ]


def whole_of(number: int, kind: str, value: Any) -> dict[str, Any]:
    """A block of a whole message."""
    if kind == "tool_use":
        return {"type": kind, "id": f"toolu_{number}", "name": "f", "input": value}
    return {"type": kind, kind: "".join(value)}


def seen(body: bytes, cuts: list[int]) -> object:
    decoder, grammar = dialect("anthropic").decoder(JOB), EventGrammar()
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    events = [event for a, b in itertools.pairwise(edges) for event in grammar.feed(decoder.feed(body[a:b]))]
    answer = fold([*events, *grammar.feed(decoder.close())])
    grammar.close()
    choice = answer.choices[0]
    calls = [(call.id, call.name, json.loads(call.arguments)) for call in choice.tool_calls()]
    return answer.model, "".join(choice.text), "".join(choice.reasoning), calls, choice.finish, answer.usage


@settings(deadline=None)
@given(BLOCKS, REASONS, st.lists(st.integers(0, 3000), max_size=8))
def test_the_stream_folds_to_the_message(blocks: list[tuple[str, Any]], reason: str, cuts: list[int]) -> None:
    usage = {"input_tokens": 7, "output_tokens": 9, "cache_read_input_tokens": 2}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"model": "up", "content": [], "usage": usage}}]
    for number, (kind, value) in enumerate(blocks):
        events += [{"type": "ping"}, *events_of(number, kind, value)]
    events += [{"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage}, {"type": "message_stop"}]
    stream = b"".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n".encode() for one in events)
    content = [whole_of(number, kind, value) for number, (kind, value) in enumerate(blocks)]
    message = {"type": "message", "model": "up", "content": content, "stop_reason": reason, "usage": usage}
    assert seen(stream, cuts) == seen(json.dumps(message).encode(), [])
