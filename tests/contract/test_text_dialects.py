"""Dialects of servers that generate text in records of their own, against their fixtures."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.core.contracts import Dialect
from backends.core.fold import fold
from backends.core.request import GenerationRequest, Prompt
from backends.registry import credential_header, dialect
from tests.contract.cases import Case, cases, check_answer, check_error, check_request, cut, decode, job_of, told
from tests.contract.recorded import recorded

NAMES = ("tgi", "triton", "sglang", "lmdeploy", "lightllm", "chinese_alpaca", "ffm", "jquesnelle")
ALL = [(name, case) for name in NAMES for case in cases(name)]
GOOD = [(name, case) for name, case in ALL if case.upstream["status"] == 200]
BAD = [(name, case) for name, case in ALL if case.upstream["status"] != 200]


def of(name: str, case: Case) -> Dialect:
    return dialect(name, case.quirks, case.options)


@pytest.mark.parametrize(("name", "case"), ALL, ids=str)
def test_request(name: str, case: Case) -> None:
    ours = of(name, case)
    job = job_of(case, ours)
    renamed = msgspec.structs.replace(job, model=(case.upstream["path"] or "").split("/")[3]) if name == "triton" else job
    prompts = [Prompt("P")] if ours.needs_prompt else []
    request = ours.encode(renamed, prompts)
    assert request.path == case.upstream["path"] or case.upstream["path"] in ("/", None)
    check_request(case, msgspec.json.decode(request.body))
    assert ours.encode(renamed, prompts) == request
    wanted = (case.upstream_request_expect or {}).get("headers", {})
    if wanted:
        assert request.headers["x-api-host"] == wanted["X-API-HOST"]
        assert credential_header(name) == "x-api-key"


@pytest.mark.parametrize(("name", "case"), GOOD, ids=str)
def test_answer_at_the_given_splits_and_at_any(name: str, case: Case) -> None:
    ours = of(name, case)
    job, headers = job_of(case, ours), case.upstream["headers"]
    whole = decode(ours, job, [case.body], headers)
    check_answer(case, whole)
    assert decode(ours, job, cut(case.body, case.upstream["splits"]), headers) == whole
    _, error = told(whole)
    for hidden in case.expect.get("error_message_excludes", ()):
        assert error is not None and hidden not in error.message

    @settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(st.lists(st.integers(0, len(case.body)), max_size=20))
    def any_split(splits: list[int]) -> None:
        assert decode(ours, job, cut(case.body, splits), headers) == whole

    any_split()


@pytest.mark.parametrize(("name", "case"), BAD, ids=str)
def test_status(name: str, case: Case) -> None:
    check_error(case, of(name, case).failure(case.upstream["status"], case.upstream["headers"], case.body))


def test_a_real_triton() -> None:
    ours = dialect("triton")
    job = GenerationRequest("ensemble", prompts=(Prompt("hello big world"),), stream=True)
    streamed = decode(ours, job, [recorded("triton.generate_stream").body])
    assert "".join(fold(streamed).choices[0].text) == "echo: hello big world "
    whole = fold(decode(ours, job, [recorded("triton.generate").body]))
    assert "".join(whole.choices[0].text) == "echo: hello "
    assert (whole.choices[0].finish, whole.usage) == ("stop", None)
    response = recorded("triton.err_model")
    error = ours.failure(response.status, response.headers, response.body)
    assert (error.status, error.code) == (404, "model_not_found")
