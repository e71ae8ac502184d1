"""Base URLs, credentials and the request head: what may be sent, and what may not."""

from __future__ import annotations

import ssl

import pytest

from backends.core.contracts import UpstreamRequest
from backends.remote.origin import Credential, Origin, RequestHeads, tls_context


@pytest.mark.parametrize(
    ("url", "scheme", "host", "port", "prefix", "authority"),
    [
        ("http://gpu1:8000/v1", "http", "gpu1", 8000, "/v1", "gpu1:8000"),
        ("http://gpu1:8000/v1/", "http", "gpu1", 8000, "/v1", "gpu1:8000"),
        ("https://api.example.com", "https", "api.example.com", 443, "", "api.example.com"),
        ("https://api.example.com:443/a/b", "https", "api.example.com", 443, "/a/b", "api.example.com"),
        ("http://[::1]:80", "http", "::1", 80, "", "[::1]"),
        ("http://[fe80::1]:8080/v1", "http", "fe80::1", 8080, "/v1", "[fe80::1]:8080"),
        ("http://bücher.example/v1", "http", "xn--bcher-kva.example", 80, "/v1", "xn--bcher-kva.example"),
    ],
)
def test_base_url(url: str, scheme: str, host: str, port: int, prefix: str, authority: str) -> None:
    origin = Origin.parse(url)
    assert (origin.scheme, origin.host, origin.port, origin.prefix, origin.authority) == (scheme, host, port, prefix, authority)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/",
        "x",
        "http://",
        "http://user:secret@x/",
        "http://x/?key=secret",
        "http://x/#secret",
        "http://x:99999/",
        "http://x:secret/",
        "http://a b/",
        "http://x/a b",
        "http://x/\u00e9",
        "http://ho%73t/",
    ],
)
def test_bad_base_urls_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        Origin.parse(url)
    assert "secret" not in str(caught.value)


def test_head_has_host_credential_and_length() -> None:
    heads = RequestHeads(Origin.parse("http://h:81/v1"), Credential("sk-1"))
    head = heads.head(UpstreamRequest("POST", "/chat", {"Content-Type": "application/json"}, b"12345"))
    assert head == (
        b"POST /v1/chat HTTP/1.1\r\nhost: h:81\r\naccept-encoding: identity\r\nuser-agent: switchyard\r\n"
        b"authorization: Bearer sk-1\r\nContent-Type: application/json\r\ncontent-length: 5\r\n\r\n"
    )


def test_other_credential_header_and_empty_bodies() -> None:
    heads = RequestHeads(Origin.parse("http://h"), Credential("k", header="X-Api-Key"))
    assert b"x-api-key: k\r\n" in heads.head(UpstreamRequest("GET", "/", {}, b""))
    assert b"content-length" not in heads.head(UpstreamRequest("GET", "/", {}, b""))
    assert heads.head(UpstreamRequest("POST", "/", {}, b"")).endswith(b"content-length: 0\r\n\r\n")


@pytest.mark.parametrize(
    "headers",
    [
        {"x": "a\r\nx-evil: 1"},
        {"x": "a\n"},
        {"x\r\ny": "a"},
        {"x y": "a"},
        {"": "a"},
        {"x": "a\x00"},
        {"x": "\u4e16"},
        {"Host": "other"},
        {"authorization": "Bearer mine"},
        {"Content-Length": "1"},
        {"transfer-encoding": "chunked"},
        {"connection": "close"},
        {"Accept-Encoding": "gzip"},
        {"x-api-key": "mine"},
    ],
)
def test_headers_that_a_dialect_may_not_send(headers: dict[str, str]) -> None:
    heads = RequestHeads(Origin.parse("http://h"), Credential("top-secret", header="x-api-key"))
    with pytest.raises(ValueError) as caught:
        heads.head(UpstreamRequest("POST", "/", headers, b""))
    assert "top-secret" not in str(caught.value)
    assert "evil" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PO ST", "/"),
        ("", "/"),
        ("GET", "x"),
        ("GET", "/ HTTP/1.1\r\nx: y"),
        ("GET", "/\r\n"),
        ("GET", "/a b"),
        ("GET", "//\u00e9"),
    ],
)
def test_request_lines_that_cannot_be_sent(method: str, path: str) -> None:
    with pytest.raises(ValueError, match="request line"):
        RequestHeads(Origin.parse("http://h/v1")).head(UpstreamRequest(method, path, {}, b""))


@pytest.mark.parametrize("secret", ["a\r\nb: c", "a\n", "\u4e16"])
def test_a_credential_that_is_no_header(secret: str) -> None:
    with pytest.raises(ValueError, match="credential") as caught:
        RequestHeads(Origin.parse("http://h"), Credential(secret))
    assert secret not in str(caught.value)


def test_nothing_shows_the_secret() -> None:
    assert "sk-1" not in repr(Credential("sk-1"))
    assert "gpu1" not in repr(Origin.parse("http://gpu1/"))


def test_tls_verifies_by_default() -> None:
    context = tls_context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert tls_context(verify=False).verify_mode == ssl.CERT_NONE
