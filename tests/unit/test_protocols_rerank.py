"""POST /v1/rerank and /v1/score: what is a request, and what an answer looks like."""

import json
from typing import Any

import pytest

from backends.core.errors import BadRequest, UpstreamProtocol, UpstreamTruncated
from backends.core.events import Embedding, Event, Item, Score, Started
from backends.core.request import RerankRequest
from backends.core.usage import Usage
from gateway.pipeline.estimate import input_bound
from gateway.protocols.contract import ClientProtocol, Identity
from gateway.protocols.registry import PATHS, RERANK, SCORE
from gateway.protocols.rerank import MAX_DOCUMENTS

IDENTITY = Identity("rerank-1", 1_700_000_000, "public")
ASKED: dict[str, Any] = {"model": "m", "query": "q", "documents": ["a", {"text": "b"}, "é"]}
EVENTS: list[Event] = [
    Started("up"), Item(Score(2, 0.25)), Item(Score(0, -1.5)), Item(Score(1, 0.25)), Usage(9, 0),
]  # fmt: skip


def refusal(protocol: ClientProtocol, body: object) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        protocol.parse(json.dumps(body).encode())
    return caught.value


def answer(protocol: ClientProtocol, body: object, events: list[Event]) -> dict[str, Any]:
    encoder = protocol.encoder(protocol.parse(json.dumps(body).encode()), IDENTITY)
    assert encoder.feed(events) == b""
    found: dict[str, Any] = json.loads(encoder.close())
    return found


def test_documents_may_be_texts_or_objects() -> None:
    call = RERANK.parse(json.dumps({**ASKED, "top_n": 7, "return_documents": True, "user": "u"}).encode())
    assert call.job == RerankRequest("m", "q", ("a", "b", "é"))
    assert (call.options.top_n, call.options.return_documents, call.options.stream) == (7, True, False)
    assert (call.text_bytes, call.items) == (3 + 1 + 1 + 2, 3), "the query is read with each document"
    assert input_bound(call) == 4 + 8 * 3


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"query": ["q"]}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": [1]}, "documents"),
        ({"documents": [{"text": "a", "title": "t"}]}, "documents.title"),
        ({"documents": [{}]}, "documents.text"),
        ({"documents": ["x"] * (MAX_DOCUMENTS + 1)}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"return_documents": 1}, "return_documents"),
        ({"model": ""}, "model"),
        ({"max_tokens_per_doc": 512}, "max_tokens_per_doc"),
        ({"stream": True}, "stream"),
    ],
)
def test_what_is_no_rerank_request(change: dict[str, object], param: str) -> None:
    error = refusal(RERANK, {**ASKED, **change})
    assert (error.param or "").replace("[0]", "") == param


@pytest.mark.parametrize("missing", ["model", "query", "documents"])
def test_what_is_required(missing: str) -> None:
    assert refusal(RERANK, {name: value for name, value in ASKED.items() if name != missing}).param == missing


def test_the_best_come_first_and_equal_ones_in_their_order() -> None:
    found = answer(RERANK, ASKED, EVENTS)
    assert found == {
        "id": "rerank-1",
        "object": "list",
        "model": "public",
        "results": [
            {"index": 1, "relevance_score": 0.25},
            {"index": 2, "relevance_score": 0.25},
            {"index": 0, "relevance_score": -1.5},
        ],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }


def test_the_best_so_many_with_their_texts() -> None:
    found = answer(RERANK, {**ASKED, "top_n": 2, "return_documents": True}, EVENTS)
    assert [(one["index"], one["document"]) for one in found["results"]] == [(1, {"text": "b"}), (2, {"text": "é"})]
    assert len(answer(RERANK, {**ASKED, "top_n": 50}, EVENTS)["results"]) == 3


@pytest.mark.parametrize("protocol", [RERANK, SCORE])
@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([Item(Score(0, 1.0))], UpstreamTruncated),
        ([Item(Score(0, 1.0)), Item(Score(0, 1.0)), Item(Score(1, 1.0))], UpstreamProtocol),
        ([Item(Score(0, 1.0)), Item(Score(2, 1.0))], UpstreamProtocol),
        ([Item(Score(0, 1.0)), Item(Score(-1, 1.0))], UpstreamProtocol),
        ([Item(Score(0, 1.0)), Item(Score(1, float("nan")))], UpstreamProtocol),
        ([Item(Score(0, 1.0)), Item(Embedding(1, b""))], UpstreamProtocol),
    ],
)
def test_scores_that_do_not_fit_the_documents(protocol: ClientProtocol, events: list[Event], error: type[Exception]) -> None:
    body = {"model": "m", "text_1": "q", "text_2": ["a", "b"]} if protocol is SCORE else {**ASKED, "documents": ["a", "b"]}
    with pytest.raises(error):
        answer(protocol, body, events)


@pytest.mark.parametrize(
    ("first", "second", "documents"),
    [("q", "a", ("a",)), ("q", ["a", "b"], ("a", "b")), (["q"], ["a", "b"], ("a", "b")), (["q", "q"], ["a", "b"], ("a", "b"))],
)
def test_score_takes_one_text_against_one_or_many(first: object, second: object, documents: tuple[str, ...]) -> None:
    call = SCORE.parse(json.dumps({"model": "m", "text_1": first, "text_2": second}).encode())
    assert call.job == RerankRequest("m", "q", documents)


@pytest.mark.parametrize(
    ("first", "second", "param"),
    [
        (["q", "r"], ["a", "b"], "text_1"),
        (["q", "q"], ["a"], "text_1"),
        ([], "a", "text_1"),
        ("q", [], "text_2"),
        ("", "a", "text_1"),
    ],
)
def test_what_is_no_score_request(first: object, second: object, param: str) -> None:
    assert refusal(SCORE, {"model": "m", "text_1": first, "text_2": second}).param == param


def test_scores_stand_in_the_order_of_the_request() -> None:
    found = answer(SCORE, {"model": "m", "text_1": "q", "text_2": ["a", "b", "c"]}, EVENTS)
    assert found["data"] == [
        {"index": 0, "object": "score", "score": -1.5},
        {"index": 1, "object": "score", "score": 0.25},
        {"index": 2, "object": "score", "score": 0.25},
    ]
    assert found["usage"] == {"prompt_tokens": 9, "total_tokens": 9, "completion_tokens": 0}
    assert (found["object"], found["model"], found["created"]) == ("list", "public", 1_700_000_000)


def test_their_paths() -> None:
    assert {path for path, protocol in PATHS.items() if protocol is RERANK} == {"/v1/rerank", "/v2/rerank", "/rerank"}
    assert {path for path, protocol in PATHS.items() if protocol is SCORE} == {"/v1/score", "/score"}
