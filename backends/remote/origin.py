"""Where a deployment's server is and what is sent with every request: base URL, credential, TLS. Without I/O.

The request head is built and checked here, so a dialect can neither choose the host nor smuggle a header.
Source: RFC 9110 §5 (fields), RFC 9112 §3 (request line, Host).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from backends.core.contracts import UpstreamRequest

_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+").fullmatch
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch
_TARGET = re.compile(r"/[\x21-\x7e]*").fullmatch
_HOST = re.compile(r"[0-9A-Za-z._\-]+|[0-9A-Fa-f:.]+").fullmatch

#: Heads kept ready: a dialect has a handful, but a path may name a model.
MAX_KNOWN = 64
_WITHOUT_BODY = frozenset({"GET", "HEAD", "DELETE"})
#: Fields that only the transport may write.
RESERVED = frozenset(
    {
        "host",
        "authorization",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "accept-encoding",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "user-agent",
    }
)


class Credential(msgspec.Struct, frozen=True):
    """A secret and the header that carries it. `header` "authorization" carries it as a bearer token."""

    secret: str
    header: str = "authorization"

    def __repr__(self) -> str:
        return "Credential(…)"

    def field(self) -> tuple[str, str]:
        """Header name (lower case) and value.

        Raises:
            ValueError: it cannot be a header; the message does not show it.
        """
        name = self.header.lower()
        value = f"Bearer {self.secret}" if name == "authorization" else self.secret
        if not _TOKEN(name) or not _VALUE(value):
            raise ValueError("the credential cannot be sent as a header")
        return name, value


class Origin(msgspec.Struct, frozen=True):
    """Scheme, host, port and base path of a `base_url`. `host` has no brackets; `prefix` has no trailing slash."""

    scheme: Literal["http", "https"]
    host: str
    port: int
    prefix: str

    @classmethod
    def parse(cls, base_url: str) -> Origin:
        """Take a base URL apart.

        Raises:
            ValueError: says what is wrong, without repeating the URL (it may hold a secret).
        """
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https"):
            raise ValueError("a base_url begins with http:// or https://")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a base_url has no user or password; use `credential`")
        if parts.query or parts.fragment:
            raise ValueError("a base_url has no query and no fragment")
        host = parts.hostname or ""
        try:
            host = host if host.isascii() else host.encode("idna").decode("ascii")
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:  # UnicodeError is one
            raise ValueError("the host or port of a base_url is not valid") from None
        prefix = parts.path.rstrip("/")
        if not _HOST(host) or (prefix and not _TARGET(prefix)):
            raise ValueError("the host or path of a base_url is not valid")
        return cls("https" if parts.scheme == "https" else "http", host, port, prefix)

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    def __repr__(self) -> str:
        return f"Origin({self.scheme})"


def tls_context(*, verify: bool = True, ca_file: str | None = None) -> ssl.SSLContext:
    """TLS as a client: the system's authorities (or those of `ca_file` alone), host names checked, TLS 1.2 or newer."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class RequestHeads:
    """Builds the head of each request to one origin: `head(request)` is everything up to the body."""

    def __init__(self, origin: Origin, credential: Credential | None = None) -> None:
        self._prefix = origin.prefix
        self._reserved = RESERVED
        fixed = [("host", origin.authority), ("accept-encoding", "identity"), ("user-agent", "switchyard")]
        if credential is not None:
            fixed.append(field := credential.field())
            self._reserved |= {field[0]}
        self._known: dict[tuple[object, ...], bytes] = {}
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in fixed)

    def head(self, request: UpstreamRequest) -> bytes:
        """The request line and all fields with the blank line.

        Raises:
            ValueError: a method, path or field that could not be sent as it is, or that only the transport may write;
                a bug of a dialect. Values are not shown.
        """
        method, path, headers = request.method, request.path, request.headers
        key = (method, path, *headers.items())
        head = self._known.get(key)
        if head is None:
            head = self._checked(method, path, headers)
            if len(self._known) < MAX_KNOWN:
                self._known[key] = head
        if request.body or method not in _WITHOUT_BODY:
            return b"%bcontent-length: %d\r\n\r\n" % (head, len(request.body))
        return head + b"\r\n"

    def _checked(self, method: str, path: str, headers: Mapping[str, str]) -> bytes:
        target = self._prefix + path
        if not _TOKEN(method) or not _TARGET(path) or not _TARGET(target):
            raise ValueError("the request line is not valid")
        lines = [f"{method} {target} HTTP/1.1\r\n{self._fixed}"]
        for name, value in headers.items():
            if not _TOKEN(name) or not _VALUE(value):
                raise ValueError(f"header {name[:64]!r} is not valid")
            if name.lower() in self._reserved:
                raise ValueError(f"header {name!r} belongs to the transport")
            lines.append(f"{name}: {value}\r\n")
        return "".join(lines).encode("latin-1")
