"""The native `llamacpp` dialect against fixtures of today's server and of 2023's."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.core.errors import UpstreamProtocol
from backends.core.events import Embedding, Failure, Item, Started
from backends.core.request import EmbeddingRequest, GenerationRequest, Message, Output, Prompt, Sampling, Text, Tool
from backends.dialects.llamacpp import template_request, templated_prompt, tokenize_request, tokens_of
from backends.registry import dialect
from tests.contract.cases import Case, cases, check_answer, check_error, check_request, cut, decode, job_of

ALL = cases("llamacpp")
GOOD = [case for case in ALL if case.upstream["status"] == 200]
BAD = [case for case in ALL if case.upstream["status"] != 200]
OURS = dialect("llamacpp")


@pytest.mark.parametrize("case", ALL, ids=str)
def test_request(case: Case) -> None:
    request = OURS.encode(job_of(case, OURS), [Prompt("P")])
    body = msgspec.json.decode(request.body)
    assert request.path == "/completion"
    assert body["prompt"] == "P"
    check_request(case, body)


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


def test_error_field_in_mid_stream_is_an_error() -> None:
    job = GenerationRequest("m", prompts=(Prompt("P"),), stream=True)
    body = (
        b'data: {"index":0,"content":"a","stop":false}\n\nerror: {"code":500,"message":"slot died","type":"server_error"}\n\n'
    )
    events = decode(OURS, job, [body])
    assert isinstance(events[-1], Failure)
    assert (events[-1].kind, events[-1].message) == ("unavailable", "slot died")


def test_every_sampling_parameter_and_output_form_has_its_name() -> None:
    sampling = Sampling(
        max_tokens=5, temperature=0.0, top_k=3, repetition_penalty=1.2, mirostat=2, ignore_eos=True, logit_bias=((7, -1.0),)
    )
    job = GenerationRequest("m", prompts=(Prompt(tokens=(1, 2)), Prompt("b")), sampling=sampling, top_logprobs=0)
    assert msgspec.json.decode(OURS.encode(job).body) == {
        **{"prompt": [[1, 2], "b"], "stream": False, "n_predict": 5, "temperature": 0.0, "top_k": 3, "n_probs": 1},
        **{"repeat_penalty": 1.2, "mirostat": 2, "ignore_eos": True, "logit_bias": [[7, -1.0]]},
    }
    schema = msgspec.Raw(b'{"type": "object"}')
    shaped = msgspec.structs.replace(job, output=Output("json_schema", schema=schema))
    assert b'"json_schema":{"type": "object"}' in OURS.encode(shaped).body
    with pytest.raises(ValueError, match="chat template"):
        OURS.encode(GenerationRequest("m", messages=(Message("user", (Text("hi"),)),)))


def test_embeddings_in_the_order_of_the_inputs() -> None:
    job = EmbeddingRequest("e", (Prompt("a"), Prompt(tokens=(3,))))
    request = OURS.encode(job)
    assert (request.path, msgspec.json.decode(request.body)) == ("/embedding", {"content": ["a", [3]]})
    body = b'[{"index":1,"embedding":[[0.5,1]]},{"index":0,"embedding":[[0.25,-1.5]]}]'
    first, second = struct.pack("<2f", 0.25, -1.5), struct.pack("<2f", 0.5, 1)
    assert decode(OURS, job, [body]) == [Started(), Item(Embedding(0, first)), Item(Embedding(1, second))]
    per_token = b'[{"index":0,"embedding":[[1],[2]]},{"index":1,"embedding":[[1]]}]'
    assert decode(OURS, job, [per_token])[0].kind == "protocol"  # type: ignore[union-attr]
    assert decode(OURS, job, [b'[{"index":0,"embedding":[[1]]}]'])[0].kind == "protocol"  # type: ignore[union-attr]


def test_template_and_tokens_are_asked_of_the_server() -> None:
    tool = Tool("f", parameters=msgspec.Raw(b'{"a":1}'))
    request = template_request((Message("developer", (Text("x"),)),), (tool,))
    assert request.path == "/apply-template"
    body = msgspec.json.decode(request.body)
    assert body["messages"] == [{"role": "system", "content": "x"}]
    assert body["tools"][0]["function"] == {"name": "f", "parameters": {"a": 1}}
    assert templated_prompt(b'{"prompt":"P"}') == Prompt("P")
    asked = msgspec.json.decode(tokenize_request("<|im_end|>", parse_special=False).body)
    assert asked == {"content": "<|im_end|>", "add_special": False, "parse_special": False}
    assert tokens_of(b'{"tokens":[639]}') == (639,)
    for parse in (templated_prompt, tokens_of):
        with pytest.raises(UpstreamProtocol):
            parse(b"<html>")
