"""Servers with records of their own: however an answer is cut into tokens and reads, its stream folds to the whole one."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.core.events import Event, EventGrammar
from backends.core.fold import Answer, fold
from backends.core.request import GenerationRequest, Prompt, Sampling
from backends.registry import dialect

PIECES = st.lists(st.text(st.sampled_from("abEND \N{BUG}\u2028"), max_size=5), min_size=1, max_size=6)
STOPS = st.lists(st.sampled_from(["END", "E", "ba", "D a"]), max_size=2, unique=True)
NAMES = ("tgi", "triton", "triton-whole", "sglang", "lmdeploy", "lightllm", "llamacpp", "llamacpp_legacy", "ollama", "ffm")


def sse(record: object) -> bytes:
    return b"data: " + json.dumps(record, ensure_ascii=False).encode() + b"\n\n"


def _ended(name: str, reason: str, count: int) -> dict[str, Any]:
    """What a last record has beside its text."""
    if name == "llamacpp":
        return {"stop_type": {"stop": "eos", "length": "limit"}[reason], "tokens_evaluated": 3, "tokens_predicted": count}
    if name == "llamacpp_legacy":
        return {f"stopped_{'eos' if reason == 'stop' else 'limit'}": True, "tokens_evaluated": 3, "tokens_predicted": count}
    if name == "ollama":
        return {"done_reason": reason, "prompt_eval_count": 3, "eval_count": count}
    return {"finish_reason": reason, "prompt_tokens": 3, "generated_tokens": count}


def written(name: str, pieces: list[str], reason: str) -> tuple[bytes, bytes]:
    """A server's stream and whole answer of the same text."""
    text, count = "".join(pieces), len(pieces)
    stream, so_far = b"", ""
    for number, piece in enumerate(pieces, 1):
        so_far += piece
        last = number == count
        record: dict[str, Any]
        if name == "tgi":
            details = {"finish_reason": reason, "generated_tokens": count, "input_length": 3} if last else None
            record = {"token": {"text": piece}, "generated_text": text if last else None, "details": details}
        elif name.startswith("triton"):
            record = {"text_output": so_far if name == "triton-whole" else piece}
        elif name == "lightllm":
            token = {"text": piece, "count_output_tokens": number, "prompt_tokens": 3}
            record = {"token": token, "finished": last, "finish_reason": reason if last else None}
        elif name.startswith("llamacpp"):
            record = {"content": piece, "stop": last, **(_ended(name, reason, count) if last else {})}
        elif name == "ollama":
            record = {"model": "m", "response": piece, "done": last, **(_ended(name, reason, count) if last else {})}
        elif name == "ffm":
            record = {"generated_text": piece, **(_ended(name, reason, count) if last else {"finish_reason": None})}
        else:
            why = {"type": reason} if last else None
            meta = {"finish_reason": why, "prompt_tokens": 3, "completion_tokens": number}
            record = {"text": so_far if name == "sglang" else piece, "meta_info": meta}
        stream += json.dumps(record).encode() + b"\n" if name == "ollama" else sse(record)
    if name == "tgi":
        whole: dict[str, Any] = {"generated_text": text}
        whole["details"] = {"finish_reason": reason, "generated_tokens": count, "input_length": 3}
    elif name.startswith("triton"):
        whole = {"text_output": text}
    elif name.startswith("llamacpp"):
        whole = {"content": text, "stop": True, **_ended(name, reason, count)}
    elif name == "ollama":
        whole = {"model": "m", "response": text, "done": True, **_ended(name, reason, count)}
    elif name == "ffm":
        whole = {"generated_text": text, **_ended(name, reason, count)}
    elif name == "lightllm":
        whole = {"generated_text": [text], "finish_reason": reason, "count_output_tokens": count, "prompt_tokens": 3}
    else:
        meta = {"finish_reason": {"type": reason}, "prompt_tokens": 3, "completion_tokens": count}
        whole = {"text": text, "meta_info": meta}
        stream += b"data: [DONE]\n\n"
    return stream, json.dumps(whole).encode()


def read(name: str, body: bytes, job: GenerationRequest, cuts: list[int]) -> Answer:
    ours = dialect("triton", options={"accumulate_tokens": True}) if name == "triton-whole" else dialect(name)
    decoder, grammar = ours.decoder(job), EventGrammar()
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    events: list[Event] = []
    for a, b in itertools.pairwise(edges):
        events += grammar.feed(decoder.feed(body[a:b]))
    events += grammar.feed(decoder.close())
    grammar.close()
    return fold(events)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=60)
@given(PIECES, STOPS, st.sampled_from(["length", "stop"]), st.lists(st.integers(0, 2000), max_size=8))
def test_stream_folds_to_the_whole_answer(name: str, pieces: list[str], stops: list[str], reason: str, cuts: list[int]) -> None:
    job = GenerationRequest("m", prompts=(Prompt("P"),), sampling=Sampling(stop=tuple(stops)))
    stream, whole = written(name, pieces, "eos_token" if name == "tgi" and reason == "stop" else reason)
    one, other = read(name, stream, job, cuts), read(name, whole, job, [])
    assert ("".join(one.choices[0].text), one.choices[0].finish, one.usage) == (
        "".join(other.choices[0].text),
        other.choices[0].finish,
        other.usage,
    )
    text = "".join(other.choices[0].text)
    assert "".join(pieces).startswith(text)
    assert not any(stop in text for stop in stops)
