"""CPU of each dialect's decoder, per chunk of a stream and per whole answer; written into docs/benchmarks.md.

    make bench          or: python -m tests.bench --parts decoders

One process, no sockets: the bytes are made first, then fed to fresh decoders. A chunk is one event with one word, in the
form that the fixtures of the dialect have. "One a read" is a slow stream, "16 a read" a fast one or a busy gateway. The
figure is the least of the rounds, which is what holds on a machine that others use too.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from backends.core.contracts import Dialect
from backends.core.events import Event, Failure, TextDelta, ToolCallDelta
from backends.core.request import EmbeddingRequest, GenerationRequest, Job, Message, Prompt, Sampling, Text, Tool
from backends.registry import dialect
from tests.bench.report import number, table

CHUNKS, BATCH, ROUNDS = 256, 16, 40
WORD = " word"
_MESSAGES = (Message("user", (Text("Say something."),)),)
CHAT: Job = GenerationRequest("m", messages=_MESSAGES, sampling=Sampling(max_tokens=4096), stream=True)
WHOLE: Job = GenerationRequest("m", messages=_MESSAGES, sampling=Sampling(max_tokens=4096))
PLAIN: Job = GenerationRequest("m", prompts=(Prompt("Say"),), sampling=Sampling(max_tokens=4096))
TOOLS: Job = GenerationRequest("m", messages=_MESSAGES, stream=True, tools=(Tool("add", "", {}),))
VECTORS: Job = EmbeddingRequest("m", (Prompt("Say"),))
_ID = "chatcmpl-8b6ca5083c08f81a"


class Subject(NamedTuple):
    """What is measured. `chunks`: text-carrying pieces between `head` and `tail`; a whole answer is one piece."""

    name: str
    made: Callable[[], Dialect]
    job: Job
    chunks: Sequence[bytes]
    tail: bytes = b""
    head: bytes = b""


def _sse(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _openai(delta: Mapping[str, object], finish: str | None = None, usage: bool = False) -> bytes:
    body: dict[str, Any] = {"id": _ID, "object": "chat.completion.chunk", "created": 1795282171, "model": "m"}
    body["choices"] = [] if usage else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    if usage:
        body["usage"] = {"prompt_tokens": 11, "completion_tokens": CHUNKS, "total_tokens": CHUNKS + 11}
    return _sse(body)


def _openai_subjects() -> list[Subject]:
    head, tail = _openai({"role": "assistant", "content": ""}), _openai({}, usage=True) + b"data: [DONE]\n\n"
    words = [_openai({"content": WORD})] * CHUNKS
    first = _openai(
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "add", "arguments": "{"}}]}
    )
    pieces = [
        _openai({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}) for part in ['"a": "', *["x"] * 254, '"']
    ]
    return [
        Subject("`openai_compatible`", lambda: dialect("openai_compatible"), CHAT, words, _openai({}, "stop") + tail, head),
        Subject("`openai_compatible`, a tool call", lambda: dialect("openai_compatible"), TOOLS, pieces,
                _openai({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}) + _openai({}, "tool_calls") + tail,
                head + first),
    ]  # fmt: skip


def _anthropic() -> Subject:
    def event(kind: str, **fields: object) -> bytes:
        return f"event: {kind}\n".encode() + _sse({"type": kind, **fields})

    usage = {"input_tokens": 11, "output_tokens": 1}
    message = {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "usage": usage,
    }
    head = event("message_start", message=message)
    head += event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    word = event("content_block_delta", index=0, delta={"type": "text_delta", "text": WORD})
    tail = event("content_block_stop", index=0)
    tail += event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": CHUNKS}) + event("message_stop")
    return Subject("`anthropic`", lambda: dialect("anthropic"), CHAT, [word] * CHUNKS, tail, head)


def _text_subjects() -> list[Subject]:
    """The dialects of prompts and text."""
    llama: dict[str, Any] = {"index": 0, "content": WORD, "tokens": [7], "stop": False, "id_slot": 0, "tokens_evaluated": 11}
    end = {
        "content": "",
        "stop": True,
        "stop_type": "eos",
        "stopped_eos": True,
        "tokens_evaluated": 11,
        "tokens_predicted": CHUNKS,
    }
    ollama = {"model": "m", "created_at": "2026-08-21T10:00:00.123456789Z", "message": {"role": "assistant", "content": WORD}}
    done = {**ollama, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop",
            "prompt_eval_count": 11, "eval_count": CHUNKS}  # fmt: skip
    tgi: dict[str, Any] = {"token": {"id": 9, "text": WORD, "logprob": -0.1, "special": False}, "generated_text": None}
    tgi_end = {"token": {"id": 0, "text": "</s>", "logprob": -0.1, "special": True}, "generated_text": "x",
               "details": {"finish_reason": "eos_token", "generated_tokens": CHUNKS, "input_length": 11}}  # fmt: skip
    light = {"id": 9, "text": WORD, "logprob": -0.1, "special": False, "prompt_tokens": 11}
    return [
        Subject("`llamacpp`", lambda: dialect("llamacpp"), CHAT,
                [_sse({**llama, "tokens_predicted": n}) for n in range(1, CHUNKS + 1)], _sse(end)),
        Subject("`llamacpp_legacy`", lambda: dialect("llamacpp_legacy"), CHAT,
                [_sse({"content": WORD, "multimodal": False, "slot_id": 0, "stop": False})] * CHUNKS, _sse(end)),
        Subject("`ollama`", lambda: dialect("ollama"), CHAT,
                [json.dumps({**ollama, "done": False}).encode() + b"\n"] * CHUNKS, json.dumps(done).encode() + b"\n"),
        Subject("`tgi`", lambda: dialect("tgi"), CHAT,
                [_sse({"index": n, **tgi, "details": None}) for n in range(1, CHUNKS + 1)], _sse({"index": 0, **tgi_end})),
        Subject("`lightllm`", lambda: dialect("lightllm"), CHAT,
                [_sse({"token": {**light, "count_output_tokens": n}, "generated_text": None, "finished": n == CHUNKS,
                       "finish_reason": "stop" if n == CHUNKS else None, "details": None}) for n in range(1, CHUNKS + 1)]),
        Subject("`ffm`", lambda: dialect("ffm"), CHAT,
                [_sse({"generated_text": WORD, "function_call": None, "details": None, "finish_reason": None})] * CHUNKS,
                _sse({"generated_text": "", "prompt_tokens": 11, "generated_tokens": CHUNKS, "finish_reason": "eos_token"})),
        *_meta_subjects(),
    ]  # fmt: skip


def _meta_subjects() -> list[Subject]:
    """SGLang, LMDeploy and Triton, as new text and as all text so far."""

    def meta(n: int, text: str) -> bytes:
        reason = {"type": "stop"} if n == CHUNKS else None
        told = {"id": "r", "finish_reason": reason, "prompt_tokens": 11, "completion_tokens": n, "cached_tokens": 0}
        return _sse({"text": text, "output_ids": [n], "meta_info": told})

    def triton(text: str, count: int) -> bytes:
        return _sse({"model_name": "ensemble", "model_version": "1", "sequence_end": False, "sequence_id": 0,
                     "sequence_start": False, "batch_index": 0, "text_output": text, "num_input_tokens": 11,
                     "num_output_tokens": count})  # fmt: skip

    steps, done = range(1, CHUNKS + 1), b"data: [DONE]\n\n"
    new = {"incremental_streaming_output": True}
    return [
        Subject("`sglang`, all text so far", lambda: dialect("sglang"), CHAT, [meta(n, WORD * n) for n in steps], done),
        Subject("`sglang`, new text", lambda: dialect("sglang", options=new), CHAT, [meta(n, WORD) for n in steps], done),
        Subject("`lmdeploy`", lambda: dialect("lmdeploy"), CHAT, [meta(n, WORD) for n in steps], done),
        Subject("`triton`, new text", lambda: dialect("triton"), CHAT, [triton(WORD, 1)] * CHUNKS),
        Subject("`triton`, all text so far", lambda: dialect("triton", options={"accumulate_tokens": True}), CHAT,
                [triton(WORD * n, n) for n in steps]),
    ]  # fmt: skip


def streams() -> list[Subject]:
    """Every dialect that streams."""
    return [*_openai_subjects(), _anthropic(), *_text_subjects()]


def answers() -> list[Subject]:
    """The dialects that only answer whole; each answer has 256 words, or one vector of 384 numbers."""
    text = WORD * CHUNKS
    usage = {"prompt_tokens": 11, "completion_tokens": CHUNKS, "total_tokens": CHUNKS + 11}
    chat = {"id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}  # fmt: skip
    plain = {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [{"text": text, "index": 0}]}
    vector = [round(0.001 * n, 6) for n in range(384)]
    return [
        Subject("`chinese_alpaca`", lambda: dialect("chinese_alpaca"), WHOLE, [json.dumps(chat).encode()]),
        Subject("`jquesnelle`", lambda: dialect("jquesnelle"), PLAIN, [json.dumps({**plain, "usage": usage}).encode()]),
        Subject("`tei`", lambda: dialect("tei"), VECTORS, [json.dumps([vector]).encode()]),
    ]


def run(subject: Subject, reads: Sequence[bytes]) -> tuple[int, list[Event]]:
    """Nanoseconds of this thread's CPU from the first byte to the end, and the events."""
    decoder = subject.made().decoder(subject.job)
    events: list[Event] = []
    began = time.thread_time_ns()
    for read in reads:
        events += decoder.feed(read)
    events += decoder.close()
    return time.thread_time_ns() - began, events


