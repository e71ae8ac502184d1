"""Unary is the fold of the stream: one answer, written in both forms by a server, gives the same answer."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from backends.core.events import Event, EventGrammar
from backends.core.fold import Answer, fold
from backends.core.request import GenerationRequest, Message, Text
from backends.registry import dialect

TEXTS = st.lists(st.text(max_size=6), max_size=5)
CALLS = st.lists(
    st.tuples(st.text("ab", min_size=1, max_size=3), st.dictionaries(st.text(max_size=3), st.integers())), max_size=3
)
CHOICES = st.lists(st.tuples(TEXTS, TEXTS, CALLS, st.sampled_from(["stop", "length"])), min_size=1, max_size=3)
USAGE = st.tuples(st.integers(1, 99), st.integers(1, 99))


def read(body: bytes, job: GenerationRequest, cuts: list[int]) -> Answer:
    decoder, grammar = dialect("openai_compatible", "vllm").decoder(job), EventGrammar()
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    events: list[Event] = []
    for a, b in itertools.pairwise(edges):
        events += grammar.feed(decoder.feed(body[a:b]))
    events += grammar.feed(decoder.close())
    grammar.close()
    return fold(events)


def seen(answer: Answer) -> object:
    choices = {
        n: ("".join(one.text), "".join(one.reasoning), one.tool_calls(), one.finish) for n, one in answer.choices.items()
    }
    return answer.model, dict(sorted(choices.items())), answer.usage


@given(CHOICES, USAGE, st.lists(st.integers(0, 4000), max_size=10), st.randoms(use_true_random=False))
def test_stream_folds_to_the_unary_answer(
    choices: list[tuple[list[str], list[str], list[tuple[str, dict[str, int]]], str]],
    usage: tuple[int, int],
    cuts: list[int],
    random: Any,
) -> None:
    wire = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    whole, streams = [], []
    for index, (texts, thoughts, calls, finish) in enumerate(choices):
        tools = [
            {"index": n, "id": f"{index}-{n}", "type": "function", "function": {"name": name, "arguments": json.dumps(value)}}
            for n, (name, value) in enumerate(calls)
        ]
        message = {"role": "assistant", "content": "".join(texts), "reasoning": "".join(thoughts), "tool_calls": tools}
        whole.append({"index": index, "message": message, "finish_reason": finish})
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"reasoning": one} for one in thoughts] + [{"content": one} for one in texts]
        for tool in tools:
            text = tool["function"]["arguments"]
            half = len(text) // 2
            deltas.append({"tool_calls": [{**tool, "function": {"name": tool["function"]["name"], "arguments": text[:half]}}]})
            deltas.append({"tool_calls": [{"index": tool["index"], "function": {"arguments": text[half:]}}]})
        streams.append(
            [{"index": index, "delta": one} for one in deltas] + [{"index": index, "delta": {}, "finish_reason": finish}]
        )
    chunks: list[Any] = []
    while any(streams):
        chunks.append(random.choice([stream for stream in streams if stream]).pop(0))
    lines = [{"model": "up", "choices": [one]} for one in chunks] + [{"choices": [], "usage": wire}]
    stream = b"".join(f"data: {json.dumps(line, ensure_ascii=False)}\n\n".encode() for line in lines) + b"data: [DONE]\n\n"
    body = json.dumps({"model": "up", "choices": whole, "usage": wire}, ensure_ascii=False).encode()
    job = GenerationRequest("m", messages=(Message("user", (Text("x"),)),), n=len(choices))
    assert seen(read(stream, job, cuts)) == seen(read(body, job, cuts))
