import pytest

from backends.core.errors import UpstreamRejected, UpstreamUnavailable
from gateway.pipeline.injected import OutputCapRefused, blamed

VLLM = (
    "This model's maximum context length is 4096 tokens. However, you requested 4500 tokens (400 in the messages, 4100 in "
    "the completion). Please reduce the length of the messages or completion."
)


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRejected("max_tokens is too large: 99999", param="max_tokens", status=400),
        UpstreamRejected("Invalid value for `max_completion_tokens`", status=422),
        UpstreamRejected("no", param="max_completion_tokens"),
        UpstreamRejected(VLLM, code="context_length_exceeded"),
        UpstreamRejected(VLLM),
    ],
)
def test_a_refusal_of_our_cap_is_not_the_clients_fault(error):
    ours = blamed(error, 4100, 400)
    assert isinstance(ours, OutputCapRefused)
    assert (ours.status, ours.retriable, ours.param, ours.code) == (502, True, None, "output_cap_refused")
    assert error.message not in ours.message
    assert blamed(error, 0, 400) is error  # the client's own cap


@pytest.mark.parametrize(
    "error",
    [
        UpstreamRejected("temperature is too hot", param="temperature"),
        UpstreamRejected("the prompt is too long", code="context_length_exceeded"),
        UpstreamUnavailable("max_tokens"),
    ],
)
def test_anything_else_stays_what_it_was(error):
    assert blamed(error, 4100, 400) is error


def test_a_prompt_that_may_not_fit_stays_the_clients():
    error = UpstreamRejected(VLLM)
    assert blamed(error, 16, 4096) is error
