"""Decoders never raise and never break the grammar, whatever a backend sends."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.core.events import Failure, Finish
from backends.registry import dialect
from tests.contract.cases import cases, cut, decode, job_of

SCRAPS = st.sampled_from(
    [
        *(b"null", b'"', b"{", b"}", b"[", b"\n", b"\n\n", b"\r", b",", b":", b"-1", b"1e999", b"\xff", b"\\ud800", b"[DONE]"),
        *(b"", b"data: ", b'"index":7', b'"choices":{}', b'"error":{"code":[]}', b"true", b"0.5", b'"content":3', b"9" * 40),
    ]
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), SCRAPS), max_size=4)


@pytest.mark.parametrize(
    "name",
    [
        "openai_compatible",
        "llamacpp",
        "ollama",
        "tgi",
        "triton",
        "sglang",
        "lmdeploy",
        "lightllm",
        "tei",
        "anthropic",
        "chinese_alpaca",
        "ffm",
        "jquesnelle",
    ],
)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_mutated_body_gives_events_in_order(name: str, data: st.DataObject) -> None:
    case = data.draw(st.sampled_from([case for case in cases(name) if case.upstream["status"] == 200]))
    ours = dialect(name, case.quirks, case.options)
    job = job_of(case, ours)
    body = case.body
    for where, length, scrap in data.draw(EDITS):
        at = int(where * len(body))
        body = body[:at] + scrap + body[at + length :]
    whole = decode(ours, job, [body])
    assert decode(ours, job, cut(body, data.draw(st.lists(st.integers(0, len(body)), max_size=8)))) == whole
    assert whole
    failures = [event for event in whole if isinstance(event, Failure)]
    assert len(failures) <= 1
    if not failures and case.expect.get("text") is not None:
        assert any(isinstance(event, Finish) for event in whole)
    assert all(len(failure.message.encode()) <= 1024 for failure in failures)
