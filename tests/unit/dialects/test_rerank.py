"""Scores of documents in the forms that servers give them."""

import json

import pytest

from backends.core.capabilities import asked, resolve
from backends.core.errors import UnsupportedParameter
from backends.core.events import Failure, Item, Score, Started
from backends.core.request import RerankRequest
from backends.core.usage import Usage
from backends.dialects.server_quirks import QUIRKS
from backends.registry import DIALECTS, batch, dialect
from tests.contract.cases import decode

JOB = RerankRequest("up", "q", ("a", "b", "c"))
SCORES = [Item(Score(0, 0.5)), Item(Score(1, -2.0)), Item(Score(2, 1.0))]
BEST_FIRST = [{"index": 2, "relevance_score": 1}, {"index": 0, "relevance_score": 0.5}, {"index": 1, "relevance_score": -2}]


@pytest.mark.parametrize(
    ("name", "quirks", "path"),
    [(name, "", "/rerank") for name in ("llamacpp", "llamacpp_legacy")]
    + [("openai_compatible", quirks, "/rerank") for quirks in ("vllm", "llamacpp", "sglang", "localai")],
)
def test_the_form_of_jina_and_cohere(name: str, quirks: str, path: str) -> None:
    ours = dialect(name, quirks)
    assert resolve(JOB, ours.capabilities, "reject") is JOB
    request = ours.encode(JOB)
    assert (request.method, request.path) == ("POST", path)
    assert json.loads(request.body) == {"model": "up", "query": "q", "documents": ["a", "b", "c"], "top_n": 3}
    body = {"model": "theirs", "object": "list", "results": BEST_FIRST, "usage": {"prompt_tokens": 12, "total_tokens": 12}}
    assert decode(ours, JOB, [json.dumps(body).encode()]) == [Started("theirs"), *SCORES, Usage(12, 0)]


def test_usage_may_be_a_total_alone_or_absent() -> None:
    ours = dialect("openai_compatible", "vllm")
    for usage, events in (({"total_tokens": 7}, [Usage(7, 0)]), (None, []), ({"total_tokens": 0}, []), ({}, [])):
        body = json.dumps({"results": BEST_FIRST, "usage": usage}).encode()
        assert decode(ours, JOB, [body]) == [Started(), *SCORES, *events]
    cohere = {"id": "1", "results": BEST_FIRST, "meta": {"billed_units": {"search_units": 1}}}
    assert decode(ours, JOB, [json.dumps(cohere).encode()]) == [Started(), *SCORES]


def test_text_embeddings_inference() -> None:
    ours = dialect("tei")
    request = ours.encode(JOB)
    assert (request.path, json.loads(request.body)) == ("/rerank", {"query": "q", "texts": ["a", "b", "c"]})
    body = b'[{"index":2,"score":1.0},{"index":0,"score":0.5},{"index":1,"score":-2.0}]'
    for cut in range(0, len(body), 7):
        assert decode(ours, JOB, [body[:cut], body[cut:]]) == [Started(), *SCORES]
    assert batch(ours) == 32


def test_sglang_tells_tokens_with_each() -> None:
    body = [
        {"score": one["relevance_score"], "document": "x", "index": one["index"], "meta_info": {"prompt_tokens": 4, "id": "z"}}
        for one in BEST_FIRST
    ]
    ours = dialect("openai_compatible", "sglang")
    assert decode(ours, JOB, [json.dumps(body).encode()])[-1] == Usage(12, 0)
    body[0]["meta_info"] = None
    assert decode(ours, JOB, [json.dumps(body).encode()])[-1] == SCORES[-1]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"results":[]}',
        b'{"results":[{"index":0,"relevance_score":1},{"index":1,"relevance_score":1}]}',
        b'{"results":[{"index":0,"relevance_score":1},{"index":1,"relevance_score":1},{"index":1,"relevance_score":1}]}',
        b'{"results":[{"index":0,"relevance_score":1},{"index":1,"relevance_score":1},{"index":3,"relevance_score":1}]}',
        b'{"results":[{"index":0,"relevance_score":1},{"index":1,"relevance_score":1},{"index":2}]}',
        b'{"results":[{"index":0,"relevance_score":1},{"index":1,"relevance_score":1},{"index":2,"relevance_score":1e999}]}',
        b'{"results":[{"index":0,"relevance_score":"1"}]}',
        b'{"error":{"message":"no","code":500}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_answer(body: bytes) -> None:
    for name, quirks in (("openai_compatible", "vllm"), ("llamacpp", ""), ("tei", "")):
        events = decode(dialect(name, quirks), JOB, [body])
        assert len(events) == 1 and isinstance(events[0], Failure)


def test_who_cannot_says_so() -> None:
    assert asked(JOB) == {"rerank"}
    able = {name for name in DIALECTS if "rerank" in dialect(name).capabilities}
    assert able == {"llamacpp", "llamacpp_legacy", "tei"}
    assert {name for name in QUIRKS if "rerank" in dialect("openai_compatible", name).capabilities} == {
        "vllm", "llamacpp", "sglang", "localai",
    }  # fmt: skip
    for name in set(DIALECTS) - able - {"openai_compatible"}:
        with pytest.raises(UnsupportedParameter):
            resolve(JOB, dialect(name).capabilities, "forward")
        with pytest.raises(UnsupportedParameter):
            dialect(name).encode(JOB)
