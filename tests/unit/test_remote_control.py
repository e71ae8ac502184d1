"""The client for what is not hot: bounds, no redirects, credentials, errors without addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import respx

from backends.core.contracts import UpstreamRequest
from backends.core.errors import BackendError, UpstreamProtocol, UpstreamTimeout, UpstreamTruncated, UpstreamUnavailable
from backends.remote.control import ControlClient
from backends.remote.origin import Credential, Origin

BASE = "http://gpu1:8000/v1"


@pytest.fixture
async def client() -> AsyncIterator[ControlClient]:
    client = ControlClient(Origin.parse(BASE), credential=Credential("sk-up"), timeout_s=1.0, max_body_bytes=1000)
    yield client
    await client.aclose()


@respx.mock
async def test_get_sends_the_credential_and_returns_any_status(client: ControlClient) -> None:
    route = respx.get(f"{BASE}/models").mock(return_value=httpx.Response(503, json={"a": 1}, headers={"Retry-After": "2"}))
    answer = await client.get("/models")
    assert (answer.status, answer.headers["retry-after"], answer.body) == (503, "2", b'{"a":1}')
    sent = route.calls.last.request
    assert sent.headers["authorization"] == "Bearer sk-up"
    assert sent.headers["accept-encoding"] == "identity"


@respx.mock
async def test_post_sends_its_body(client: ControlClient) -> None:
    route = respx.post(f"{BASE}/apply-template").mock(return_value=httpx.Response(200, content=b"ok"))
    await client.ask(UpstreamRequest("POST", "/apply-template", {"content-type": "application/json"}, b"{}"))
    assert route.calls.last.request.content == b"{}"
    assert route.calls.last.request.headers["content-type"] == "application/json"


@respx.mock
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_refused_and_not_followed(client: ControlClient, status: int) -> None:
    respx.get(f"{BASE}/models").mock(return_value=httpx.Response(status, headers={"location": "http://evil/"}))
    evil = respx.get("http://evil/").mock(return_value=httpx.Response(200))
    with pytest.raises(UpstreamProtocol, match="redirect"):
        await client.get("/models")
    assert not evil.called


@respx.mock
@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (httpx.ConnectError("refused by gpu1:8000"), UpstreamUnavailable),
        (httpx.ConnectTimeout("slow gpu1"), UpstreamTimeout),
        (httpx.ReadTimeout("slow gpu1"), UpstreamTimeout),
        (httpx.ReadError("reset gpu1"), UpstreamUnavailable),
        (httpx.RemoteProtocolError("illegal status line from gpu1"), UpstreamProtocol),
        (httpx.RemoteProtocolError("Server disconnected without sending a response."), UpstreamUnavailable),
    ],
)
async def test_errors(client: ControlClient, raised: Exception, becomes: type[BackendError]) -> None:
    respx.get(f"{BASE}/models").mock(side_effect=raised)
    with pytest.raises(becomes) as caught:
        await client.get("/models")
    assert type(caught.value) is becomes
    assert "gpu1" not in caught.value.message


@respx.mock
async def test_the_body_is_bounded(client: ControlClient) -> None:
    respx.get(f"{BASE}/models").mock(return_value=httpx.Response(200, content=b"x" * 1000))
    assert len((await client.get("/models")).body) == 1000
    respx.get(f"{BASE}/models").mock(return_value=httpx.Response(200, content=b"x" * 1001))
    with pytest.raises(UpstreamProtocol, match="too large"):
        await client.get("/models")


@respx.mock
async def test_a_coding_is_refused_unread(client: ControlClient) -> None:
    respx.get(f"{BASE}/models").mock(return_value=httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Raw(b"x")))
    with pytest.raises(UpstreamProtocol):
        await client.get("/models")


@respx.mock
async def test_a_body_that_breaks_off(client: ControlClient) -> None:
    broken = Raw(b"x", httpx.RemoteProtocolError("peer closed connection without sending complete message body"))
    respx.get(f"{BASE}/models").mock(return_value=httpx.Response(200, stream=broken))
    with pytest.raises(UpstreamTruncated):
        await client.get("/models")


async def test_a_request_that_may_not_be_sent(client: ControlClient) -> None:
    with pytest.raises(ValueError, match="transport"):
        await client.ask(UpstreamRequest("GET", "/", {"Host": "evil"}, b""))
    with pytest.raises(ValueError, match="request line"):
        await client.get("/a\r\nb")


class Raw(httpx.AsyncByteStream):
    """Pieces as they are; an exception is raised in its place."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece
