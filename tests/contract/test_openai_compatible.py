"""`openai_compatible` and its quirks against fixtures of a dozen servers."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.core.events import Item
from backends.dialects.server_quirks import QUIRKS
from backends.registry import dialect
from tests.contract.cases import Case, cases, check_answer, check_error, check_request, cut, decode, job_of

ALL = cases("openai_compatible")
GOOD = [case for case in ALL if case.upstream["status"] == 200]
BAD = [case for case in ALL if case.upstream["status"] != 200]


@pytest.mark.parametrize("case", ALL, ids=str)
def test_request(case: Case) -> None:
    ours = dialect("openai_compatible", case.quirks)
    job = job_of(case, ours)
    request = ours.encode(job)
    body = msgspec.json.decode(request.body)
    assert (request.method, f"/v1{request.path}") == ("POST", case.endpoint)
    check_request(case, body)
    if case.client_request.get("stream"):
        assert body["stream"] is True
        if QUIRKS[case.quirks].stream_usage:
            assert body["stream_options"] == {"include_usage": True}
    assert ours.encode(job) == request


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_answer_at_the_given_splits(case: Case) -> None:
    ours = dialect("openai_compatible", case.quirks)
    job = job_of(case, ours)
    events = decode(ours, job, cut(case.body, case.upstream["splits"]))
    assert events == decode(ours, job, [case.body])
    check_answer(case, events)
    if "embedding" in case.expect:
        vectors = [event.value.vector for event in events if isinstance(event, Item)]
        assert vectors == [struct.pack("<3f", *case.expect["embedding"])]


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_answer_at_any_split(case: Case) -> None:
    ours = dialect("openai_compatible", case.quirks)
    job = job_of(case, ours)
    whole = decode(ours, job, [case.body])

    @settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(st.lists(st.integers(0, len(case.body)), max_size=20))
    def any_split(splits: list[int]) -> None:
        assert decode(ours, job, cut(case.body, splits)) == whole

    any_split()


@pytest.mark.parametrize("case", BAD, ids=str)
def test_status(case: Case) -> None:
    error = dialect("openai_compatible", case.quirks).failure(case.upstream["status"], case.upstream["headers"], case.body)
    check_error(case, error)
    if "headers_forwarded" in case.expect:
        assert error.retry_after_ms == 1000 * int(case.upstream["headers"]["retry-after"])
    if case.expect.get("retryable"):
        assert error.retriable
