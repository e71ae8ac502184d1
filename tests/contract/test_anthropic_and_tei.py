"""`anthropic` and `tei` as backends, against their fixtures and beyond."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.core.errors import BadRequest, UnsupportedParameter
from backends.core.events import Embedding, Failure, Item, Started
from backends.core.request import (
    EmbeddingRequest,
    GenerationRequest,
    ImageInput,
    Message,
    Prompt,
    Sampling,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
)
from backends.registry import credential_header, dialect
from tests.contract.cases import Case, cases, check_answer, check_error, check_request, cut, decode, job_of

ALL = [(name, case) for name in ("anthropic", "tei") for case in cases(name)]
GOOD = [(name, case) for name, case in ALL if case.upstream["status"] == 200]
BAD = [(name, case) for name, case in ALL if case.upstream["status"] != 200]
OURS = dialect("anthropic")
USER = Message("user", (Text("hi"),))


@pytest.mark.parametrize(("name", "case"), ALL, ids=str)
def test_request(name: str, case: Case) -> None:
    ours = dialect(name)
    request = ours.encode(job_of(case, ours))
    assert request.path == case.upstream["path"]
    check_request(case, msgspec.json.decode(request.body))
    if name == "anthropic":
        assert request.headers["anthropic-version"] == "2023-06-01"


@pytest.mark.parametrize(("name", "case"), GOOD, ids=str)
def test_answer_at_the_given_splits_and_at_any(name: str, case: Case) -> None:
    ours = dialect(name)
    job = job_of(case, ours)
    whole = decode(ours, job, [case.body])
    check_answer(case, whole)
    assert decode(ours, job, cut(case.body, case.upstream["splits"])) == whole
    if "embedding" in case.expect:
        vectors = [event.value.vector for event in whole if isinstance(event, Item)]
        assert vectors == [struct.pack("<3f", *case.expect["embedding"])]

    @settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(st.lists(st.integers(0, len(case.body)), max_size=20))
    def any_split(splits: list[int]) -> None:
        assert decode(ours, job, cut(case.body, splits)) == whole

    any_split()


@pytest.mark.parametrize(("name", "case"), BAD, ids=str)
def test_status(name: str, case: Case) -> None:
    check_error(case, dialect(name).failure(case.upstream["status"], case.upstream["headers"], case.body))


def test_turns_alternate_and_tool_results_are_the_user_s() -> None:
    turns = (
        Message("developer", (Text("x"),)),
        Message("user", (Text("see"), ImageInput("data:image/png;base64,QQ=="), ImageInput("https://example.com/a.png"))),
        Message("assistant", (Text("ok"),), tool_calls=(ToolCall("c1", "f", '{"a": 1}'), ToolCall("c2", "f", ""))),
        Message("tool", (Text("1"),), tool_call_id="c1"),
        Message("tool", tool_call_id="c2"),
        USER,
    )
    body = msgspec.json.decode(OURS.encode(GenerationRequest("m", messages=turns)).body)
    assert body["system"] == "x"
    assert body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "QQ=="}},
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "ok"},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "c2", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "1"}]},
                {"type": "tool_result", "tool_use_id": "c2"},
                {"type": "text", "text": "hi"},
            ],
        },
    ]


@pytest.mark.parametrize(
    ("choice", "parallel", "wanted"),
    [
        (None, None, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (ToolChoice("required"), None, {"type": "any"}),
        (ToolChoice("none"), False, {"type": "none"}),
        (ToolChoice("function", "f"), False, {"type": "tool", "name": "f", "disable_parallel_tool_use": True}),
    ],
)
def test_tool_choice(choice: ToolChoice | None, parallel: bool | None, wanted: dict[str, object] | None) -> None:
    job = GenerationRequest("m", messages=(USER,), tools=(Tool("f"),), tool_choice=choice, parallel_tool_calls=parallel)
    body = msgspec.json.decode(OURS.encode(job).body)
    assert body.get("tool_choice") == wanted
    assert body["tools"] == [{"name": "f", "input_schema": {"type": "object"}}]


def test_what_the_api_does_not_take_is_refused() -> None:
    with pytest.raises(UnsupportedParameter) as hot:
        OURS.encode(GenerationRequest("m", messages=(USER,), sampling=Sampling(temperature=1.5)))
    assert hot.value.param == "temperature"
    with pytest.raises(UnsupportedParameter):
        OURS.encode(GenerationRequest("m", prompts=(Prompt("a"),)))
    with pytest.raises(BadRequest):
        OURS.encode(GenerationRequest("m", messages=(Message("system", (Text("x"),)),)))
    with pytest.raises(BadRequest, match="JSON object"):
        OURS.encode(GenerationRequest("m", messages=(Message("assistant", tool_calls=(ToolCall("c", "f", "[1]"),)),)))
    assert credential_header("anthropic") == "x-api-key"


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"type":"error","error":{"type":"api_error","message":"no"}}', b"event: x\n"]
)
def test_what_is_no_message(body: bytes) -> None:
    assert isinstance(decode(OURS, GenerationRequest("m", messages=(USER,)), [body])[-1], Failure)


def test_embeddings_of_texts_and_tokens() -> None:
    ours = dialect("tei")
    job = EmbeddingRequest("e", (Prompt("a"), Prompt(tokens=(3,))), dimensions=1)
    assert msgspec.json.decode(ours.encode(job).body) == {"inputs": ["a", [3]], "dimensions": 1}
    events = decode(ours, job, [b"[[1],[2]]"])
    assert events == [Started(), *(Item(Embedding(n, struct.pack("<f", n + 1))) for n in (0, 1))]
    for body in (b"[[1]]", b"[[1],[]]", b'{"error":"no","error_type":"Backend"}', b"{}", b"[[1],[1e999]]"):
        assert isinstance(decode(ours, job, [body])[-1], Failure)
    with pytest.raises(UnsupportedParameter):
        ours.encode(GenerationRequest("e", prompts=(Prompt("a"),)))
    busy = ours.failure(429, {}, b'{"error":"Model is overloaded","error_type":"Overloaded"}')
    assert (busy.status, busy.code) == (503, "upstream_overloaded")
    refused = ours.failure(422, {}, b'{"error":"batch size 33 > maximum allowed batch size 32","error_type":"Validation"}')
    assert refused.status == 400
