"""Scores of documents, whoever answers them, and the request in the form that most servers take.

Request: `{model, query, documents, top_n}`. Answer: `{results: [{index, relevance_score}], model, usage}` (Jina, Cohere,
vLLM, llama.cpp, LocalAI, LiteLLM), or a bare list of `{index, score}` (Text Embeddings Inference, and SGLang, which tells
tokens in `meta_info`). Sources: Jina's and Cohere's API references (2026), vLLM 0.32 `entrypoints/pooling/scoring`, llama.cpp
`tools/server` as vendored in llama-cpp-python 0.3.36, SGLang 0.5 `entrypoints/openai/protocol.py`.

Every document is asked for, whatever the client wants to see: a part cannot be told from an answer that was cut.
"""

from __future__ import annotations

import math

import msgspec

from backends.core.events import Event, Item, Score, Started
from backends.core.request import RerankRequest
from backends.core.usage import ABSURD, Usage
from backends.dialects.whole_answers import WholeDecoder
from backends.parsing import failures


class _Counts(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Result(msgspec.Struct, gc=False):
    index: int
    relevance_score: float | None = None
    score: float | None = None
    meta_info: _Counts | None = None


class _Answer(msgspec.Struct, gc=False):
    results: list[_Result]
    model: str | None = None
    usage: _Counts | None = None


_read = msgspec.json.Decoder(_Answer | list[_Result]).decode


def rerank_body(job: RerankRequest) -> dict[str, object]:
    """The request's body."""
    return {"model": job.model, "query": job.query, "documents": list(job.documents), "top_n": len(job.documents)}


def rerank_decoder(job: RerankRequest) -> WholeDecoder:
    """A fresh decoder of either form."""
    return WholeDecoder("scores", lambda body: _events(_read(body), len(job.documents)))


def _events(answer: _Answer | list[_Result], count: int) -> list[Event]:
    """Started, an Item for each document, Usage; or a Failure when documents and scores do not match."""
    results = answer if isinstance(answer, list) else answer.results
    scores = {one.index: one.relevance_score if one.relevance_score is not None else one.score for one in results}
    if len(scores) < len(results) or sorted(scores) != list(range(count)):
        return [failures.protocol(f"scores {sorted(scores)[:10]} for {count} documents")]
    events: list[Event] = [Started("" if isinstance(answer, list) else answer.model or "")]
    for index, score in sorted(scores.items()):
        if score is None or not math.isfinite(score):
            return [failures.protocol(f"document {index} has no score")]
        events.append(Item(Score(index, score)))
    tokens = _tokens(answer)
    return [*events, Usage(tokens, 0)] if 0 < tokens < ABSURD else events


def _tokens(answer: _Answer | list[_Result]) -> int:
    """Tokens of all pairs; 0 = not told."""
    if not isinstance(answer, list):
        return (answer.usage.prompt_tokens or answer.usage.total_tokens or 0) if answer.usage else 0
    each = [one.meta_info.prompt_tokens if one.meta_info else None for one in answer]
    return sum(one for one in each if one is not None) if all(each) else 0
