"""What a client connection may take, and the refusals of the connection layer."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True):
    """Seconds and bytes.

    `head_s`: from connecting, or from a head's first byte, to its end. `body_s`: between two pieces of a body.
    `client_stall_s`: how long a client may leave an answer unread. `linger_s`: how long what a refused client still
    sends is read and thrown away, so that it can read the answer (closing with unread bytes resets the connection).
    `max_pipelined` requests and `max_ahead_bytes` of their bodies may wait behind the one being answered.
    """

    max_header_fields: int = 100
    max_head_bytes: int = 32 * 1024
    head_s: float = 10.0
    body_s: float = 10.0
    keepalive_s: float = 75.0
    client_stall_s: float = 30.0
    linger_s: float = 2.0
    max_pipelined: int = 8
    max_ahead_bytes: int = 64 * 1024
    write_high_water: int = 64 * 1024


class Refused(Exception):
    """Raised in a parser callback; the parser stops and the client is told."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def malformed() -> Refused:
    """What is not HTTP, or not the part of it that is spoken here."""
    return Refused(400, "invalid_http", "The request is not valid HTTP.")


def not_supported(what: str) -> Refused:
    """HTTP that is not spoken here."""
    return Refused(400, "invalid_http", what)


def head_too_large(limits: Limits) -> Refused:
    """More than `max_head_bytes`."""
    return Refused(431, "headers_too_large", f"The request's head is larger than {limits.max_head_bytes} bytes.")


def too_many_fields(limits: Limits) -> Refused:
    """More than `max_header_fields`."""
    return Refused(431, "headers_too_large", f"The request has more than {limits.max_header_fields} header fields.")


def slow_head() -> Refused:
    """No complete head in `head_s`."""
    return Refused(408, "request_timeout", "The request's head did not arrive in time.")
