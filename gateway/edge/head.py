"""A request's head: the fields that framing hangs on, and the ASGI scope."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import httptools
import msgspec

from gateway.edge.limits import malformed, not_supported


class Framing(msgspec.Struct, frozen=True, gc=False):
    """`expects`: the client waits for 100-continue before it sends its body of `length` bytes (None: not stated).

    `first`: the first header of each name.
    """

    expects: bool
    length: int | None
    first: Mapping[bytes, bytes]


def facts(transport: asyncio.BaseTransport) -> dict[str, Any]:
    """What a connection's scopes have in common."""
    return {
        "server": _address(transport, "sockname"),
        "client": _address(transport, "peername"),
        "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
    }


def _address(transport: asyncio.BaseTransport, name: str) -> tuple[str, int] | None:
    info = transport.get_extra_info(name)
    return (str(info[0]), int(info[1])) if isinstance(info, (tuple, list)) and len(info) >= 2 else None


def framing(headers: Sequence[tuple[bytes, bytes]], version: str) -> Framing:
    """What the headers say about the body; llhttp has checked digits, repeats and length beside chunked.

    Raises:
        Refused: another HTTP than 1.0 and 1.1 (llhttp reads 0.9 and 2.0 too), another transfer coding than chunked, any
            in HTTP/1.0, or not exactly one Host (none is fine in HTTP/1.0).
    """
    if version not in ("1.1", "1.0"):
        raise not_supported("The only supported versions are HTTP/1.1 and HTTP/1.0.")
    http10 = version == "1.0"
    fields = dict(reversed(headers))
    if b"host" not in fields:
        if not http10:
            raise not_supported("The request must have exactly one Host header.")
    elif len(fields) != len(headers) and sum(name == b"host" for name, _ in headers) > 1:
        raise not_supported("The request must have exactly one Host header.")
    if b"transfer-encoding" in fields:
        if http10:  # RFC 9112 6.1: whoever stands before us may have read another framing
            raise not_supported("There are no transfer codings in HTTP/1.0.")
        for name, value in headers:
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise not_supported("The only supported transfer coding is chunked.")
    length = fields.get(b"content-length")
    expects = b"expect" in fields and not http10 and fields[b"expect"].strip().lower() == b"100-continue"
    return Framing(expects, None if length is None else int(length), fields)


def scope(
    method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]], connection: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """The ASGI scope; `connection` holds what is the same for all requests of a connection.

    Raises:
        Refused: the target is no URL.
    """
    try:
        url = httptools.parse_url(target)
        raw_path: bytes = url.path or b"/"
        path = raw_path.decode("ascii")
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
        raise malformed() from None
    return {
        **connection,
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "root_path": "",
        "method": method,
        "path": urllib.parse.unquote(path) if "%" in path else path,
        "raw_path": raw_path,
        "query_string": url.query or b"",
        "headers": headers,
    }
