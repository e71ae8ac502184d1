"""OpenAI's error envelope, before and inside a stream.

All four keys are always there; `code` is a string or null. The SDK raises on any SSE `data` whose JSON has a truthy
top-level `error`; nothing may follow, no `[DONE]` either. Source: openai-openapi `ErrorResponse`; openai-python 3.52
`_streaming.py`.
"""

from __future__ import annotations

import msgspec

from backends.core.errors import GatewayError
from gateway.protocols.json_text import quoted


def envelope(message: str, kind: str, param: str | None = None, code: str | None = None) -> bytes:
    """The JSON body of an error."""
    return b'{"error":{"message":%b,"type":%b,"param":%b,"code":%b}}' % (
        quoted(message),
        quoted(kind),
        b"null" if param is None else quoted(param),
        b"null" if code is None else quoted(code),
    )


def render(error: GatewayError, *, in_stream: bool) -> bytes:
    """An error as a JSON body, or as one SSE event."""
    body = envelope(error.message, error.type, error.param, error.code)
    return b"data: " + body + b"\n\n" if in_stream else body


class ErrorDetail(msgspec.Struct):
    """OpenAI's `Error`, for the OpenAPI page."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct):
    """OpenAI's `ErrorResponse`, for the OpenAPI page."""

    error: ErrorDetail
