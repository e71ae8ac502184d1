"""The `ollama` dialect against its fixtures."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.core.errors import BadRequest, UnsupportedParameter
from backends.core.events import Embedding, Failure, Finish, Item, Started, ToolCallDelta
from backends.core.request import (
    EmbeddingRequest,
    GenerationRequest,
    ImageInput,
    Message,
    Prompt,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
)
from backends.core.usage import Usage
from backends.registry import dialect
from tests.contract.cases import Case, cases, check_answer, check_error, check_request, cut, decode, job_of

ALL = cases("ollama")
GOOD = [case for case in ALL if case.upstream["status"] == 200]
BAD = [case for case in ALL if case.upstream["status"] != 200]
OURS = dialect("ollama")
CHAT = GenerationRequest("m", messages=(Message("user", (Text("hi"),)),), stream=True)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_request(case: Case) -> None:
    request = OURS.encode(job_of(case, OURS))
    assert request.path == case.upstream["path"]
    check_request(case, msgspec.json.decode(request.body))


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_answer_at_the_given_splits_and_at_any(case: Case) -> None:
    job = job_of(case, OURS)
    whole = decode(OURS, job, [case.body])
    check_answer(case, whole)
    assert decode(OURS, job, cut(case.body, case.upstream["splits"])) == whole

    @settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(st.lists(st.integers(0, len(case.body)), max_size=20))
    def any_split(splits: list[int]) -> None:
        assert decode(OURS, job, cut(case.body, splits)) == whole

    any_split()


@pytest.mark.parametrize("case", BAD, ids=str)
def test_status(case: Case) -> None:
    check_error(case, OURS.failure(case.upstream["status"], case.upstream["headers"], case.body))


def test_two_calls_on_two_lines_without_ids() -> None:
    line = b'{"model":"m","message":{"tool_calls":[{"function":{"name":"f","arguments":{"a":1}}}]},"done":false}\n'
    events = decode(OURS, CHAT, [line + line + b'{"done":true,"done_reason":"stop","prompt_eval_count":3,"eval_count":2}'])
    calls = [ToolCallDelta(n, f"call_{n}", "f", '{"a":1}') for n in (0, 1)]
    assert events == [Started("m"), *calls, Finish("tool_calls"), Usage(3, 2)]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"message":{"content":"a"},"done":true,"done_reason":""}', "truncated"),
        (b'{"message":{"content":"a"},"done":false}\n{"mess', "truncated"),
        (b"", "truncated"),
        (b"<html>", "protocol"),
        (b'{"error":"model \'m\' not found"}', "unavailable"),
    ],
)
def test_what_is_no_answer(body: bytes, kind: str) -> None:
    last = decode(OURS, CHAT, [body])[-1]
    assert isinstance(last, Failure)
    assert last.kind == kind


def test_messages_tools_and_images() -> None:
    turns = (
        Message("user", (Text("see"), ImageInput("data:image/png;base64,QQ=="))),
        Message("assistant", reasoning="hm", tool_calls=(ToolCall("c1", "f", '{"a": 1}'),)),
        Message("tool", (Text("1"),), tool_call_id="c1"),
    )
    job = GenerationRequest("m", messages=turns, tools=(Tool("f"),))
    body = msgspec.json.decode(OURS.encode(job).body)
    assert body["messages"] == [
        {"role": "user", "content": "see", "images": ["QQ=="]},
        {
            "role": "assistant",
            "content": "",
            "thinking": "hm",
            "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "1", "tool_name": "f"},
    ]
    assert body["tools"][0]["function"]["name"] == "f"
    without = msgspec.structs.replace(job, tool_choice=ToolChoice("none"))
    assert "tools" not in msgspec.json.decode(OURS.encode(without).body)
    remote = GenerationRequest("m", messages=(Message("user", (ImageInput("https://example.com/a.png"),)),))
    with pytest.raises(UnsupportedParameter):
        OURS.encode(remote)
    escaping = ToolCall("c", "f", '{}},"options":{"num_predict":99999}')
    with pytest.raises(BadRequest, match="JSON object"):
        OURS.encode(GenerationRequest("m", messages=(Message("assistant", tool_calls=(escaping,)),)))
    with pytest.raises(UnsupportedParameter):
        OURS.encode(GenerationRequest("m", prompts=(Prompt("a"), Prompt("b"))))


def test_embeddings() -> None:
    job = EmbeddingRequest("e", (Prompt("a"), Prompt("b")))
    request = OURS.encode(job)
    assert (request.path, msgspec.json.decode(request.body)) == ("/api/embed", {"model": "e", "input": ["a", "b"]})
    events = decode(OURS, job, [b'{"model":"e","embeddings":[[1],[2]],"prompt_eval_count":4}'])
    vectors = [Item(Embedding(n, struct.pack("<f", n + 1))) for n in (0, 1)]
    assert events == [Started("e"), *vectors, Usage(4, 0)]
    assert isinstance(decode(OURS, job, [b'{"error":"no"}'])[0], Failure)
    assert isinstance(decode(OURS, job, [b'{"embeddings":[[1]]}'])[0], Failure)


@pytest.mark.parametrize("count", [-1, 10**9, 10**18])
def test_counts_that_cannot_be_true_are_no_usage(count: int) -> None:
    line = b'{"message":{"content":"a"}}\n'
    done = b'{"done":true,"done_reason":"stop","prompt_eval_count":%d,"eval_count":2}' % count
    assert not any(isinstance(event, Usage) for event in decode(OURS, CHAT, [line, done]))
