"""Error envelopes, what they mean, and what of them a client may read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.core.errors import (
    BackendError,
    UpstreamOverloaded,
    UpstreamRefused,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from backends.parsing.failures import envelope, event, failure, protocol, retry_after_ms, stream_failure
from backends.parsing.sanitise import MAX_MESSAGE_BYTES, public

ENVELOPES = [
    (b'{"error":{"message":"m","type":"t","param":"p","code":"c"}}', ("m", "t", "c", "p", 0)),
    (b'{"error":{"message":"m","code":503}}', ("m", "", "", "", 503)),
    (b'{"error":{"message":"m","code":"429"}}', ("m", "", "429", "", 429)),
    (
        b'{"object":"error","message":"m","type":"BadRequestError","param":null,"code":400}',
        ("m", "BadRequestError", "", "", 400),
    ),
    (b'{"error":"m"}', ("m", "", "", "", 0)),
    (b'{"error":"m","error_type":"overloaded"}', ("m", "overloaded", "", "", 0)),
    (b'{"error":{"message":"m","http_status_code":422}}', ("m", "", "", "", 422)),
    (b'{"detail":"m"}', ("m", "", "", "", 0)),
    (b'{"detail":[{"loc":["body","top_p"],"msg":"m","input":"SECRET"}]}', ("top_p: m", "", "", "top_p", 0)),
    (b'{"message":"m"}', ("m", "", "", "", 0)),
    (b'{"text":"m","error_code":50001}', ("m", "", "", "", 500)),
    (b'data: {"error":"m"}\n\n', ("m", "", "", "", 0)),
    (b'[{"error":{"message":"m"}}]', ("m", "", "", "", 0)),
    (b'"m"', ("m", "", "", "", 0)),
    (b"plain m", ("plain m", "", "", "", 0)),
    (b"<html>m</html>", ("", "", "", "", 0)),
    (b'{"error": "a "quoted" m"}', ("", "", "", "", 0)),
    (b"", ("", "", "", "", 0)),
    (b"[" * 70000, ("", "", "", "", 0)),
    (b'{"text":"an answer"}', ("", "", "", "", 0)),
]


@pytest.mark.parametrize(("body", "said"), ENVELOPES)
def test_envelopes(body: bytes, said: tuple[str, str, str, str, int]) -> None:
    read = envelope(body)
    assert (read.message, read.type, read.code, read.param, read.status) == said
    assert len(read.raw) <= 4096


STATUSES: list[tuple[int, bytes, type[BackendError], int, str | None]] = [
    (401, b'{"error":"Unauthorized"}', UpstreamRefused, 502, "upstream_auth_failed"),
    (403, b"", UpstreamRefused, 502, "upstream_auth_failed"),
    (402, b"", UpstreamRefused, 502, "upstream_auth_failed"),
    (400, b'{"error":{"message":"bad top_p","param":"body.top_p","code":400}}', UpstreamRejected, 400, None),
    (422, b'{"error":"Input validation error: `temperature` must be positive"}', UpstreamRejected, 400, None),
    (413, b"too big", UpstreamRejected, 413, None),
    (410, b'{"error":{"message":"gone"}}', UpstreamRejected, 410, None),
    (451, b'{"error":{"message":"not here"}}', UpstreamRejected, 451, None),
    (
        422,
        b'{"error":"`inputs` must have less than 1024 tokens. Given: 2000"}',
        UpstreamRejected,
        400,
        "context_length_exceeded",
    ),
    (
        500,
        b'{"error":{"message":"request exceeds the available context size"}}',
        UpstreamRejected,
        400,
        "context_length_exceeded",
    ),
    (
        400,
        b'{"error":"prompt length (5000) exceeds maximum input length (4096)"}',
        UpstreamRejected,
        400,
        "context_length_exceeded",
    ),
    (
        400,
        b'{"error":{"message":"The input token count (9) exceeds the maximum number of tokens allowed (5)."}}',
        UpstreamRejected,
        400,
        "context_length_exceeded",
    ),
    (
        400,
        b'{"error":{"message":"\'user\' exceeds the maximum length of 64 characters","code":"long"}}',
        UpstreamRejected,
        400,
        "long",
    ),
    (
        400,
        b'{"object":"error","message":"Only a && b allowed now, your model x","code":40301}',
        UpstreamRejected,
        404,
        "model_not_found",
    ),
    (404, b'{"error":"model \'x\' not found"}', UpstreamRejected, 404, "model_not_found"),
    (404, b'{"error":{"message":"File Not Found","type":"not_found_error","code":404}}', UpstreamUnavailable, 502, None),
    (405, b"", UpstreamUnavailable, 502, None),
    (408, b"", UpstreamTimeout, 504, None),
    (417, b'{"message":"x"}', UpstreamUnavailable, 502, None),
    (424, b'{"error":"x","error_type":"generation"}', UpstreamUnavailable, 502, None),
    (429, b"", UpstreamOverloaded, 503, "upstream_overloaded"),
    (499, b"", UpstreamUnavailable, 502, None),
    (501, b'{"error":"This server does not support embeddings"}', UpstreamUnavailable, 502, None),
    (503, b'{"error":{"message":"Loading model"}}', UpstreamOverloaded, 503, "model_loading"),
    (504, b"", UpstreamTimeout, 504, None),
    (529, b"", UpstreamOverloaded, 503, "upstream_overloaded"),
    (302, b"", UpstreamUnavailable, 502, None),
    (400, b'{"object":"error","message":"CUDA","code":50002}', UpstreamUnavailable, 502, None),
    (400, b'{"object":"error","message":"no worker","code":50005}', UpstreamOverloaded, 503, None),
]


@pytest.mark.parametrize(("status", "body", "kind", "shown", "code"), STATUSES)
def test_statuses(status: int, body: bytes, kind: type[BackendError], shown: int, code: str | None) -> None:
    error = failure(status, {}, body)
    assert type(error) is kind
    assert error.status == shown
    assert code is None or error.code == code
    assert error.message
    again = BackendError.of(event(error))
    assert (type(again), again.message, again.code, again.detail) == (kind, error.message, error.code, error.detail)


def test_credentials_are_never_spoken_of() -> None:
    error = failure(401, {}, b'{"error":{"message":"Incorrect API key provided: sk-abcdefghij"}}')
    assert "sk-" not in error.message
    assert "sk-" not in error.detail


def test_the_log_gets_no_words_of_a_body() -> None:
    body = b'{"error":{"message":"PROMPT","type":"BadRequestError","code":"c-1"},"detail":[{"input":"PROMPT"}]}'
    assert failure(400, {}, body).detail == f"type BadRequestError, code c-1, an error body of {len(body)} characters"
    assert protocol("not a chunk", b'{"PROMPT"}').detail == "not a chunk: 10 bytes"


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "2"}, 2000),
        ({"retry-after": " 1.5 "}, 1500),
        ({"retry-after-ms": "250", "retry-after": "9"}, 250),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "999999999"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], wait: int | None) -> None:
    assert retry_after_ms(headers) == wait
    assert failure(429, headers, b"").retry_after_ms == wait


def test_stream_errors_blame_the_request_only_before_content() -> None:
    body = b'{"error":{"message":"top_p must be in (0, 1]","type":"invalid_request_error","code":400}}'
    assert isinstance(stream_failure(body, begun=False), UpstreamRejected)
    assert isinstance(stream_failure(body, begun=True), UpstreamUnavailable)
    assert isinstance(stream_failure(b'{"error":{"message":"x","type":"rate_limit_error"}}', begun=False), UpstreamOverloaded)
    assert isinstance(stream_failure(b'{"error":"boom"}', begun=False), UpstreamUnavailable)


LEAKS = [
    ("connect to http://10.0.0.7:8000/v1 failed", ("10.0.0.7", "8000", "http")),
    ("host gpu1.cluster.local:8000 is down", ("gpu1", "8000")),
    ("no route to 192.168.1.20", ("192.168",)),
    ("[::1]:8080 refused", ("::1",)),
    ("cannot open '/srv/models/llama/w.bin'", ("/srv", "w.bin")),
    ("cannot open C:\\models\\w.bin", ("models",)),
    ("Authorization: Bearer abc.def was wrong", ("abc.def",)),
    ("key sk-proj-abcdefgh123 is wrong", ("abcdefgh",)),
    (
        'x\nTraceback (most recent call last):\n  File "/opt/a/b.py", line 3, in f\n    secret()\nValueError: bad',
        ("secret", "/opt", "b.py"),
    ),
    ('oops File "b.py", line 3, in f', ("b.py",)),
]


@pytest.mark.parametrize(("text", "secrets"), LEAKS)
def test_nothing_leaks(text: str, secrets: tuple[str, ...]) -> None:
    shown = public(text)
    assert not [secret for secret in secrets if secret in shown]


@pytest.mark.parametrize(
    "text", ["This model's maximum context length is 4096 tokens.", "n must be <= 8 (got 9/8), see top_p and temperature"]
)
def test_plain_messages_are_kept(text: str) -> None:
    assert public(text) == text


@given(st.text(st.characters(codec=None)))
def test_public_text_is_one_bounded_encodable_line(text: str) -> None:
    shown = public(text * 40)
    assert len(shown.encode()) <= MAX_MESSAGE_BYTES
    assert shown.isprintable()


@given(st.integers(100, 599), st.binary(max_size=80))
def test_any_status_and_body_give_an_error(status: int, body: bytes) -> None:
    error = failure(status, {}, body)
    assert 400 <= error.status <= 599
    assert 0 < len(error.message.encode()) <= MAX_MESSAGE_BYTES
