"""What is asked of a deployment besides generation: health, model lists, templates, tokens. Over httpx, not hot.

No proxy or credential of the environment is used, no redirect followed, no coding accepted, and every body bounded.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping

import httpx
import msgspec

from backends.core.contracts import UpstreamRequest
from backends.core.errors import UpstreamProtocol, UpstreamTimeout, UpstreamTruncated, UpstreamUnavailable
from backends.remote.origin import Credential, Origin, RequestHeads, tls_context

#: Default bound of an answer's body.
MAX_BODY_BYTES = 4 * 1024 * 1024


class ControlAnswer(msgspec.Struct, frozen=True):
    """A whole answer of any status but a redirect. `headers` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ControlClient:
    """Small requests to one deployment's server, at its own leisure."""

    def __init__(
        self,
        origin: Origin,
        *,
        credential: Credential | None = None,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = 5.0,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._checked = RequestHeads(origin, credential)
        self._base = f"{origin.scheme}://{origin.authority}{origin.prefix}"
        self._timeout_s = timeout_s
        self._max = max_body_bytes
        headers = {"accept-encoding": "identity", "user-agent": "switchyard"}
        if credential is not None:
            name, value = credential.field()
            headers[name] = value
        self._client = httpx.AsyncClient(
            verify=(tls or tls_context()) if origin.scheme == "https" else False,
            trust_env=False,
            follow_redirects=False,
            headers=headers,
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=8, max_keepalive_connections=2, keepalive_expiry=4.0),
        )

    async def get(self, path: str) -> ControlAnswer:
        """`GET` a path below the base URL; see `ask`."""
        return await self.ask(UpstreamRequest("GET", path, {}, b""))

    async def ask(self, request: UpstreamRequest) -> ControlAnswer:
        """Send a request and read its whole answer, all within `timeout_s`.

        Raises:
            UpstreamUnavailable: not reachable, or closed early.
            UpstreamProtocol: a redirect, a content coding, a body over the bound, or no HTTP.
            UpstreamTruncated: it closed inside its answer.
            UpstreamTimeout: not in time.
            ValueError: the request has a line or field that may not be sent.
        """
        self._checked.head(request)
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream(
                    request.method, self._base + request.path, headers=dict(request.headers), content=request.body or None
                ) as response,
            ):
                return await self._read(response)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise UpstreamTimeout("The deployment did not answer in time.", detail=type(error).__name__) from error
        except httpx.RemoteProtocolError as error:
            if "disconnected" in str(error):  # httpcore's words for a close before the first byte
                raise UpstreamUnavailable("The deployment closed the connection before it answered.") from error
            raise UpstreamProtocol("The deployment's response is not valid HTTP.", detail=str(error)) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            detail = f"{type(error).__name__}: {error}"
            raise UpstreamUnavailable("The deployment could not be reached.", detail=detail) from error

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def _read(self, response: httpx.Response) -> ControlAnswer:
        if 300 <= response.status_code < 400:
            detail = f"status {response.status_code}"
            raise UpstreamProtocol("The deployment answered with a redirect, which is not followed.", detail=detail)
        if response.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
            raise UpstreamProtocol("The deployment's response is not valid HTTP.", detail="a content coding not asked for")
        body = bytearray()
        try:
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > self._max:
                    raise UpstreamProtocol("The deployment's answer is too large.", detail="over the body limit")
        except httpx.RemoteProtocolError as error:
            raise UpstreamTruncated("The deployment closed the connection inside its response.", detail=str(error)) from error
        headers = {name.lower(): value for name, value in response.headers.items()}
        return ControlAnswer(response.status_code, headers, bytes(body))