def least_us(subject: Subject, batch: int, rounds: int = ROUNDS) -> float:
    """CPU microseconds per chunk, the least of the rounds; head and tail are part of it.

    Raises:
        AssertionError: the decoder made something else of it than an answer.
    """
    chunks = list(subject.chunks)
    reads = [b"".join(chunks[at : at + batch]) for at in range(0, len(chunks), batch)]
    reads = [part for part in (subject.head, *reads, subject.tail) if part]
    spent = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            nanoseconds, events = run(subject, reads)
            spent.append(nanoseconds)
    finally:
        if collecting:
            gc.enable()
    assert not any(isinstance(event, Failure) for event in events), (subject.name, events[-1])
    if len(chunks) > 1:
        said = sum(isinstance(event, TextDelta | ToolCallDelta) for event in events)
        assert said >= len(chunks) * 0.9 / batch, f"{subject.name}: {said} pieces of {len(chunks)}"
    return min(spent) / 1000 / len(chunks)


def tables(rounds: int = ROUNDS) -> list[str]:
    """The page's part."""
    head = ["dialect", "bytes a chunk", "µs a chunk, one a read", "µs a chunk, 16 a read"]
    rows = []
    for one in streams():
        size = sum(map(len, one.chunks)) / len(one.chunks)
        rows.append([one.name, number(size, 0), number(least_us(one, 1, rounds)), number(least_us(one, BATCH, rounds))])
    whole = [[one.name, number(len(one.chunks[0]), 0), number(least_us(one, 1, rounds), 0)] for one in answers()]
    return [
        f"CPU microseconds of one thread from bytes to events: streams of {CHUNKS} chunks of one word, the least of {rounds} "
        "rounds. Where each event repeats all text so far, the bytes grow with the answer.",
        table(head, rows),
        "Dialects that answer whole, with 256 words or one vector of 384 numbers:",
        table(["dialect", "bytes", "µs an answer"], whole),
    ]
